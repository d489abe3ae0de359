"""Checkpoints: everything that a run needs to resume exactly, in one file per saved step; and the folder they are in.

    checkpoints/char/step_00000250.pt    the checkpoint of step 250
    checkpoints/char/log.jsonl           the run's figures, one JSON object per line (model/monitoring/log.py)
    checkpoints/char/training.lock       locked while a training uses the folder

A checkpoint is a dict that safe_load.py writes and reads:

    format_version   int       1
    step             int       training steps done; the file's name has the same number
    settings         dict      the run's settings, str, int, float or bool; config.Model and max_steps among them
    sources          dict      SHA-256 of "tokenizer", "training data", "validation data", and with --init-from of its
                               weights, as "--init-from folder"
    device           str       "cpu" or "cuda"
    dtype            str       precision of the matrix products: "float32" or "bfloat16"
    compiled         bool      whether the step was compiled
    in_c             bool      whether layers were computed by by_hand.c; missing in old files, which means no
    processes        int       how many processes trained together; missing in old files, which means 1
    model            dict      the state dict of the GPT
    tokenizer        dict      as in a model file (model/storage/model_file.py); missing in old files
    optimizer        dict      mean (all weights), square (all but the hidden matrices), steps (0-dim), all fp32
    rng              Tensor    state of torch's random number generator on the CPU
    cuda_rng         Tensor    the same on the GPU, where the run used one

The architecture is config.Model's settings and the vocabulary size, which is the number of rows of the embedding.
"""

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from config import BPE, CHAR, MODEL_NAME, Model
from model.gpt import GPT
from model.storage.checks import FORMAT_VERSION, check_tensors, is_integer, load_versioned, meta_model, require
from model.storage.safe_load import save
from model.tokenization.tokenizer import BareIds, Tokenizer, load_tokenizer
from plumbing.errors import UserError
from plumbing.files import TEMPORARY, explaining_disk_errors, make_folder, open_locked, rename
from plumbing.settings import field_names, values_of
from plumbing.text import shown_path

CHECKPOINT = r"step_\d{8,}\.pt"
# The names of the files of a run, finished or not; earlier versions put a process id into temporary ones.
WRITTEN = rf"({CHECKPOINT}|log\.jsonl|{re.escape(MODEL_NAME)})({TEMPORARY}|\.\d+\.tmp)?"
LOCK = "training.lock"


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.pt"


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first, damaged ones included; no copies that somebody made under other names."""
    found = [path for path in folder.glob("step_*.pt") if re.fullmatch(CHECKPOINT, path.name)]
    return sorted(found, key=step_in_name, reverse=True)


def step_in_name(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def save_checkpoint(folder: Path, step: int, content: dict, keep: int) -> Path:
    """Write the checkpoint of a step, read it back, and only then delete all but the `keep` newest. `content` is what
    the table above lists, without format_version and step. Raises OSError."""
    path = checkpoint_path(folder, step)
    save(path, {"format_version": FORMAT_VERSION, "step": step, **content})
    try:
        load_checkpoint(path)
    except ValueError as error:
        raise OSError(
            f"{shown_path(path)} was written but cannot be read back: {error}. Check the disk; the earlier checkpoints "
            "are still there."
        ) from None
    # Files of later steps are damaged ones that this run resumed behind: they do not count as kept.
    for old in [file for file in checkpoint_files(folder) if step_in_name(file) <= step][keep:]:
        old.unlink()
    return path


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint and check all of it. Raises ValueError with a reason."""
    content = load_versioned(path)
    check_checkpoint(content)
    if content["step"] != step_in_name(path):
        raise ValueError(f"it is the checkpoint of step {content['step']}")
    return content


def check_checkpoint(content: dict) -> dict:
    """Check the content of a checkpoint. Returns the architecture of its model. Raises ValueError with a reason."""
    if not is_integer(require(content, "step", int), 0):
        raise ValueError("its step is not a whole number")
    settings = require(content, "settings", dict)
    if not all(isinstance(value, str | int | float) for value in settings.values()):
        raise ValueError("one of its settings is neither text nor a number")
    if not is_integer(settings.get("max_steps"), 1):
        raise ValueError("its settings have no max_steps")
    sources = require(content, "sources", dict)
    for name in ("tokenizer", "training data", "validation data", *sources):
        if not isinstance(sources.get(name), str):
            raise ValueError(f"it has no checksum of its {name}")
    for name, expected_type in {"device": str, "dtype": str, "compiled": bool}.items():
        require(content, name, expected_type)
    if "in_c" in content:
        require(content, "in_c", bool)
    if "tokenizer" in content:
        require(require(content, "tokenizer", dict), "json", str)
    return check_state(content)


def check_state(content: dict) -> dict:
    """Check the tensors of a checkpoint against the architecture in its settings, and return it. Raises ValueError."""
    settings, weights = content["settings"], require(content, "model", dict)
    embedding = require(weights, "embedding.weight", Tensor)
    vocab_size = len(embedding) if embedding.dim() == 2 else 0  # 0 is refused
    saved = {name: settings[name] for name in field_names(Model) if name in settings}  # newer ones have their default
    model = meta_model({"vocab_size": vocab_size, **values_of(CHAR, Model), **saved}, weights)
    check_tensors(weights, model.state_dict())
    check_tensors(require(content, "optimizer", dict), optimizer_shapes(model))
    check_tensors({"rng": require(content, "rng", Tensor)}, {"rng": torch.get_rng_state()})
    try:
        torch.Generator().set_state(content["rng"])
    except RuntimeError:
        raise ValueError("its rng is not the state of a random number generator") from None
    if "cuda_rng" in content:
        cuda_rng = require(content, "cuda_rng", Tensor)  # a seed and an offset, a multiple of 4, of 8 bytes each
        if cuda_rng.dtype != torch.uint8 or cuda_rng.shape != (16,) or cuda_rng[8] % 4:
            raise ValueError("its cuda_rng is not the state of a random number generator")
    return model.architecture


