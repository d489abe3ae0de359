"""What a file of ours must hold: names, types and shapes, compared with the architecture that the file states."""

from pathlib import Path

import torch
from torch import Tensor

from dataset import MAX_VOCAB_SIZE
from model.gpt import GPT
from model.storage.safe_load import load

FORMAT_VERSION = 1


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


def field(content: dict, name: str, kind: type | tuple) -> object:
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
