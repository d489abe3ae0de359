"""Files of a training run: checkpoints to resume from, and the finished model to generate from.

checkpoints/char/step_00000250.pt    all that an exact resume needs, in one file
checkpoints/char/log.jsonl           the figures of the run, one JSON object a line
gpt_model.pt                         weights, architecture, tokenizer and a summary: all that generation needs

The .pt files hold tensors and plain values. They are written whole or not at all, checked against their checksums, and
read with weights_only=True, which runs no code from the file.
"""

import contextlib
import json
import math
import zipfile
from pathlib import Path

import torch

from config import UserError, shown_path
from dataset import whole_file
from model.gpt import GPT
from model.tokenizer import Tokenizer

FORMAT_VERSION = 1


def save(path: Path, content: dict) -> None:
    """Write a dict of tensors and plain values. Raises OSError where the disk does not take it."""
    with whole_file(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's way to report a write that failed, a full disk for example
            raise OSError(f"could not write {shown_path(path)} (is the disk full?): {error}") from None


def load(path: Path) -> dict:
    """Read what `save` wrote, onto the CPU. Raises ValueError with a reason for anything else."""
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch.load compares no checksums: flipped bits would load silently
                raise ValueError(f"damaged at {damaged}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a truncated or foreign file raises whatever its first wrong byte leads to
        raise ValueError(str(error).split("\n")[0] or type(error).__name__) from None
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"not a file of TinyLittleGPT's format {FORMAT_VERSION}")
    return content


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
        load(path)
    except ValueError as error:
        raise OSError(f"{shown_path(path)} was written and cannot be read back: {error}") from None
    # Files of later steps are damaged ones that this run has fallen back from: they are not counted as kept.
    for old in [file for file in checkpoints(folder) if file.name <= path.name][keep:]:
        old.unlink()
    return path


def newest_checkpoint(folder: Path) -> tuple[Path | None, dict | None, list[str]]:
    """The newest checkpoint that is whole: (path, content, a line about each newer one that is not).

    (None, None, lines) where there is none.
    """
    problems = []
    for path in checkpoints(folder):
        try:
            return path, load(path), problems
        except ValueError as error:
            problems.append(f"{shown_path(path)} cannot be used: {error}")
    return None, None, problems


# --- the folder of a run ----------------------------------------------------------------------------------------------


def move_aside(folder: Path) -> None:
    """Give the folder of an earlier run another name, so that a fresh run finds its place empty."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    number = 1
    while (aside := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    folder.rename(aside)
    print(f"The earlier run was moved to {shown_path(aside)}. Delete it when you no longer need it.")


class Log:
    """log.jsonl: one JSON object a line. A run resumed at `step` takes out what came after that; a new run, whose
    step is None, takes out everything.
    """

    def __init__(self, folder: Path, step: int | None):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "log.jsonl"
        self.evaluations, kept = {}, []  # by step: (validation loss, tokens scored)
        if step is not None and self.path.exists():
            for line in self.path.read_text("utf-8").splitlines():
                with contextlib.suppress(ValueError):  # a line that a kill cut short
                    entry = json.loads(line)
                    if entry["step"] <= step:
                        kept.append(line + "\n")
                        if "val_loss" in entry:
                            self.evaluations[entry["step"]] = (entry["val_loss"], entry.get("val_tokens", math.inf))
        with whole_file(self.path) as file:
            file.write("".join(kept).encode())

    def write(self, **entry) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


# --- the finished model -----------------------------------------------------------------------------------------------


def save_model(path: Path, model: GPT, tokenizer: Tokenizer, training: dict) -> None:
    """Write the model file. `training`: plain values that say how the model came about."""
    save(
        path,
        {
            "format_version": FORMAT_VERSION,
            "kind": "TinyLittleGPT model",
            "architecture": model.architecture,
            "tokenizer": {"kind": tokenizer.kind, "json": tokenizer.json_text, "sha256": tokenizer.sha256},
            "training": training,
            "weights": model.state_dict(),
        },
    )


def load_model(path: Path) -> tuple[GPT, Tokenizer, dict]:
    """Read a model file: (model in eval mode on the CPU, tokenizer, training summary). Raises UserError."""
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"There is no model {shown_path(path)}. Train one with train.py (characters) or trainv2.py (BPE), "
            "or name another file with --model."
        )
    foreign = f"{shown_path(path)} is not a model that train.py or trainv2.py wrote"
    try:
        content = load(path)
        if content.get("kind") != "TinyLittleGPT model":
            raise UserError(f"{foreign}, but a checkpoint or something else. Its run's model is gpt_model.pt.")
        tokenizer = Tokenizer(content["tokenizer"]["json"], f"the tokenizer in {shown_path(path)}")
        model = GPT(**content["architecture"])
        if tokenizer.vocab_size != model.vocab_size or tokenizer.sha256 != content["tokenizer"]["sha256"]:
            raise ValueError("its tokenizer does not belong to its weights")
        model.load_state_dict(content["weights"])
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{foreign}, or it is damaged: {str(error).splitlines()[0]}") from None
    return model.eval(), tokenizer, content["training"]
