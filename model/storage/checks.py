"""Checks on the content of a checkpoint or model file: names, types, sizes and shapes, before a model is built from it.

All of them raise ValueError with a reason, such as "head.weight is missing", that goes after "... cannot be used: ".
"""

from pathlib import Path

import torch
from torch import Tensor

from dataset import MAX_VOCAB_SIZE
from model.gpt import GPT
from model.storage.safe_load import load

FORMAT_VERSION = 1

# The largest architecture: far above what these scripts train, far below what would fill a laptop's memory.
LARGEST = {"vocab_size": MAX_VOCAB_SIZE, "block_size": 65_536, "n_layer": 1_000, "n_head": 65_536, "n_embd": 65_536}
MAX_CACHE = 2**27  # n_layer * block_size * n_embd; the KV cache holds twice as many numbers, 1 GiB in fp32


def check_architecture(architecture: dict) -> None:
    """Refuse an architecture that no model can have, or one that is too large, before anything is allocated."""
    a = architecture
    for name, largest in LARGEST.items():
        if not is_integer(a.get(name), 1) or a[name] > largest:
            raise ValueError(f"{name} must be a whole number from 1 to {largest:,}")
    if a["n_layer"] * a["block_size"] * a["n_embd"] > MAX_CACHE:
        raise ValueError(f"n_layer * block_size * n_embd must be at most {MAX_CACHE:,}")
    if not (is_number(a.get("rotary_base")) and 1e-30 <= a["rotary_base"] <= 1e30):  # else its powers have no float
        raise ValueError("rotary_base must be a number from 1e-30 to 1e30")
    if not (is_number(a.get("dropout")) and 0 <= a["dropout"] < 1):
        raise ValueError("dropout must be at least 0 and below 1")
    if not isinstance(a.get("tie_embeddings"), bool):
        raise ValueError("tie_embeddings must be true or false")


def is_integer(value: object, minimum: int) -> bool:
    """Whether the value is an int (not a bool) of at least `minimum`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def is_number(value: object) -> bool:
    """Whether the value is a finite int or float (not a bool)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def check_summary(training: dict) -> None:
    """Refuse a summary of a training whose figures are no figures. It may lack any of them but the number of steps, as
    that of bare ids or of older files."""
    data = training.get("data", {})
    if not isinstance(data, dict):
        raise ValueError("its summary of the training data is none")
    figures = {name: training.get(name) for name in ("tokens_seen", "val_loss", "val_bits_per_byte")}
    figures |= {name: data.get(name) for name in ("documents", "utf8_bytes")}
    texts = {"source": data.get("source"), "init_from": training.get("init_from")}
    if not is_integer(training.get("steps"), 0) or not is_number(training["steps"]):
        raise ValueError("its summary of the training has no number of steps")
    for name, value in figures.items():
        if value is not None and not is_number(value) and value == value:  # NaN is unknown
            raise ValueError(f"its summary of the training has a {name} that is no number")
    for name, value in texts.items():
        if not isinstance(value, str | None):
            raise ValueError(f"its summary of the training has a {name} that is no text")


def require(content: dict, name: str, expected_type: type) -> object:
    """content[name], which must be there and of the expected type."""
    if not isinstance(content.get(name), expected_type):
        raise ValueError(f"its {name} is missing or not of type {expected_type.__name__}")
    return content[name]


def check_tensors(tensors: dict, expected: dict[str, Tensor]) -> None:
    """Refuse tensors that differ from the expected ones in name, type or shape, or that are not finite."""
    for name in {**expected, **tensors}:
        if name not in tensors:
            raise ValueError(f"{name} is missing")
        tensor = tensors[name]
        if name not in expected or not isinstance(tensor, Tensor):
            raise ValueError(f"{name[:60]!r} is not a tensor of this model")
        if (tensor.dtype, tensor.shape) != (expected[name].dtype, expected[name].shape):
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} and type {tensor.dtype}; "
                f"this architecture needs {tuple(expected[name].shape)} and {expected[name].dtype}"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} contains a number that is not finite")


def meta_model(architecture: dict, weights: dict) -> GPT:
    """A model with shapes but no numbers, on torch's meta device, to compare `weights` with. The architecture must be
    possible, with at least one weight per layer: a small file cannot ask for a thousand."""
    check_architecture(architecture)
    if len(weights) < architecture["n_layer"]:
        raise ValueError(f"it has {len(weights)} tensors, too few for {architecture['n_layer']} layers")
    with torch.device("meta"):
        return GPT(**architecture)


def load_versioned(path: Path) -> dict:
    """The content of a .pt file of FORMAT_VERSION."""
    content = load(path)
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"it is not a file of TinyLittleGPT's format {FORMAT_VERSION}")
    return content
