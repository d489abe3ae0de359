"""See how a training run went: its curves, and what the model wrote on the way.

    python scripts/plot_training.py checkpoints/char --html data/training.html
    python scripts/plot_training.py checkpoints/char --compare checkpoints/bpe --html data/both.html
    python scripts/plot_training.py checkpoints/char --text

Reads   log.jsonl of one or more runs (train.py, trainv2.py), also while they run
Writes  with --html a page for a browser: loss, learning rate, gradients and speed, and a slider over the recorded steps
        that shows the model learning to write; with --text (or without either) a plot of the loss in the terminal; with
        --tensorboard event files for TensorBoard, if that package is installed
Next    open the page; or scripts/inspect_model.py, which opens the trained model
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

import math
from pathlib import Path

import numpy as np

from config import CHAR
from model import metrics
from plumbing.command_line import ScriptParser, add_flags, parse
from plumbing.errors import UsageError, UserError, run_script
from plumbing.page import fill_page, write_page
from plumbing.text import plural, printable, quoted_path, shown_path

SHOWN_STEPS = 800  # points of a loss curve: half of them evenly spread, half on a logarithmic axis
TRAINING = ("loss", "bits_per_byte", "learning_rate", "gradient_norm", "tokens_per_second")  # of a "loss" line
VALIDATION = ("val_loss", "val_bits_per_byte")  # of a "val_loss" line


def main(argv: list[str] | None = None) -> None:
    parser = ScriptParser(__doc__)
    run_help = "folder of a run, or its log [checkpoints/char]"
    parser.add_argument("run", type=Path, nargs="?", default=CHAR.checkpoint_dir, help=run_help)
    parser.add_argument("--compare", type=Path, nargs="+", default=[], metavar="RUN", help="plot these runs as well")
    parser.add_argument("--html", type=Path, metavar="PAGE", help="write the page to this file")
    parser.add_argument("--text", action="store_true", help="plot the loss in the terminal")
    parser.add_argument("--tensorboard", type=Path, metavar="DIR", help="write event files for TensorBoard there")
    add_flags(parser, CHAR, "debug")
    settings, args = parse(parser, CHAR, argv)
    paths = [args.run, *args.compare]
    runs = [read_run(path) for path in paths]
    names = [run["name"] for run in runs]
    for run, path in zip(runs, paths, strict=True):
        if names.count(run["name"]) > 1:
            run["name"] = shown_path(path)
    if args.html and args.html.suffix == ".jsonl":
        raise UsageError(f"--html would write a page into {shown_path(args.html)}. Name another file.")

    if args.text or not (args.html or args.tensorboard):
        for run in runs:
            print(f"{run['name']}: loss in nats per token, · in training, o in validation")
            print(plot_loss(run))
            if run["evaluations"]:
                last = run["evaluations"][-1]
                per_byte = metrics.show_bits_per_byte(last["val_bits_per_byte"])
                print(f"  validation at step {last['step']:,}: loss {last['val_loss']:.4f}, {per_byte}")
    if args.tensorboard:
        count = sum(write_tensorboard(run, args.tensorboard) for run in runs)
        print(f"{count:,} figures in {shown_path(args.tensorboard)}")
        print(f"Next: tensorboard --logdir {quoted_path(args.tensorboard)}")
    if args.html:
        facts = [describe_run(run) for run in runs]
        page = fill_page("plot_training.html", facts, without_infinities({"runs": runs, "ln2": metrics.LN2}))
        write_page(args.html, page, plural(sum(len(run["records"]) for run in runs), "recorded step"))
    elif settings.debug and not args.tensorboard:
        print("Next: add --html data/training.html to see everything as a page.")


def read_run(path: Path) -> dict:
    """A run from its log: its name, what it says about itself ("about"), and its training lines, evaluations, warnings
    and records, each in the order of their steps. Damaged lines, as the last one can be after a kill, are left
    out, and their number is printed."""
    from model.monitoring.log import read_line  # imports torch

    path = path / "log.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"There is no log {shown_path(path)}. Name the folder of a run, such as checkpoints/bpe.")
    about, warnings, lines, evaluations, records, losses, damaged = {}, [], {}, {}, {}, {}, 0
    for text in path.read_bytes().split(b"\n"):
        if (entry := read_line(text)) is None:
            damaged += text != b""
            continue
        step, about = entry["step"], entry.get("about", about)
        if own := entry.get("losses", [entry["loss"]] if "loss" in entry else []):  # of the steps up to this one
            losses |= zip(range(step - len(own) + 1, step + 1), own, strict=True)
        # A run that was killed and resumed may log a step twice. The later entry counts.
        if "loss" in entry:
            lines[step] = {name: entry.get(name) for name in ("step", *TRAINING)}
        if "val_loss" in entry:
            evaluations[step] = {name: entry.get(name) for name in ("step", *VALIDATION)}
        if "record" in entry:
            records[step] = {"step": step, **entry["record"]}
        if "warning" in entry:
            warnings.append({"step": step, "text": entry["warning"]})
    if damaged:
        print(f"{shown_path(path)}: left out {plural(damaged, 'damaged line')}")
    if not lines and not evaluations:
        raise UserError(f"{shown_path(path)} has no figures yet. Wait for the first line of the training.")
    name = printable(path.resolve().parent.name)  # resolved, because the name of "." is empty
    run = {"name": name, "about": about, "warnings": warnings, "training": smoothed(losses)}
    for name, entries in (("lines", lines), ("evaluations", evaluations), ("records", records)):
        run[name] = [entries[step] for step in sorted(entries)]
    return run


def smoothed(losses: dict[int, float | None]) -> list[tuple[int, float]]:
    """The curve of the losses by step, [(step, loss), ...]: one batch is easier than the next, so each point is the
    mean over the steps within 5 % of its own. The first steps, where the loss falls fastest, are as they were."""
    steps = np.array([step for step in sorted(losses) if losses[step] is not None and math.isfinite(losses[step])])
    if not len(steps):
        return []
    sums = np.append(0, np.cumsum([losses[step] for step in steps.tolist()]))
    last = int(steps[-1])
    shown = np.union1d(np.linspace(1, last, SHOWN_STEPS // 2), np.geomspace(1, max(2, last), SHOWN_STEPS // 2)).round()
    shown = np.union1d(shown[shown <= last].astype(int), last) if last > SHOWN_STEPS else np.arange(1, last + 1)
    shown = shown[np.isin(shown, steps)]
    first, after = (
        np.searchsorted(steps, shown - shown // 20),
        np.searchsorted(steps, shown + shown // 20, side="right"),
    )
    means = (sums[after] - sums[first]) / (after - first)
    return [(step, round(mean, 5)) for step, mean in zip(shown.tolist(), means.tolist(), strict=True)]


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


def write_tensorboard(run: dict, folder: Path) -> int:
    """Write the figures of a run as event files. Returns their number."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs the package tensorboard: pip install tensorboard.") from None
    count = 0
    with SummaryWriter(str(folder / run["name"])) as writer:
        for entry in run["lines"] + run["evaluations"]:
            for name, value in entry.items():
                if name != "step" and value is not None:
                    group = "validation" if name in VALIDATION else "train"
                    writer.add_scalar(f"{group}/{name.removeprefix('val_')}", value, entry["step"])
                    count += 1
        for record in run["records"]:
            writer.add_text("sample", record["sample"], record["step"])
            for group in ("gradient_norm", "update_to_weight", "kind_bits"):
                for name, value in record.get(group, {}).items():
                    writer.add_scalar(f"{group}/{name}", value, record["step"])
                    count += 1
    return count


def describe_run(run: dict) -> str:
    steps = max(entry["step"] for entry in run["lines"] + run["evaluations"])
    per_byte = [e["val_bits_per_byte"] for e in run["evaluations"] if e["val_bits_per_byte"] is not None]
    return f"{run['name']}: {steps:,} steps, best validation {metrics.show_bits_per_byte(min(per_byte, default=None))}."


def without_infinities(value):
    """The same value with None for infinite numbers and NaN, which JSON cannot express."""
    if isinstance(value, dict):
        return {key: without_infinities(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_infinities(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    run_script(main)
