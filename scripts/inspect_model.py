"""Open your model: one forward pass over a prompt of yours, step by step.

    python scripts/inspect_model.py --prompt "def __init__(self, name):" --html data/inside.html
    python scripts/inspect_model.py --prompt "import os" --text --head L0H1

Reads   gpt_model.pt (train.py, trainv2.py)
Writes  with --html a page for a browser that follows the pass: tokens, embedding, attention, what each component adds,
        the prediction after every layer, candidates, surprise; with --text (or without either) the prediction after
        every layer, one head and the candidates to stdout
Next    open the page; or scripts/ablate_model.py, which switches the components off one by one

It is the pass that generate.py starts with for the same prompt: the same tokens, of which the last block_size count,
and the same logits after the last one. Layers and heads count from 0: L1H2 is head 2 of layer 1.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

from pathlib import Path

from config import CHAR
from model.tokenization.display import token_text
from plumbing import terminal
from plumbing.command_line import ScriptParser, add_flags, model_flag, parse, refuse_no_page
from plumbing.errors import UsageError, run_script
from plumbing.text import bar, fitted, plural, shortened, shown_path

KINDS = {"char": "a character model", "bpe": "a BPE model", "none": "a model of bare ids"}
ROWS = 16  # of the prompt's tokens, --text shows the last so many


def main(argv: list[str] | None = None) -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--prompt", default="", help="the text to run; without one, the start of a document")
    model_flag(parser)
    parser.add_argument("--html", type=Path, metavar="PAGE", help="write the page to this file")
    parser.add_argument("--text", action="store_true", help="show the short form in the terminal")
    parser.add_argument("--head", default="L0H0", help="the head that --text shows [L0H0]")
    add_flags(parser, CHAR, "show device debug")
    settings, args = parse(parser, CHAR, argv)
    if settings.show < 1:
        raise UsageError(f"--show must be 1 or above, and it is {settings.show}.")
    refuse_no_page("--html", args.html, settings.model_file)

    # What needs torch is imported here, so that --help answers at once.
    from model.device import memory_advice, pick_device
    from model.interpretation.forward_pass import trace_forward
    from model.interpretation.inspect_page import inspect_page_data
    from model.storage.model_file import load_model, show_training
    from model.tokenization.tokenizer import encode_prompt
    from plumbing.page import fill_page, write_page

    with memory_advice("Try a shorter prompt."):
        model, tokenizer, training = load_model(settings.model_file)
        shape = model.architecture
        heads = [f"L{layer}H{head}" for layer in range(shape["n_layer"]) for head in range(shape["n_head"])]
        if args.head.upper() not in heads:
            raise UsageError(f"There is no head {args.head}: this model has {heads[0]} to {heads[-1]}.")
        model.to(pick_device(settings.device))
        ids = encode_prompt(tokenizer, args.prompt, model.block_size)
        forward = trace_forward(model, ids)

        if args.text or not args.html:
            if settings.debug:
                print(f"{shown_path(settings.model_file)}, {KINDS[tokenizer.kind]}: {show_training(training)}")
            print_logit_lens(model, tokenizer, forward, ids)
            print_head(tokenizer, forward.attention.flatten(0, 1)[heads.index(args.head.upper())], ids, args.head)
            print_next_tokens(tokenizer, forward, settings.show)
            if len(ids) == 1:
                print("One token has no others to look at: give a --prompt of several.")
        if args.html:
            weights = sum(model.parameter_counts().values())
            facts = [
                f"{settings.model_file.name}, {KINDS[tokenizer.kind]}, {show_training(training)}.",
                f"{shape['n_layer']} layers of {shape['n_head']} heads, {shape['n_embd']} channels, "
                f"{shape['vocab_size']:,} tokens in the vocabulary, {weights:,} weights.",
            ]
            data = inspect_page_data(model, tokenizer, forward, ids, args.prompt)
            write_page(args.html, fill_page("inspect_model.html", facts, data), plural(len(ids), "token"))
        else:
            print("Next: add --html data/inside.html to see everything as a page.")


def print_logit_lens(model, tokenizer, forward, ids: list[int]) -> None:
    """The likeliest next token after each token, if the model ended after the embedding, layer 0, ... Of many layers,
    some, so that a row fits into the terminal."""
    from model.interpretation.forward_pass import logit_lens

    names = ["embedding", *(f"layer {layer}" for layer in range(len(model.blocks)))]
    room = terminal.width() - 30  # for the layers, beside the token and the actual next one
    columns = min(len(names), max(2, room // 11))
    shown = [round(i * (len(names) - 1) / (columns - 1)) for i in range(columns)]
    cells = min(21, max(11, room // len(shown)))
    bars = max(0, min(4, cells - 15))
    part = "" if len(shown) == len(names) else f" ({len(shown)} of {len(names)}; the page has all)"
    print(f"The logit lens: what the model would predict after each token if it ended there{part}.")
    print(f"  {'after':12} " + "".join(names[layer].ljust(cells) for layer in shown) + "actual next")
    p, top = logit_lens(model, forward.residual[:, -ROWS:]).float().softmax(dim=-1).max(dim=-1)  # (L + 1, ROWS)
    tokens = ids[-ROWS:]
    for i, token in enumerate(tokens):
        line = f"  {fitted(token_text(tokenizer, token), 12)} "
        for layer in shown:
            filled = bar(p[layer, i].item(), bars) + " " if bars else ""
            best = token_text(tokenizer, top[layer, i].item())
            line += f"{filled}{p[layer, i].item():4.0%} {fitted(best, cells - len(filled) - 6)} "
        actual = token_text(tokenizer, tokens[i + 1]) if i + 1 < len(tokens) else ""
        print((line + shortened(actual, 12)).rstrip())


def print_head(tokenizer, attention, ids: list[int], name: str) -> None:
    """One head's attention (T, T): for each token, the three tokens that it attends to most, and how many tokens back
    each is."""
    from model.interpretation.heads import attention_pattern

    previous, itself, first = attention_pattern(attention).tolist()
    print(
        f"Head {name.upper()}: {previous:.0%} to the previous token, {itself:.0%} to itself, {first:.0%} to the first."
    )
    cells = (terminal.width() - 14) // 3  # for each of the three
    bars, token_cells = max(0, min(6, cells - 24)), max(4, min(10, cells - 13))
    print(f"  {'from':12} to, and how many tokens back")
    for i in range(max(0, len(ids) - ROWS), len(ids)):
        top = attention[i, : i + 1].topk(min(3, i + 1))
        line = f"  {fitted(token_text(tokenizer, ids[i]), 12)}"
        for p, j in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            filled = bar(p, bars) + " " if bars else ""
            line += f" {filled}{p:4.0%} {fitted(token_text(tokenizer, ids[j]), token_cells)} {j - i or 'itself':<6}"
        print(line.rstrip())


def print_next_tokens(tokenizer, forward, show: int) -> None:
    p = forward.logits[-1].float().softmax(dim=-1)
    top = p.topk(min(show, len(p)))
    print("The likeliest next tokens:")
    for p_token, token in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        print(f"   id {token:>5}  {fitted(token_text(tokenizer, token), 14)} {bar(p_token)} {p_token:7.2%}")


if __name__ == "__main__":
    run_script(main)
