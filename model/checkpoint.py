"""Files of a training run: checkpoints to resume from, and the finished model to generate from.

checkpoints/char/step_00000250.pt    all that an exact resume needs, in one file
checkpoints/char/log.jsonl           the figures of the run, one JSON object a line
checkpoints/char.lock                held while a training works in the folder
gpt_model.pt                         weights, architecture, tokenizer and a summary: all that generation needs

How the .pt files are written and read, pt_file.py says. What must stand in them, and that it does, is told here: every
name, type and shape is compared with the architecture that the file states, before anything is built from it.
"""

import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from config import UserError, shown_path
from dataset import MAX_VOCAB_SIZE, hold, saying_what_is_free, whole_file
from model.gpt import ARCHITECTURE, GPT
from model.optimizer import memory_of_shapes
from model.pt_file import load, save
from model.tokenizer import NoTokenizer, Tokenizer

FORMAT_VERSION = 1


# --- what must stand in a file ----------------------------------------------------------------------------------------

# The largest architecture: far above what these scripts train, far below what would eat a laptop's memory.
LARGEST = {"vocab_size": MAX_VOCAB_SIZE, "block_size": 65_536, "n_layer": 1_000, "n_head": 65_536, "n_embd": 65_536}
CACHE_NUMBERS = 2**27  # n_layer * block_size * n_embd: as keys and as values, that is 1 GiB in fp32


def check_architecture(architecture: dict) -> None:
    """Raise ValueError where a number is none that a model can have, or is too large. Before anything is allocated."""
    for name, largest in LARGEST.items():
        if not is_whole(architecture.get(name), 1) or architecture[name] > largest:
            raise ValueError(f"{name} must be a whole number from 1 to {largest:,}")
    a = architecture
    if a["n_layer"] * a["block_size"] * a["n_embd"] > CACHE_NUMBERS:
        raise ValueError(f"n_layer * block_size * n_embd is more than {CACHE_NUMBERS:,}")
    if not (is_number(a.get("rotary_base")) and a["rotary_base"] > 0):
        raise ValueError("rotary_base must be a number above 0")
    if not (is_number(a.get("dropout")) and 0 <= a["dropout"] < 1):
        raise ValueError("dropout must be a number from 0 to below 1")
    if not isinstance(a.get("tie_embeddings"), bool):
        raise ValueError("tie_embeddings must be true or false")


def is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def part(content: dict, name: str, kind: type | tuple) -> object:
    """The part of that name. Raises ValueError where it is missing or of another type."""
    if not isinstance(content.get(name), kind):
        raise ValueError(f"it has no {name}, or one of another type")
    return content[name]


def check_tensors(tensors: dict, expected: dict[str, Tensor]) -> None:
    """Raise ValueError unless both have the same names, types and shapes, and every number is finite."""
    for name in {**expected, **tensors}:
        ours, theirs = expected.get(name), tensors.get(name)
        if ours is None or not isinstance(theirs, Tensor):
            raise ValueError(f"the tensor {name[:60]!r} is {'missing' if theirs is None else 'none of this model'}")
        if (theirs.dtype, theirs.shape) != (ours.dtype, ours.shape):
            raise ValueError(
                f"{name} is {tuple(theirs.shape)} {theirs.dtype}, and this architecture has {tuple(ours.shape)}"
            )
        if not torch.isfinite(theirs).all():
            raise ValueError(f"{name} holds a number that is not finite")


def skeleton(architecture: dict, weights: dict) -> GPT:
    """A model of this architecture that has shapes and no numbers, to compare weights with. Raises ValueError."""
    check_architecture(architecture)
    if len(weights) < architecture["n_layer"]:
        raise ValueError(f"{len(weights)} tensors are too few for {architecture['n_layer']} layers")
    with torch.device("meta"):
        return GPT(**architecture)


def load_format(path: Path) -> dict:
    """The content of a .pt file of this format. Raises ValueError with a reason for anything else."""
    content = load(path)
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
    if part(content, "step", int) != int(path.stem[5:]):
        raise ValueError(f"it is the checkpoint of step {content['step']}")
    settings = part(content, "settings", dict)
    if not all(isinstance(value, str | int | float) for value in settings.values()):
        raise ValueError("a setting is no plain value")
    if not is_whole(settings.get("max_steps"), 1):
        raise ValueError("its settings have no max_steps")
    sources = {"tokenizer": None, "training data": None, "validation data": None, **part(content, "sources", dict)}
    if not all(isinstance(sha256, str) for sha256 in sources.values()):
        raise ValueError("it does not say of which data it is")
    part(content, "device", str), part(content, "dtype", str), part(content, "compiled", bool)

    weights, memory = part(content, "model", dict), part(content, "optimizer", dict)
    embedding = part(weights, "embedding.weight", Tensor)
    architecture = {"vocab_size": sum(embedding.shape[:1]), **{name: settings.get(name) for name in ARCHITECTURE}}
    model = skeleton(architecture, weights)
    check_tensors(weights, model.state_dict())
    check_tensors(memory, memory_of_shapes(model))
    check_tensors({"rng": content.get("rng")}, {"rng": torch.get_rng_state()})
    if "cuda_rng" in content and part(content, "cuda_rng", Tensor).dtype != torch.uint8:
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


# --- the folder of a run ----------------------------------------------------------------------------------------------


def is_of_a_run(path: Path) -> bool:
    """Whether a file of a run's folder is one that a training writes there, whole or unfinished, by its name."""
    return path.is_file() and re.fullmatch(r"(step_\d+\.pt|log\.jsonl)(\.\d+\.tmp)?", path.name) is not None


