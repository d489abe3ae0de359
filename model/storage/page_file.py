"""A model for the page that scripts/export_html.py writes: what scripts/pages/gpt.js reads.

The weights are one block of bytes, little-endian, tensor after tensor in the order of the state dict; a list says which
tensor is where:

    {"name": "head.weight", "dtype": "float16", "shape": [4096, 128], "offset": 1048576}

Matrices are in the precision that was asked for, the weights of norms always in float32: they are few. An int8 matrix
has a float32 scale for each row before its rows; a weight is its integer times the scale of its row. Each tensor starts
at a multiple of 4.
"""

import json

import numpy as np

from model.gpt import GPT
from model.tokenization.tokenizer import BareIds, Tokenizer
from plumbing.errors import UserError

LARGEST_INT8 = 127


def page_model(
    model: GPT, tokenizer: Tokenizer | BareIds, training: dict, precision: str = "float16"
) -> tuple[dict, bytes]:
    """What the page reads: (a description that is ready for JSON, the bytes of the weights). Raises UserError if a
    weight is too large for the precision."""
    tensors, parts, offset = [], [], 0
    for name, weight in stored_weights(model).items():
        dtype = precision if weight.ndim > 1 else "float32"
        data = to_bytes(weight, dtype)
        tensors.append({"name": name, "dtype": dtype, "shape": weight.shape, "offset": offset})
        parts.append(data + bytes(-len(data) % 4))
        offset += len(parts[-1])
    weights = b"".join(parts)
    description = {
        "architecture": model.architecture,
        "precision": precision,
        "tensors": tensors,
        "bytes": len(weights),
        "kind": tokenizer.kind,
        "tokenizer": None if tokenizer.kind == "none" else json.loads(tokenizer.json_text),
        "parameters": model.parameter_counts(),
        "training": training,
    }
    return description, weights


def stored_weights(model: GPT) -> dict[str, np.ndarray]:
    """The weights by name; a head that is tied to the embedding is left out."""
    weights = {name: weight.detach().float().cpu().numpy() for name, weight in model.state_dict().items()}
    if model.architecture["tie_embeddings"]:
        del weights["head.weight"]
    return weights


def to_bytes(weight: np.ndarray, dtype: str) -> bytes:
    if dtype == "int8":
        scales = row_scales(weight)
        return scales.astype("<f4").tobytes() + np.rint(weight / scales).astype(np.int8).tobytes()
    with np.errstate(over="ignore"):
        data = weight.astype(np.dtype(dtype).newbyteorder("<"))
    if not np.isfinite(data).all():
        raise UserError(
            f"The model has weights that are not numbers, or too large for {dtype}. "
            + ("Try --precision float32." if dtype != "float32" else "Train it again with a lower --learning-rate.")
        )
    return data.tobytes()


def row_scales(weight: np.ndarray) -> np.ndarray:
    """The scale of each row of a matrix, (rows, 1), with which its largest weight becomes 127."""
    return np.maximum(np.abs(weight).max(axis=1, keepdims=True), 1e-30).astype(np.float32) / np.float32(LARGEST_INT8)
