"""A whole run, read from its log.jsonl: what the pages show of it."""

import math
from pathlib import Path

import numpy as np

from plumbing.errors import UserError
from plumbing.text import plural, printable, shown_path

SHOWN_STEPS = 800  # points of a loss curve: half of them evenly spread, half on a logarithmic axis
TRAINING = ("loss", "bits_per_byte", "learning_rate", "gradient_norm", "tokens_per_second")  # of a "loss" line
VALIDATION = ("val_loss", "val_bits_per_byte")  # of a "val_loss" line


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
