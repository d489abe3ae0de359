"""See how a training run went: its curves, and what the model wrote on the way.

    python scripts/plot_training.py checkpoints/char --html data/training.html
    python scripts/plot_training.py checkpoints/char --compare checkpoints/bpe --html data/both.html
    python scripts/plot_training.py checkpoints/char --text

Reads   log.jsonl of one or more runs (train.py, trainv2.py), also while they run
Writes  with --html a page for a browser: loss, learning rate, gradients and speed, and a slider over the recorded steps
        that shows the model learning to write; with --text (or without either) a plot of the loss in the terminal
Next    open the page; or scripts/inspect_model.py, which opens the trained model
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

import math
from pathlib import Path

from config import CHAR
from model import metrics
from model.monitoring.run_log import read_run
from plumbing.command_line import ScriptParser, add_flags, parse, refuse_no_page
from plumbing.errors import run_script
from plumbing.page import fill_page, without_infinities, write_page
from plumbing.text import plural, shown_path


def main(argv: list[str] | None = None) -> None:
    parser = ScriptParser(__doc__)
    run_help = "folder of a run, or its log [checkpoints/char]"
    parser.add_argument("run", type=Path, nargs="?", default=CHAR.checkpoint_dir, help=run_help)
    parser.add_argument("--compare", type=Path, nargs="+", default=[], metavar="RUN", help="plot these runs as well")
    parser.add_argument("--html", type=Path, metavar="PAGE", help="write the page to this file")
    parser.add_argument("--text", action="store_true", help="plot the loss in the terminal")
    add_flags(parser, CHAR, "debug")
    settings, args = parse(parser, CHAR, argv)
    paths = [args.run, *args.compare]
    refuse_no_page("--html", args.html)
    runs = [read_run(path) for path in paths]
    names = [run["name"] for run in runs]
    for run, path in zip(runs, paths, strict=True):
        if names.count(run["name"]) > 1:
            run["name"] = shown_path(path)

    if args.text or not args.html:
        for run in runs:
            print(f"{run['name']}: loss in nats per token, · in training, o in validation")
            print(plot_loss(run))
            if run["evaluations"]:
                last = run["evaluations"][-1]
                per_byte = metrics.show_bits_per_byte(last["val_bits_per_byte"])
                print(f"  validation at step {last['step']:,}: loss {last['val_loss']:.4f}, {per_byte}")
    if args.html:
        facts = [describe_run(run) for run in runs]
        page = fill_page("plot_training.html", facts, without_infinities({"runs": runs, "ln2": metrics.LN2}))
        write_page(args.html, page, plural(sum(len(run["records"]) for run in runs), "recorded step"))
    elif settings.debug:
        print("Next: add --html data/training.html to see everything as a page.")


def plot_loss(run: dict, width: int = 64, height: int = 16) -> str:
    """The loss over the steps as text, on a logarithmic axis of losses: · for training, o for validation."""
    points = [(step, loss, "·") for step, loss in run["training"]]
    points += [(entry["step"], entry["val_loss"], "o") for entry in run["evaluations"]]
    points = [(step, math.log(loss), mark) for step, loss, mark in points if loss is not None and 0 < loss < math.inf]
    if not points:
        return "  no finite loss to plot"
    low, high = min(y for _, y, _ in points), max(y for _, y, _ in points)
    last_step = max(step for step, _, _ in points) or 1
    rows, lines = [[" "] * width for _ in range(height)], []
    for step, y, mark in points:
        row = round((high - y) / ((high - low) or 1) * (height - 1))
        rows[row][round(step / last_step * (width - 1))] = mark
    for i, row in enumerate(rows):
        loss = math.exp(high - (high - low) * i / (height - 1))
        label = f"{loss:8.3f}" if i % 5 == 0 else " " * 8
        lines.append(f"  {label} │{''.join(row)}".rstrip())
    return "\n".join([*lines, " " * 11 + "└" + "─" * width, f"{'step 0':>17}{last_step:>{width - 6},}"])


def describe_run(run: dict) -> str:
    steps = max(entry["step"] for entry in run["lines"] + run["evaluations"])
    per_byte = [e["val_bits_per_byte"] for e in run["evaluations"] if e["val_bits_per_byte"] is not None]
    best = metrics.show_bits_per_byte(min(per_byte, default=None))
    return f"{run['name']}: {plural(steps, 'step')}, best validation {best}."


if __name__ == "__main__":
    run_script(main)
