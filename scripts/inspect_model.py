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

import argparse
from pathlib import Path

import _root

from config import CHAR
from model.tokenization.display import token_text
from plumbing.command_line import add_flags, model_flag, parse, refuse_same
from plumbing.errors import UsageError, run_script
from plumbing.text import bar, plural, shown_path

KINDS = {"char": "a character model", "bpe": "a BPE model", "none": "a model of bare ids"}
ROWS = 16  # of the prompt's tokens, --text shows the last so many


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="", help="the text to run; without one, the start of a document")
    model_flag(parser)
    parser.add_argument("--html", type=Path, metavar="PAGE", help="write the page to this file")
    parser.add_argument("--text", action="store_true", help="show the short form in the terminal")
    parser.add_argument("--head", default="L0H0", help="the head that --text shows [L0H0]")
    add_flags(parser, CHAR, "show device debug")
    settings, args = parse(parser, CHAR, argv)
    if settings.show < 1:
        raise UsageError(f"--show must be 1 or above, and it is {settings.show}.")
    refuse_same({"--html": args.html}, settings.model_file)

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
    """The likeliest next token after each token, if the model ended after the embedding, layer 0, ..."""
    from model.interpretation.forward_pass import logit_lens

    names = ["embedding", *(f"layer {layer}" for layer in range(len(model.blocks)))]
    print("The logit lens: what the model would predict after each token if it ended there.")
    print("   after          " + "".join(f"{name:21}" for name in names) + "actual next token")
    p, top = logit_lens(model, forward.residual[:, -ROWS:]).float().softmax(dim=-1).max(dim=-1)  # (L + 1, ROWS)
    shown = ids[-ROWS:]
    for i, token in enumerate(shown):
        line = f"   {token_text(tokenizer, token)[:12]:14} "
        for p_here, best in zip(p[:, i].tolist(), top[:, i].tolist(), strict=True):
            line += f"{bar(p_here, 4)} {p_here:4.0%} {token_text(tokenizer, best)[:10]:10} "
        print(line + (token_text(tokenizer, shown[i + 1]) if i + 1 < len(shown) else ""))


def print_head(tokenizer, attention, ids: list[int], name: str) -> None:
    """One head's attention (T, T): for each token, the three tokens that it attends to most."""
    from model.interpretation.heads import attention_pattern

    previous, itself, first = attention_pattern(attention).tolist()
    print(
        f"Head {name.upper()}: {previous:.0%} to the previous token, {itself:.0%} to itself, {first:.0%} to the first."
    )
    for i in range(max(0, len(ids) - ROWS), len(ids)):
        top = attention[i, : i + 1].topk(min(3, i + 1))
        line = f"   {token_text(tokenizer, ids[i])[:12]:14}"
        for p, j in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            where = f"({i - j} back)" if i > j else "(itself)"
            line += f" {bar(p, 6)} {p:4.0%} {token_text(tokenizer, ids[j])[:8]:8} {where:10}"
        print(line.rstrip())


def print_next_tokens(tokenizer, forward, show: int) -> None:
    p = forward.logits[-1].float().softmax(dim=-1)
    top = p.topk(min(show, len(p)))
    print("The likeliest next tokens:")
    for p_token, token in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        print(f"   id {token:>5}  {token_text(tokenizer, token):14} {bar(p_token)} {p_token:7.2%}")


if __name__ == "__main__":
    run_script(main)