def as_model(content: dict) -> dict:
    """The content of a checkpoint as that of a model file. Raises ValueError with a reason."""
    architecture = check_checkpoint(content)
    training = {"steps": content["step"], "settings": content["settings"]}
    if (stored := content.get("tokenizer")) is None:  # an old one, which names its tokenizer only by its checksum
        wanted = content["sources"]["tokenizer"]
        files = [path for path in (CHAR.tokenizer_file, BPE.tokenizer_file) if path.is_file()]
        known = BareIds(architecture["vocab_size"]), *map(load_tokenizer, files)
        found = next((tokenizer for tokenizer in known if tokenizer.is_named(wanted)), None)
        if found is None:
            raise ValueError("it is a checkpoint without its tokenizer. The run writes its model when it resumes")
        stored = stored_tokenizer(found)
    return {"architecture": architecture, "weights": content["model"], "tokenizer": stored, "training": training}


def stored_tokenizer(tokenizer: Tokenizer | BareIds) -> dict:
    """A tokenizer as checkpoints and model files hold it."""
    return {"kind": tokenizer.kind, "json": tokenizer.json_text, "sha256": tokenizer.sha256}


def optimizer_shapes(model: GPT) -> dict[str, Tensor]:
    """What the optimizer's state_dict() holds for this model, as tensors without numbers: both moving means, of the
    gradients for every weight and of their squares for AdamW's, and the number of steps."""
    total = sum(weight.numel() for weight in model.parameters())
    hidden = sum(weight.numel() for weight, _ in model.hidden_matrices())
    sizes = {"mean": (total,), "square": (total - hidden,), "steps": ()}
    return {name: torch.empty(size, device="meta") for name, size in sizes.items()}


def newest_checkpoint(folder: Path) -> tuple[Path | None, dict | None, list[str]]:
    """The newest undamaged checkpoint: (path, content, a message for each newer one that cannot be used). Path and
    content are None if there is none. Raises UserError for one that may be sound and cannot be read: no earlier one,
    and no new run, takes its place."""
    problems = []
    try:
        with os.scandir(folder) as entries:  # glob() finds nothing in a folder that it may not read
            next(entries, None)
    except FileNotFoundError:
        return None, None, []
    except OSError as error:
        raise UserError(f"{shown_path(folder)} cannot be read: {error.strerror}. Make it readable first.") from None
    for path in checkpoint_files(folder):
        try:
            return path, load_checkpoint(path), problems
        except ValueError as error:
            problems.append(f"{shown_path(path)} cannot be used: {error}")
        except OSError as error:
            raise UserError(
                f"{shown_path(path)} cannot be read: {error.strerror}. It may be sound, so nothing was started in its "
                "place. Make it readable, and give the same command again."
            ) from None
    return None, None, problems


def belongs_to_run(path: Path) -> bool:
    """Whether training wrote this file of a run's folder, to judge by its name."""
    return path.is_file() and re.fullmatch(WRITTEN, path.name) is not None


@contextmanager
def only_training_in(folder: Path) -> Iterator[ExitStack]:
    """Hold the lock of a run's folder, so that no second training writes there, and delete what a killed one left.
    Yields what holds the lock, for move_aside(). The lock is on a file in the folder, so whatever path leads there,
    leads to the same lock. The file is never deleted: the operating system releases the lock when the process ends,
    however it ends. Raises UserError if another process holds it."""
    with ExitStack() as lock:
        lock.enter_context(locked(folder))
        for unfinished in folder.glob("*.tmp"):  # nobody else writes here while we hold the lock
            if belongs_to_run(unfinished):
                unfinished.unlink()
        yield lock


def locked(folder: Path) -> BinaryIO:
    """The locked file of a run's folder."""
    make_folder(folder)
    with explaining_disk_errors(folder):
        lock = open_locked(folder / LOCK)
    if lock is None:
        raise UserError(
            f"Another training is using {shown_path(folder)}. Wait until it ends, stop it, "
            "or give this one another --checkpoint-dir."
        )
    return lock


def move_aside(folder: Path, lock: ExitStack) -> None:
    """Rename the folder of an earlier run, with its lock, so that a new run starts with an empty folder and the lock of
    that one. Raises UserError if the folder contains anything else."""
    files = [path for path in folder.iterdir() if path.name != LOCK]
    if not files:
        return
    if foreign := sorted(path.name for path in files if not belongs_to_run(path)):
        raise UserError(
            f"{shown_path(folder)} contains {foreign[0]}, which is not part of a run, so --fresh does not move the "
            "folder. Move that file elsewhere, or give another --checkpoint-dir."
        )
    number = 1
    while (aside := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    if os.name != "posix":
        lock.close()  # Windows renames no folder with an open file
    try:
        rename(folder, aside)
    except OSError as error:  # the folder above cannot be written to, or this is a disk of its own
        reason = error.strerror.lower()
        raise UserError(
            f"--fresh cannot rename {shown_path(folder)} to {aside.name}: {reason}. Give another --checkpoint-dir."
        ) from None
    lock.enter_context(locked(folder))
    print(f"Moved the earlier run to {shown_path(aside)}. Delete it when you no longer need it.")