@contextmanager
def only_training_in(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, so that no second training writes there, and remove what a killed one has left.

    The lock lies beside the folder, which --fresh moves, and stays: the system frees it when its process ends, however
    it ends. Raises UserError where another process holds it.
    """
    folder = folder.absolute()  # "." has no name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{folder.name}.lock", "ab") as lock:
        if not hold(lock):
            raise UserError(
                f"Another training is at work in {shown_path(folder)}. Wait for its end or stop it, "
                "or give this one another --checkpoint-dir."
            )
        for unfinished in folder.glob("*.tmp"):  # under the lock nobody is writing them
            if is_of_a_run(unfinished):
                unfinished.unlink()
        yield


def move_aside(folder: Path) -> None:
    """Give the folder of an earlier run another name, so that a fresh run finds its place empty. Raises UserError for a
    folder that holds anything else."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    if foreign := sorted(path.name for path in folder.iterdir() if not is_of_a_run(path)):
        raise UserError(
            f"{shown_path(folder)} holds {foreign[0]}, which is no part of a run, so --fresh does not move it aside. "
            "Take it out of there, or give another --checkpoint-dir."
        )
    number = 1
    while (aside := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    folder.rename(aside)
    print(f"The earlier run was moved to {shown_path(aside)}. Delete it when you no longer need it.")


class Log:
    """log.jsonl: one JSON object a line. A run resumed at `step` takes out what came after that; a new run, whose
    step is None, takes out everything.

    What is read back carries a checksum, and without one, or with a wrong one, a line is not believed. Where `folder`
    is None, nothing is read or written: for a process that is not the first.
    """

    def __init__(self, folder: Path | None, step: int | None):
        self.evaluations, kept, damaged = {}, [], 0  # by step: (validation loss, tokens scored)
        self.recorded, self.about = set(), None  # steps that have a record, what a run that records says of itself
        self.path = folder and folder / "log.jsonl"
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if step is not None and self.path.exists():
            for line in self.path.read_bytes().split(b"\n"):
                entry = read_line(line)
                if entry is None:
                    damaged += line != b""
                elif entry["step"] <= step:
                    kept.append(line + b"\n")
                    if "val_loss" in entry:
                        self.evaluations[entry["step"]] = (entry["val_loss"], entry["val_tokens"])
                    if "record" in entry:
                        self.recorded.add(entry["step"])
                    self.about = entry.get("about", self.about)
        if damaged:  # a kill cuts one short
            print(f"{shown_path(self.path)}: left out {damaged} line{'s'[: damaged > 1]} not whole")
        with whole_file(self.path) as file:
            file.writelines(kept)

    def write(self, **entry) -> None:
        if self.path is None:
            return
        entry = {name: None if value != value else value for name, value in entry.items()}  # JSON has no NaN
        if READ_BACK & entry.keys():
            entry["crc32"] = checksum(entry)
        with saying_what_is_free(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


READ_BACK = {"val_loss", "about"}  # an entry that has one of these is used when a run goes on


def checksum(entry: dict) -> int:
    """CRC-32 of an entry of the log as its line has it."""
    return zlib.crc32(json.dumps(entry).encode())


def read_line(line: bytes) -> dict | None:
    """The entry in a line of the log, or None where it is damaged."""
    try:
        entry = json.loads(line)
        if not is_whole(entry["step"], 0) or (READ_BACK & entry.keys() and entry.pop("crc32") != checksum(entry)):
            return None
        return entry
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


# --- the finished model -----------------------------------------------------------------------------------------------


def save_model(
    path: Path, model: GPT, tokenizer: Tokenizer, training: dict, weights: dict[str, Tensor] | None = None
) -> None:
    """Write the model file, and read it back. `training`: plain values that say how the model came about. `weights`:
    where the model holds only a part of them, all of them."""
    save(
        path,
        {
            "format_version": FORMAT_VERSION,
            "kind": "TinyLittleGPT model",
            "architecture": model.architecture,
            "tokenizer": {"kind": tokenizer.kind, "json": tokenizer.json_text, "sha256": tokenizer.sha256},
            "training": training,
            "weights": model.state_dict() if weights is None else weights,
        },
    )
    load_model(path)


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
        content = load_format(path)
        if content.get("kind") != "TinyLittleGPT model":
            raise UserError(f"{foreign}, but a checkpoint or something else. Its run's model is gpt_model.pt.")
        weights, architecture = part(content, "weights", dict), part(content, "architecture", dict)
        check_tensors(weights, skeleton(architecture, weights).state_dict())
        text = part(part(content, "tokenizer", dict), "json", str)
        if content["tokenizer"].get("kind") == "none":
            tokenizer = NoTokenizer(architecture["vocab_size"])
        else:
            tokenizer = Tokenizer(text, f"the tokenizer in {shown_path(path)}")
        if (tokenizer.vocab_size, tokenizer.sha256) != (architecture["vocab_size"], content["tokenizer"].get("sha256")):
            raise ValueError("its tokenizer does not belong to its weights")
        training = part(content, "training", dict)
        bits_known = is_number(training.get("val_bits_per_byte")) or tokenizer.kind == "none"
        data_known = isinstance(training.get("data", {}), dict)
        if not (is_whole(training.get("steps"), 0) and bits_known and data_known):
            raise ValueError("its summary of the training is incomplete")
        model = GPT(**architecture)
        model.load_state_dict(weights)
    except (ValueError, TypeError) as error:
        raise UserError(f"{foreign}, or it is damaged: {str(error).splitlines()[0]}") from None
    return model.eval(), tokenizer, training
