"""Open your model: one forward pass over a prompt of yours, step by step.

    python scripts/inspect_model.py --prompt "def __init__(self, name):" --html data/inside.html
    python scripts/inspect_model.py --prompt "import os" --text --head L0H1

Reads   gpt_model.pt (train.py, trainv2.py)
Writes  with --html a page for a browser that leads through the pass in its order: tokens, embedding, attention, what
        each part adds, the prediction after every layer, candidates, surprise; with --text (or without either) the
        prediction after every layer, one head and the candidates to stdout
Next    open the page; or scripts/ablate_model.py, which switches the parts off one by one

The pass is the one that generate.py begins with when it is given the same prompt: the same tokens, of which the last
block_size count, and the same logits after the last one. Layers and heads count from 0: L1H2 is head 2 of layer 1.
"""

import argparse
from pathlib import Path

import _root

from config import CHAR, Settings
from plumbing.command_line import add_flags, model_flag, parse_before_torch, refuse_same
from plumbing.errors import UsageError, run_script
from plumbing.text import shown_path


def command_line(argv: list[str] | None = None):
    """Returns (settings, arguments)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="", help="the text to look at; without one, the beginning of a document")
    model_flag(parser)
    parser.add_argument("--html", type=Path, metavar="PAGE", help="write the page to this file")
    parser.add_argument("--text", action="store_true", help="show the short form in the terminal")
    parser.add_argument("--head", default="L0H0", help="the head that --text shows [L0H0]")
    add_flags(parser, CHAR, "show device debug")
    return parse_before_torch(parser, CHAR, argv)


if __name__ == "__main__":
    settings, args = command_line()  # before torch, which takes seconds to import

import html
import json
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from model import metrics
from model.device import memory_advice, pick_device
from model.gpt import GPT
from model.interpretation.forward_pass import Look, credit, lens, look
from model.interpretation.heads import habits
from model.storage.model_file import load_model, show_training
from model.tokenization.display import token_text
from model.tokenization.tokenizer import Tokenizer, encode_prompt
from plumbing.files import whole_file
from plumbing.page import fill, json_in_html, packed
from plumbing.text import bar

SHOWN = 5  # predictions that the page keeps at each place, and candidates that it follows back to the parts
PUSHED = 3  # tokens named for each part: those whose logits it raises most
NEIGHBOURS = 8  # nearest tokens in the embedding
CANDIDATES = 40  # candidates that the page can name; its sliders work on all of the vocabulary


# === the figures ======================================================================================================


def replay_merges(tokenizer: Tokenizer, prompt: str) -> list[list[list[str]]]:
    """How BPE cuts a prompt: for each of its words, the row of pieces after every merge, from bytes to tokens.

    "def" gives [["d", "e", "f"], ["d", "ef"], ["def"]], as visible text. Of the pairs of neighbours in a word, the one
    whose merge was learned first is joined, wherever it stands, and so on until no pair has a merge (Sennrich et al.
    2015, arXiv:1508.07909, algorithm 1).
    """
    if tokenizer.kind != "bpe":
        return []
    rank = {tuple(pair): place for place, pair in enumerate(json.loads(tokenizer.json_text)["model"]["merges"])}
    shown = {}  # a piece in the letters of the tokenizer's file -> as text
    words = []
    for word, _ in tokenizer.library.pre_tokenizer.pre_tokenize_str(prompt):
        pieces, rows = list(word), [list(word)]
        while pair := min(pairwise(pieces), key=lambda p: rank.get(p, len(rank)), default=None):
            if pair not in rank:
                break
            joined, i = [], 0
            while i < len(pieces):
                both = tuple(pieces[i : i + 2]) == pair
                joined.append("".join(pieces[i : i + 1 + both]))
                i += 1 + both
            pieces = joined
            rows.append(pieces)
        for piece in {piece for row in rows for piece in row} - shown.keys():
            shown[piece] = token_text(tokenizer, tokenizer.library.token_to_id(piece))
        words.append([[shown[piece] for piece in row] for row in rows])
    return words


@torch.inference_mode()
def neighbours(model: GPT, ids: list[int]) -> dict[int, list[tuple[int, float]]]:
    """For each token, those whose embeddings point the most nearly its way: (id, cosine), the nearest first."""
    table = torch.nn.functional.normalize(model.embedding.weight, dim=-1)  # (V, C)
    found = {}
    for token in dict.fromkeys(ids):
        top = (table @ table[token]).topk(min(NEIGHBOURS + 1, model.vocab_size))
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        found[token] = [(other, cosine) for other, cosine in pairs if other != token][:NEIGHBOURS]
    return found


def rank_of(logits: Tensor, token: Tensor) -> Tensor:
    """The place of tokens (T) among the logits (T, V) of their positions, from 1 for the likeliest."""
    return 1 + (logits > logits.gather(1, token[:, None])).sum(-1)


# === the terminal =====================================================================================================


def print_lens(model: GPT, tokenizer: Tokenizer, seen: Look, ids: list[int], rows: int = 16) -> None:
    """The likeliest next token after each of the last tokens, had the model ended after the embedding, layer 0, ..."""
    columns = ["embedding", *(f"layer {layer}" for layer in range(len(model.blocks)))]
    print("The logit lens: what the model would foresee after each token if it ended there.")
    print("   after          " + "".join(f"{name:21}" for name in columns) + "what came")
    p = lens(model, seen.streams[:, -rows:]).float().softmax(dim=-1)  # (L + 1, rows, V)
    for i, token in enumerate(ids[-rows:]):
        cells = []
        for layer in range(len(columns)):
            best = int(p[layer, i].argmax())
            share = float(p[layer, i, best])
            cells.append(f"{bar(share, 4)} {share:4.0%} {token_text(tokenizer, best)[:10]:10} ")
        came = token_text(tokenizer, ids[-rows:][i + 1]) if i + 1 < len(ids[-rows:]) else ""
        print(f"   {token_text(tokenizer, token)[:12]:14} {''.join(cells)}{came}")


def print_head(tokenizer: Tokenizer, seen: Look, ids: list[int], name: str, rows: int = 16) -> None:
    """Where one head looks from each of the last tokens: the three that it takes most from."""
    heads = [part for part in seen.parts if "H" in part]
    shares = seen.attention.flatten(0, 1)[heads.index(name.upper())]  # (T, T)
    before, itself, first = habits(shares).tolist()
    print(f"Head {name.upper()}: {before:.0%} to the token before, {itself:.0%} to itself, {first:.0%} to the first.")
    for i in range(max(0, len(ids) - rows), len(ids)):
        top = shares[i, : i + 1].topk(min(3, i + 1))
        line = f"   {token_text(tokenizer, ids[i])[:12]:14}"
        for p, j in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            where = f"({i - j} back)" if i > j else "(itself)"
            line += f" {bar(p, 6)} {p:4.0%} {token_text(tokenizer, ids[j])[:8]:8} {where:10}"
        print(line.rstrip())


def print_candidates(tokenizer: Tokenizer, seen: Look, show: int) -> None:
    """The likeliest tokens after the last one."""
    p = seen.logits[-1].float().softmax(dim=-1)
    top = p.topk(min(show, len(p)))
    print("What comes next:")
    for share, token in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        print(f"   id {token:>5}  {token_text(tokenizer, token):14} {bar(share)} {share:7.2%}")


# === the page =========================================================================================================


def page_data(model: GPT, tokenizer: Tokenizer, seen: Look, ids: list[int], prompt: str) -> dict:
    """All that the page shows, computed here; its program only draws, and bends the candidates by its sliders."""
    T, V = seen.logits.shape
    logits = seen.logits.float()
    next_ids = torch.tensor(ids[1:], dtype=torch.long)
    words = {*ids}

    # --- the lens: after the embedding and each layer, the likeliest tokens, and the one that came --------------------
    lens_ids, lens_p, came_p, came_rank = [], [], [], []
    for stream in seen.streams:
        after = lens(model, stream).float().cpu()  # (T, V)
        top = after.softmax(dim=-1).topk(min(SHOWN, V))
        lens_ids.append(top.indices)
        lens_p.append(top.values)
        came_p.append(after[:-1].softmax(dim=-1).gather(1, next_ids[:, None])[:, 0])
        came_rank.append(rank_of(after[:-1], next_ids))
    lens_ids, lens_p = torch.stack(lens_ids), torch.stack(lens_p)  # (L + 1, T, K)

    # --- what each part adds: to the final candidates of each position and the token that came ------------------------
    followed = torch.cat([lens_ids[-1], torch.tensor([*ids[1:], ids[-1]])[:, None]], dim=1)  # (T, K + 1)
    credits, pushed = [], []
    for part in range(len(seen.parts)):
        adds = credit(model, seen, part).float().cpu()  # (T, V)
        credits.append(adds.gather(1, followed))
        pushed.append((adds - adds.mean(-1, keepdim=True)).topk(min(PUSHED, V)).indices)
    size = seen.added.norm(dim=-1) / seen.streams[-1].norm(dim=-1)  # (P, T)

    # --- the candidates after the last token --------------------------------------------------------------------------
    last = logits[-1].cpu()
    order = last.argsort(descending=True, stable=True)

    near = neighbours(model, ids)
    words |= set(lens_ids.flatten().tolist()) | set(torch.stack(pushed).flatten().tolist())
    words |= set(order[:CANDIDATES].tolist()) | {other for row in near.values() for other, _ in row}
    below = np.tril_indices(T)
    log_p = logits[:-1].log_softmax(dim=-1).cpu().gather(1, next_ids[:, None])[:, 0]
    return {
        "kind": tokenizer.kind,
        "n_layer": len(model.blocks),
        "n_head": model.blocks[0].attention.n_head,
        "vocab_size": V,
        "ids": ids,
        "bytes": [tokenizer.token_bytes(token).hex(" ") for token in ids],
        "words": {token: token_text(tokenizer, token) for token in sorted(words)},
        "merges": replay_merges(tokenizer, prompt),
        "neighbours": {token: [[other, round(c, 4)] for other, c in row] for token, row in near.items()},
        # Shares in steps of 1 / 65535, and only those that can be other than zero: row after row of the lower triangle.
        "attention": packed((seen.attention.float().cpu().numpy() * 65535).round().astype(np.uint16)[..., *below]),
        "habits": packed(habits(seen.attention).float().cpu().numpy()),
        "parts": seen.parts,
        "followed": packed(followed.numpy().astype(np.uint16)),
        "credit": packed(torch.stack(credits).numpy()),
        "pushed": packed(torch.stack(pushed).numpy().astype(np.uint16)),
        "size": packed(size.float().cpu().numpy()),
        "lens_ids": packed(lens_ids.numpy().astype(np.uint16)),
        "lens_p": packed(lens_p.numpy()),
        "came_p": packed(torch.stack(came_p).numpy()),
        "came_rank": packed(torch.stack(came_rank).numpy().astype(np.uint32)),
        "order": packed(order.numpy().astype(np.uint16)),
        "logits": packed(last[order].numpy()),
        "surprise": packed(metrics.bits(-log_p).numpy()),
    }


@memory_advice("Try a shorter prompt.")
def main(settings: Settings, args) -> None:
    if settings.show < 1:
        raise UsageError(f"--show must be 1 or above, and it is {settings.show}.")
    refuse_same({"--html": args.html}, settings.model_file)
    model, tokenizer, training = load_model(settings.model_file)
    a = model.architecture
    heads = [f"L{layer}H{head}" for layer in range(a["n_layer"]) for head in range(a["n_head"])]
    if args.head.upper() not in heads:
        raise UsageError(f"There is no head {args.head}: this model's are {heads[0]} to {heads[-1]}.")
    model.to(pick_device(settings.device))
    ids = encode_prompt(tokenizer, args.prompt, model.block_size)
    seen = look(model, ids)

    kind = {"char": "a character model", "bpe": "a BPE model", "none": "a model of bare ids"}[tokenizer.kind]
    trained = show_training(training)
    if args.text or not args.html:
        if settings.debug:
            print(f"{shown_path(settings.model_file)}, {kind}: {trained}")
        print_lens(model, tokenizer, seen, ids)
        print_head(tokenizer, seen, ids, args.head)
        print_candidates(tokenizer, seen, settings.show)
    if not args.html:
        print("Next: the same as a page, and all of it: add --html data/inside.html")
        return

    facts = [
        f"{settings.model_file.name}, {kind}, {trained}.",
        f"{a['n_layer']} layers of {a['n_head']} heads, {a['n_embd']} channels, {a['vocab_size']:,} tokens in the "
        f"vocabulary, {sum(model.parameters_by_part().values()):,} weights.",
    ]
    page = fill(
        Path(__file__).parent / "pages" / "inspect_model.html",
        facts="".join(f"<p>{html.escape(fact)}</p>" for fact in facts),
        data=json_in_html(page_data(model, tokenizer, seen, ids, args.prompt)),
    )
    with whole_file(args.html) as file:
        size = file.write(page.encode(errors="backslashreplace"))  # a file's name can hold bytes that are no text
    print(f"{shown_path(args.html)}: {len(ids)} tokens, {size / 1e6:.2f} MB")
    print(f"Next: open {shown_path(args.html)} in a browser; it needs no network.")


if __name__ == "__main__":
    run_script(lambda: main(settings, args))
