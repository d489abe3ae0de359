"""What tests ask of a training run: its log, its checkpoints, whether two are equal to the bit."""

import json
import os
from pathlib import Path

import torch

from config import Model, Training
from model.training.command_line import FILES
from plumbing.settings import field_names


def same(a, b):
    """Whether two nested structures of tensors and plain values are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def log_of(settings):
    return [json.loads(line) for line in (settings.checkpoint_dir / "log.jsonl").read_text("utf-8").splitlines()]


def steps_of(settings):
    return sorted(path.name for path in settings.checkpoint_dir.glob("step_*.pt"))


def interrupt_after(settings, step):
    """Leave the files as a kill right after the checkpoint of `step` leaves them, but for later lines in the log."""
    for path in settings.checkpoint_dir.glob("step_*.pt"):
        if int(path.stem[5:]) > step:
            path.unlink()
    settings.model_file.unlink(missing_ok=True)


def flags(settings):
    """The command line that gives train.py these settings."""
    line = []
    for name in (*FILES.split(), *field_names(Model), *field_names(Training)):
        value, flag = getattr(settings, name), "--" + name.replace("_", "-")
        if isinstance(value, bool):
            line += [flag if value else flag.replace("--", "--no-", 1)]
        else:
            line += [flag, str(value)]
    return line


def folder_of_all_workers(tmp_path_factory, name: str) -> Path:
    """A folder that all workers of this run of the tests share: who makes something there takes a lock for it."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    shared.mkdir(exist_ok=True)
    return shared
