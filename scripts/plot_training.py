"""See how a training went: its curves, and what the model wrote on the way.

    python scripts/plot_training.py checkpoints/char --html data/training.html
    python scripts/plot_training.py checkpoints/char --compare checkpoints/bpe --html data/both.html
    python scripts/plot_training.py checkpoints/char --text

Reads   log.jsonl of one or more runs (train.py, trainv2.py), also while they run
Writes  with --html a page for a browser: loss, learning rate, gradients and speed, and a slider over the recorded steps
        that shows the model learning to write; with --text (or without either) the loss as a drawing in the terminal;
        with --tensorboard event files for TensorBoard, where that package is installed
Next    open the page; or scripts/inspect_model.py, which opens the trained model
"""

import argparse
from pathlib import Path

import _root

from config import CHAR, Settings
from plumbing.command_line import add_flags, parse_before_torch
from plumbing.errors import UsageError, UserError, run_script
from plumbing.text import shown_path


def command_line(argv: list[str] | None = None):
    """Returns (settings, arguments)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", type=Path, nargs="?", default=CHAR.checkpoint_dir, help="folder of a run, or its log [checkpoints/char]"
    )
    parser.add_argument("--compare", type=Path, nargs="+", default=[], metavar="RUN", help="lay these runs over it")
    parser.add_argument("--html", type=Path, metavar="PAGE", help="write the page to this file")
    parser.add_argument("--text", action="store_true", help="draw the loss in the terminal")
    parser.add_argument("--tensorboard", type=Path, metavar="DIR", help="write event files for TensorBoard there")
    add_flags(parser, CHAR, "debug")
    return parse_before_torch(parser, CHAR, argv)


if __name__ == "__main__":
    settings, args = command_line()  # before torch, which takes seconds to import

import html
import math

from model import metrics
from model.monitoring.log import read_line
from plumbing.files import whole_file
from plumbing.page import fill, json_in_html

FIGURES = ("loss", "bits_per_byte", "learning_rate", "gradient_norm", "tokens_per_second")  # of a printed line
EVALUATION = ("val_loss", "val_bits_per_byte")


def read_run(path: Path) -> dict:
    """A run from its log: its name, what it says of itself ("about"), and its lines, evaluations, warnings and records,
    each as a list of entries in the order of their steps. A line that is not whole, as the last one of a running
    training can be, is left out."""
    path = path / "log.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"There is no log {shown_path(path)}. Name the folder of a run, such as checkpoints/bpe.")
    about, warnings = {}, []
    by_step = {}  # a training that was killed and goes on may write a step twice: the later one counts
    for line in path.read_bytes().split(b"\n"):
        entry = read_line(line)
        if entry is not None:
            about = entry.get("about", about)
            if "warning" in entry:
                warnings.append({"step": entry["step"], "text": entry["warning"]})
            for kind, mark in (("lines", "loss"), ("evaluations", "val_loss"), ("records", "record")):
                if mark in entry:
                    by_step[kind, entry["step"]] = entry
    entries = [by_step[key] for key in sorted(by_step, key=lambda key: key[1])]
    lines = [entry for entry in entries if "loss" in entry]
    evaluations = [entry for entry in entries if "val_loss" in entry]
    if not lines and not evaluations:
        raise UserError(f"{shown_path(path)} holds no figures yet. Wait for the first line of the training.")
    return {
        "name": path.resolve().parent.name,  # the name of "." is empty
        "about": about,
        "lines": [{name: entry.get(name) for name in ("step", *FIGURES)} for entry in lines],
        "evaluations": [{name: entry.get(name) for name in ("step", *EVALUATION)} for entry in evaluations],
        "warnings": warnings,
        "records": [{"step": entry["step"], **entry["record"]} for entry in entries if "record" in entry],
    }


def finite(value):
    """The same, with None for what is no finite number: JSON has no word for it."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# === the terminal =====================================================================================================


