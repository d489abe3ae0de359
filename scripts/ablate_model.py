"""Which component does what: switch off each head, MLP and layer in turn, and see how far the loss rises.

    python scripts/ablate_model.py
    python scripts/ablate_model.py --model char.pt --val-file data/val.bin --eval-tokens 65536

Reads   gpt_model.pt (train.py, trainv2.py) and the validation file of its kind
Writes  to stdout: the components, ranked by how far the loss rises without them, and what each head does
Next    python generate.py --off L2H3 (generatev2.py for BPE): generate without a component

A component that is switched off adds nothing to the residual stream; everything else stays as trained. So the ranking
shows what the others cannot replace: components that can stand in for each other look less important than they are.
Each head gets three scores from 0 to 1, the mean fraction of its attention that goes to certain tokens:

    previous    the token just before; on validation text
    same        earlier occurrences of the same token, where there are any; on validation text
    induction   on random tokens that come twice: the token that followed the same one the first time. Such a head
                continues what came before. Olsson et al. 2022, "In-context Learning and Induction Heads"

Layers and heads count from 0: L1H2 is head 2 of layer 1.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

import shlex
from dataclasses import replace
from pathlib import Path

from config import BPE, CHAR, Settings
from dataset import TokenFile, open_bare_tokens, open_tokens
from model import metrics
from plumbing.command_line import ScriptParser, add_flags, file_flags, model_flag, parse
from plumbing.errors import UsageError, UserError, run_script
from plumbing.text import bar, shown_path


def main(argv: list[str] | None = None) -> None:
    parser = ScriptParser(__doc__)
    model_flag(parser)
    parser.add_argument("--val-file", dest="scored", type=Path, help="token file [data/val.bin or data/val_bpe.bin]")
    add_flags(parser, replace(CHAR, eval_tokens=16_384), "eval_tokens seed device debug")
    settings, args = parse(parser, CHAR, argv)

    # What needs torch is imported here, so that --help answers at once.
    from model.device import memory_advice, pick_device
    from model.interpretation.ablation import ablation_costs, mean_loss, validation_batches
    from model.interpretation.heads import head_role, head_scores
    from model.storage.model_file import load_model

    with memory_advice("Try a smaller --eval-tokens."):
        model, tokenizer, _ = load_model(settings.model_file)
        val = open_validation(settings, args.scored, tokenizer)
        model.to(pick_device(settings.device))
        batches = validation_batches(val, model, settings.eval_tokens)
        scored = sum(idx.numel() for idx, _ in batches)
        loss = mean_loss(model, batches)
        print(f"{shown_path(settings.model_file)} on {scored:,} validation tokens: loss {loss:.4f} nats per token")

        layers, heads = range(len(model.blocks)), range(model.blocks[0].attention.n_head)
        names = [f"L{i}{component}" for i in layers for component in (*(f"H{head}" for head in heads), "MLP", "")]
        costs = ablation_costs(model, batches, names, loss)
        scores = head_scores(model, batches[0][0], settings.seed)
    roles = {name: head_role(row) for name, row in scores.items()}
    print_costs(costs, roles, val.tokens_per_byte if tokenizer.counts_bytes else None)
    print("What the heads do, as scores from 0 to 1:")
    print("           previous                same                    induction")
    for name, row in scores.items():
        print(f"  {name:8} " + "  ".join(f"{score:4.2f} {bar(score, 16)}" for score in row).rstrip())
    script = "generatev2.py" if tokenizer.kind == "bpe" else "generate.py"
    flags = f"{file_flags(settings, CHAR, 'model_file')} --prompt {shlex.quote(tokenizer.prompt_from(val.tokens))}"
    print(f"Next: python {script}{flags} --quiet --off {max(scores, key=costs.get)}")


def open_validation(settings: Settings, path: Path | None, tokenizer) -> TokenFile:
    """The token file to score: `path`, or the default validation file for the model's tokenizer."""
    model = shown_path(settings.model_file)
    if tokenizer.kind == "none":
        if not path:
            raise UsageError(f"{model} was trained on bare ids: name some with --val-file.")
        val = open_bare_tokens(path, tokenizer.vocab_size)
    else:
        val = open_tokens(path or {"char": CHAR, "bpe": BPE}[tokenizer.kind].val_file)
        if not tokenizer.made(val.facts):
            raise UserError(
                f"{shown_path(val.path)} was made with another tokenizer than {model}. "
                "Name the file that the model was validated on with --val-file."
            )
    if len(val) < 2:
        raise UserError(f"{shown_path(val.path)} has one token, and the first one is not scored. Use more text.")
    return val


def print_costs(costs: dict[str, float], roles: dict[str, str], tokens_per_byte: float | None) -> None:
    """The components by cost, highest first. tokens_per_byte is None if the text of the tokens is unknown."""
    unit = "nats per token" if tokens_per_byte is None else "nats per token, and bits per byte of the text"
    print(f"Without it, the loss rises by ({unit}):")
    highest = max(*costs.values(), 1e-9)
    for name, cost in sorted(costs.items(), key=lambda item: -item[1]):
        title = name if "H" in name or "MLP" in name else f"{name}, all of it"
        per_byte = "" if tokens_per_byte is None else f"{metrics.bits_per_byte(cost, tokens_per_byte):+7.3f} "
        bars = bar(max(0.0, cost) / highest)
        print(f"  {title:14} {cost:+8.4f} {per_byte}{bars} {roles.get(name, '')}".rstrip())


if __name__ == "__main__":
    run_script(main)
