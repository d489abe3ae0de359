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
from plumbing.command_line import add_flags, model_flag, parse, refuse_same
from plumbing.errors import UsageError, run_script
from plumbing.text import plural, shown_path

KINDS = {"char": "a character model", "bpe": "a BPE model", "none": "a model of bare ids"}


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
    from model.interpretation.inspect_terminal import print_head, print_logit_lens, print_next_tokens
    from model.storage.model_file import load_model, show_training
    from model.tokenization.tokenizer import encode_prompt
    from plumbing.page import fill_page, write_page

    with memory_advice("Try a shorter prompt."):
        model, tokenizer, training = load_model(settings.model_file)
        shape, head = model.architecture, args.head.upper()
        heads = [f"L{layer}H{i}" for layer in range(shape["n_layer"]) for i in range(shape["n_head"])]
        if head not in heads:
            raise UsageError(f"There is no head {args.head}: this model has {heads[0]} to {heads[-1]}.")
        model.to(pick_device(settings.device))
        ids = encode_prompt(tokenizer, args.prompt, model.block_size)
        forward = trace_forward(model, ids)

        if args.text or not args.html:
            if settings.debug:
                print(f"{shown_path(settings.model_file)}, {KINDS[tokenizer.kind]}: {show_training(training)}")
            print_logit_lens(model, tokenizer, forward, ids)
            print_head(tokenizer, forward, ids, head)
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


if __name__ == "__main__":
    run_script(main)
