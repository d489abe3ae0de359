"""Files of a training run: checkpoints to resume from, and the finished model to generate from.

checkpoints/char/step_00000250.pt    all that an exact resume needs, in one file
checkpoints/char/log.jsonl           the figures of the run, one JSON object a line
checkpoints/char.lock                held while a training works in the folder
gpt_model.pt                         weights, architecture, tokenizer and a summary: all that generation needs

How the .pt files are written and read, pt_file.py says. What must stand in them, and that it does, is told here: every
name, type and shape is compared with the architecture that the file states, before anything is built from it.
"""

from pathlib import Path

import torch
from torch import Tensor

from config import Model
from model.storage.checks import FORMAT_VERSION, check_tensors, field, is_whole, load_format, skeleton
from model.storage.safe_load import save
from model.training.optimizer import state_shapes
from plumbing.settings import field_names
from plumbing.text import shown_path

# --- checkpoints ------------------------------------------------------------------------------------------------------


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.pt"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint files of a run, newest first, damaged ones included."""
    return sorted(folder.glob("step_*.pt"), reverse=True)


def save_checkpoint(folder: Path, step: int, content: dict, keep: int) -> Path:
    """Write the checkpoint of a step, read it back, and only then delete all but the `keep` newest."""
    path = checkpoint_path(folder, step)
    save(path, {"format_version": FORMAT_VERSION, "step": step, **content})
    try:
        load_checkpoint(path)
    except ValueError as error:
        raise OSError(f"{shown_path(path)} was written and cannot be read back: {error}") from None
    # Files of later steps are damaged ones that this run has fallen back from: they are not counted as kept.
    for old in [file for file in checkpoints(folder) if file.name <= path.name][keep:]:
        old.unlink()
    return path


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint and check every part of it. Raises ValueError with a reason."""
    content = load_format(path)
    if field(content, "step", int) != int(path.stem[5:]):
        raise ValueError(f"it is the checkpoint of step {content['step']}")
    settings = field(content, "settings", dict)
    if not all(isinstance(value, str | int | float) for value in settings.values()):
        raise ValueError("a setting is no plain value")
    if not is_whole(settings.get("max_steps"), 1):
        raise ValueError("its settings have no max_steps")
    sources = {"tokenizer": None, "training data": None, "validation data": None, **field(content, "sources", dict)}
    if not all(isinstance(sha256, str) for sha256 in sources.values()):
        raise ValueError("it does not say of which data it is")
    field(content, "device", str), field(content, "dtype", str), field(content, "compiled", bool)

    weights, memory = field(content, "model", dict), field(content, "optimizer", dict)
    embedding = field(weights, "embedding.weight", Tensor)
    architecture = {"vocab_size": sum(embedding.shape[:1]), **{name: settings.get(name) for name in field_names(Model)}}
    model = skeleton(architecture, weights)
    check_tensors(weights, model.state_dict())
    check_tensors(memory, state_shapes(model))
    check_tensors({"rng": content.get("rng")}, {"rng": torch.get_rng_state()})
    if "cuda_rng" in content and field(content, "cuda_rng", Tensor).dtype != torch.uint8:
        raise ValueError("cuda_rng is no state of a generator")
    return content


def newest_checkpoint(folder: Path) -> tuple[Path | None, dict | None, list[str]]:
    """The newest checkpoint that is whole: (path, content, a line about each newer one that is not).

    (None, None, lines) where there is none.
    """
    problems = []
    for path in checkpoints(folder):
        try:
            return path, load_checkpoint(path), problems
        except ValueError as error:
            problems.append(f"{shown_path(path)} cannot be used: {error}")
    return None, None, problems
