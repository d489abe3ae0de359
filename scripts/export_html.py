"""Put your model into one HTML file that opens in any browser, offline: it writes there, and shows how.

    python scripts/export_html.py --output data/my_gpt.html
    python scripts/export_html.py --model checkpoints/char/gpt_model.pt --output data/my_char_gpt.html

Reads   gpt_model.pt (train.py, trainv2.py); for the learning curve log.jsonl of its run, if it is still there
Writes  one file: the weights, the tokenizer, and a GPT in JavaScript (scripts/pages/gpt.js)
Next    open the file, or send it to somebody: it loads nothing and needs no network

The page can write, read a text of yours and colour it by surprise, show the attention and the prediction of every layer
at any token, and say what the model is. With --precision float32 and the same seed it writes what generate.py writes.
float16 takes half the space and int8 a quarter; the page computes in fp32 with the rounded weights.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from config import BPE, CHAR, Sampling
from plumbing.command_line import ScriptParser, add_flags, model_flag, parse, refuse_no_page
from plumbing.errors import UserError, run_script
from plumbing.page import fill_page, json_in_html, without_infinities, write_page
from plumbing.text import shown_path

PRECISIONS = ("float32", "float16", "int8")
KINDS = {"char": "characters", "bpe": "BPE tokens", "none": "bare ids"}
MAX_PARAMETERS = 200_000_000  # base64 of so many in float16 is longer than the longest string of a browser


def main(argv: Sequence[str] | None = None) -> None:
    parser = ScriptParser(__doc__)
    model_flag(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="PAGE", help="the file to write")
    text = "how the page keeps the weights [float16]"
    parser.add_argument("--precision", choices=PRECISIONS, default="float16", help=text)
    parser.add_argument("--prompt", default="", help="the text that the page starts with")
    parser.add_argument(
        "--run", type=Path, help="folder of the run, for its curve [checkpoints/char or checkpoints/bpe]"
    )
    add_flags(parser, CHAR, "debug")
    settings, args = parse(parser, CHAR, argv)
    refuse_no_page("--output", args.output, settings.model_file)

    from model.storage.model_file import load_model, show_training  # imports torch, which takes seconds
    from model.storage.page_file import page_model

    model, tokenizer, training = load_model(settings.model_file)
    description, weights = page_model(model, tokenizer, training, args.precision)
    count = sum(description["parameters"].values())
    if len(weights) > MAX_PARAMETERS * 2:
        raise UserError(f"{count:,} parameters are too many for one page. Try --precision int8, or a smaller model.")
    run = args.run or {"char": CHAR, "bpe": BPE, "none": CHAR}[tokenizer.kind].checkpoint_dir
    description |= {
        "name": settings.model_file.name,
        "prompt": args.prompt,
        "sampling": {field.name: getattr(CHAR, field.name) for field in fields(Sampling)},
        "seed": CHAR.seed,
        "curve": learning_curve(run, training),
    }
    if settings.debug:
        print(f"{shown_path(settings.model_file)}, {count:,} parameters for {KINDS[tokenizer.kind]}")
        curve = f"learning curve from {shown_path(run)}" if description["curve"] else "no log of its run, so no curve"
        print(f"weights in {args.precision}: {len(weights) / 1e6:.2f} MB; {curve}")
    description = without_infinities(description)
    facts = [f"A GPT with {count:,} parameters for {KINDS[tokenizer.kind]}, {show_training(training)}."]
    text = json_in_html(description).encode(errors="backslashreplace")  # as write_page() writes it
    digest = hashlib.sha256(text + weights).hexdigest()
    page = fill_page("my_gpt.html", facts, description, weights=base64.b64encode(weights).decode(), sha256=digest)
    write_page(args.output, page, f"a model of {count:,} parameters in {args.precision}")


def learning_curve(run: Path, training: dict) -> dict | None:
    """The curve of the run that made this model: {"training": [[step, loss], ...], "validation": ...}. None if its log
    is not there, or is that of another model."""
    from model.monitoring.run_log import read_run

    try:
        log = read_run(run)
    except (UserError, OSError, ValueError):
        return None
    validation = [[entry["step"], entry["val_loss"]] for entry in log["evaluations"]]
    if [training["steps"], training.get("val_loss")] not in validation:
        return None
    return {"training": log["training"], "validation": validation}


if __name__ == "__main__":
    run_script(main)
