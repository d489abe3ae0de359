"""Which part does what: switch off each head, MLP and layer in turn, and see what it costs.

    python scripts/ablate_model.py
    python scripts/ablate_model.py --model char.pt --val-file data/val.bin --eval-tokens 65536

Reads   gpt_model.pt (train.py, trainv2.py) and the validation file of its kind
Writes  to stdout: the parts, ranked by the loss that they cost when they are missing, and what each head does
Next    python generate.py --off L2H3 (generatev2.py for BPE): write without a part

A part that is switched off adds nothing to the residual stream; all else stays as it was trained. So the ranking says
what the rest cannot replace, and parts that stand in for each other look less important than they are. Three habits of
heads are looked for, each with a score from 0 to 1, the mean share of attention that goes there:

    previous    to the token just before; on validation text
    same        to earlier tokens that are equal to the one that looks, where there are any; on validation text
    induction   on random tokens that come twice: to the token that came after the same one the first time. A head like
                this continues what was seen before. Olsson et al. 2022, "In-context Learning and Induction Heads"

Layers and heads count from 0: L1H2 is head 2 of layer 1.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import _root

from config import BPE, CHAR, Settings
from plumbing.command_line import add_flags, check_seed, file_flags, model_flag, parse_before_torch
from plumbing.errors import UsageError, UserError, run_script
from plumbing.text import shown_path


def command_line(argv: list[str] | None = None):
    """Returns (settings, arguments)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model_flag(parser)
    parser.add_argument(
        "--val-file", dest="tokens", type=Path, help="token ids to score [data/val.bin or data/val_bpe.bin]"
    )
    add_flags(parser, replace(CHAR, eval_tokens=16_384), "eval_tokens seed device debug")
    return parse_before_torch(parser, CHAR, argv)


if __name__ == "__main__":
    settings, args = command_line()  # before torch, which takes seconds to import

import numpy as np
import torch
from tqdm import tqdm

from dataset import blocks_in_order, open_bare_tokens, open_tokens
from model import metrics
from model.device import memory_advice, pick_device, to_device
from model.gpt import GPT
from model.interpretation.ablation import without
from model.interpretation.heads import induction, previous_token, same_token
from model.storage.model_file import load_model
from plumbing.text import bar

NAMED = 0.3  # a score from which on a head is called by its habit


@torch.inference_mode()
def loss_over(model: GPT, batches: list) -> float:
    """The mean loss, in nats a token, over batches of (idx, targets)."""
    losses = [(model.loss(idx, targets).item(), idx.numel()) for idx, targets in batches]
    return sum(loss * n for loss, n in losses) / sum(n for _, n in losses)


def ablate(model: GPT, batches: list, names: list[str]) -> dict[str, float]:
    """By how many nats a token the loss rises when each part is switched off alone."""
    whole = loss_over(model, batches)
    costs = {}
    for name in tqdm(names, desc="switching off", unit="part", delay=2, leave=False):
        with without(model, name):
            costs[name] = loss_over(model, batches) - whole
    return costs


@torch.inference_mode()
def head_scores(model: GPT, idx: torch.Tensor, seed: int) -> dict[str, tuple[float, float, float]]:
    """The three scores of each head by its name; idx (B, T) is text for the first two."""
    on_text, on_repeated = [], []
    model(idx, weights=on_text)  # a list of (B, H, T, T), one for each layer
    n = model.block_size // 2
    random = torch.randint(model.vocab_size, (8, n), generator=torch.Generator().manual_seed(seed)).to(idx.device)
    if n > 1:
        model(torch.cat([random, random], dim=1), weights=on_repeated)
    scores = {}
    for layer, text in enumerate(on_text):
        repeated = induction(on_repeated[layer]).tolist() if on_repeated else [0.0] * text.size(1)
        rows = zip(previous_token(text).tolist(), same_token(text, idx).tolist(), repeated, strict=True)
        scores |= {f"L{layer}H{head}": row for head, row in enumerate(rows)}
    return scores


def habit(scores: tuple[float, float, float]) -> str:
    """What a head is called: by the highest of its scores, where one is high enough."""
    score, name = max(zip(scores, ("previous token", "same token", "induction"), strict=True))
    return name if score >= NAMED else ""


@memory_advice("Try a smaller --eval-tokens.")
def main(settings: Settings, args) -> None:
    if settings.eval_tokens < 0:
        raise UsageError(f"--eval-tokens must be 0 or above, and it is {settings.eval_tokens}.")
    check_seed(settings)
    model, tokenizer, _ = load_model(settings.model_file)
    bare = tokenizer.kind == "none"
    if bare and not args.tokens:
        raise UsageError(f"{shown_path(settings.model_file)} was trained on bare ids: name some with --val-file.")
    if bare:
        val = open_bare_tokens(args.tokens, tokenizer.vocab_size)
    else:
        val = open_tokens(args.tokens or {"char": CHAR, "bpe": BPE}[tokenizer.kind].val_file)
    if not bare and val.facts["tokenizer_sha256"] != tokenizer.sha256:
        raise UserError(
            f"{shown_path(val.path)} was made with another tokenizer than {shown_path(settings.model_file)}. "
            "Name the file that the model was validated on with --val-file."
        )
    if len(val) < 2:
        raise UserError(f"{shown_path(val.path)} has one token, and the first one is not scored. Use more text.")
    model.to(pick_device(settings.device))
    every = max(1, len(val) // settings.eval_tokens) if settings.eval_tokens else 1
    batches = [
        tuple(to_device(np.ascontiguousarray(part), model.device) for part in pair)
        for pair in blocks_in_order(val, model.block_size, max(1, 4096 // model.block_size), every)
    ]
    scored = sum(idx.numel() for idx, _ in batches)
    whole = loss_over(model, batches)
    print(f"{shown_path(settings.model_file)} on {scored:,} validation tokens: loss {whole:.4f} nats a token")

    # === what each part costs =========================================================================================
    layers, heads = range(len(model.blocks)), range(model.blocks[0].attention.n_head)
    names = [f"L{i}{part}" for i in layers for part in (*(f"H{head}" for head in heads), "MLP", "")]
    costs = ablate(model, batches, names)
    scores = head_scores(model, batches[0][0], settings.seed)
    highest = max(*costs.values(), 1e-9)
    print(f"Without it, the loss rises by (nats a token{'' if bare else ', and bits per byte of the text'}):")
    for name in sorted(costs, key=lambda name: -costs[name]):
        cost = costs[name]
        title = name if name.lstrip("L").strip("0123456789") else f"{name}, all of it"
        per_byte = "" if bare else f"{metrics.bits_per_byte(cost, val.tokens_per_byte):+7.3f} "
        called = habit(scores[name]) if name in scores else ""
        print(f"  {title:14} {cost:+8.4f} {per_byte}{bar(max(0.0, cost) / highest)} {called}".rstrip())

    # === what each head does ==========================================================================================
    print("What the heads do, as scores from 0 to 1:")
    print("           previous                same                    induction")
    for name, row in scores.items():
        print(f"  {name:8} " + "  ".join(f"{score:4.2f} {bar(score, 16)}" for score in row).rstrip())
    important = max(scores, key=costs.get)
    script = "generatev2.py" if tokenizer.kind == "bpe" else "generate.py"
    flags = f"{file_flags(settings, CHAR, 'model_file')} --prompt {'0' if bare else 'def'}"
    print(f"Next: python {script}{flags} --quiet --off {important}")


if __name__ == "__main__":
    run_script(lambda: main(settings, args))