def draw(run: dict, width: int = 64, height: int = 16) -> str:
    """The loss over the steps as a drawing, on a logarithmic axis of losses: dots for training, o for validation."""
    points = [(entry["step"], entry["loss"], "·") for entry in run["lines"]]
    points += [(entry["step"], entry["val_loss"], "o") for entry in run["evaluations"]]
    points = [(step, loss, mark) for step, loss, mark in points if loss is not None and 0 < loss < math.inf]
    if not points:
        return "  no finite loss to draw"
    low, high = (math.log(pick(loss for _, loss, _ in points)) for pick in (min, max))
    last = max(step for step, _, _ in points) or 1
    rows = [[" "] * width for _ in range(height)]
    for step, loss, mark in points:
        row = round((high - math.log(loss)) / ((high - low) or 1) * (height - 1))
        rows[row][round(step / last * (width - 1))] = mark
    labels = [
        f"{math.exp(high - (high - low) * i / (height - 1)):8.3f}" if i % 5 == 0 else " " * 8 for i in range(height)
    ]
    lines = [f"  {label} │{''.join(row)}".rstrip() for label, row in zip(labels, rows, strict=True)]
    return "\n".join([*lines, "  " + " " * 8 + " └" + "─" * width, f"{'step 0':>17}{last:>{width - 6},}"])


# === TensorBoard ======================================================================================================


def write_tensorboard(run: dict, folder: Path) -> int:
    """Write the figures of a run as event files. Returns how many numbers that are."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs the package tensorboard: pip install tensorboard.") from None
    count = 0
    with SummaryWriter(str(folder / run["name"])) as writer:
        for entry in run["lines"] + run["evaluations"]:
            for name, value in entry.items():
                if name != "step" and value is not None:
                    group = "validation" if name in EVALUATION else "train"
                    writer.add_scalar(f"{group}/{name.removeprefix('val_')}", value, entry["step"])
                    count += 1
        for record in run["records"]:
            writer.add_text("sample", record["sample"], record["step"])
            for group in ("gradient_norm", "update_to_weight", "kind_bits"):
                for name, value in record.get(group, {}).items():
                    writer.add_scalar(f"{group}/{name}", value, record["step"])
                    count += 1
    return count


def main(settings: Settings, args) -> None:
    paths = [args.run, *args.compare]
    runs = [read_run(path) for path in paths]
    if args.html and args.html.suffix == ".jsonl":
        raise UsageError(f"--html would write a page into {shown_path(args.html)}. Name another file.")
    for run_, path in zip(runs, paths, strict=True):  # two folders can have the same name
        if sum(other["name"] == run_["name"] for other in runs) > 1:
            run_["name"] = shown_path(path)

    if args.text or not (args.html or args.tensorboard):
        for run_ in runs:
            print(f"{run_['name']}: loss in nats a token, · in training, o in validation")
            print(draw(run_))
            if run_["evaluations"]:
                last = run_["evaluations"][-1]
                print(
                    f"  validation at step {last['step']:,}: loss {last['val_loss']:.4f}, "
                    f"{metrics.show_bits_per_byte(last['val_bits_per_byte'])}"
                )
    if args.tensorboard:
        count = sum(write_tensorboard(run_, args.tensorboard) for run_ in runs)
        print(f"{count:,} figures in {shown_path(args.tensorboard)}. Next: tensorboard --logdir {args.tensorboard}")
    if args.html:
        facts = []
        for run_ in runs:
            steps = max(entry["step"] for entry in run_["lines"] + run_["evaluations"])
            figures = [e["val_bits_per_byte"] for e in run_["evaluations"] if e["val_bits_per_byte"] is not None]
            best = metrics.show_bits_per_byte(min(figures, default=None))
            facts.append(f"{run_['name']}: {steps:,} steps, best validation {best}.")
        page = fill(
            Path(__file__).parent / "pages" / "plot_training.html",
            facts="".join(f"<p>{html.escape(fact)}</p>" for fact in facts),
            data=json_in_html(finite({"runs": runs, "ln2": metrics.LN2})),
        )
        with whole_file(args.html) as file:
            size = file.write(page.encode(errors="backslashreplace"))
        records = sum(len(run_["records"]) for run_ in runs)
        print(f"{shown_path(args.html)}: {records} recorded moments, {size / 1e6:.2f} MB")
        print(f"Next: open {shown_path(args.html)} in a browser; it needs no network.")
    elif settings.debug and not args.tensorboard:
        print("Next: the same as a page, and all of it: add --html data/training.html")


if __name__ == "__main__":
    run_script(lambda: main(settings, args))
