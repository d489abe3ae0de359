"""A model as an ONNX file: a graph that computes one token per call. scripts/export_onnx.py writes it.

The graph keeps no state. It takes a token, its position, and the keys and values of the tokens before it. It returns
the logits of the next token, and the keys and values with the new token's added, for the next call:

    token (1,), position (1,) int64; keys, values (L, H, S, D) fp32, zeros at first
        ->  logits (V,) fp32; new_keys, new_values (L, H, S, D) fp32

Notation as in layers.py, with L layers; S is block_size. OneTokenStep computes the block again, in operations that ONNX
can express; tests/scripts/test_export_onnx.py holds it to GPT.forward.
"""

import logging
import warnings

import numpy as np
import torch
from torch import Tensor, nn

from model.gpt import GPT
from model.layers import rotate
from model.storage.huggingface import import_extra
from plumbing.errors import UserError

MAX_WEIGHTS = 2**31 - 2**20  # bytes; an ONNX file is one protocol buffer, which can have at most 2 GiB


class OneTokenStep(nn.Module):
    """GPT.forward for one token, with its KV cache as tensors that go in and come out. A graph cannot express a cache
    that grows, so each step attends to all S positions, and a mask hides those that are still empty."""

    def __init__(self, model: GPT):
        super().__init__()
        self.model = model

    def forward(self, token: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        model, (_, H, S, D) = self.model, keys.shape
        positions = torch.arange(S)
        current, visible = (positions == position)[:, None], positions <= position  # (S, 1), (S)
        cos, sin = model.cos[position], model.sin[position]  # (1, D)
        new_keys, new_values = [], []
        x = model.embedding(token)  # (1, C)
        for layer, block in enumerate(model.blocks):
            a = block.attention
            q, k, v = a.qkv(block.attention_norm(x)).view(3, H, 1, D)
            q, k = rotate(a.query_norm(q), cos, sin), rotate(a.key_norm(k), cos, sin)
            new_keys.append(torch.where(current, k, keys[layer]))  # (H, S, D)
            new_values.append(torch.where(current, v, values[layer]))
            scores = q @ new_keys[-1].transpose(1, 2) / D**0.5  # (H, 1, S)
            weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
            x = x + a.output((weights @ new_values[-1]).view(1, H * D))
            x = x + block.mlp(block.mlp_norm(x))
        return model.head(model.norm(x))[0], torch.stack(new_keys), torch.stack(new_values)


def empty_cache(model: GPT) -> Tensor:
    """Zeros in the shape of the keys, and of the values: (L, H, S, D)."""
    return torch.zeros_like(model.new_cache().store[:, 0, 0])


def to_onnx(model: GPT, metadata: dict[str, str]) -> bytes:
    """The content of an ONNX file. Raises UserError if a package is missing or the model is too large for one file."""
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if size > MAX_WEIGHTS:
        raise UserError(
            f"The weights are {size / 2**30:.1f} GiB, and an ONNX file can hold at most 2 GiB. Nothing was written. "
            "Export a smaller model, or use scripts/export_huggingface.py."
        )
    import_extra("onnxscript", "onnx")  # torch's exporter needs it
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns about torchvision, which nothing here needs
    inputs = torch.tensor([0]), torch.tensor([0]), empty_cache(model), empty_cache(model)
    names = {
        "input_names": ["token", "position", "keys", "values"],
        "output_names": ["logits", "new_keys", "new_values"],
    }
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(OneTokenStep(model).eval(), inputs, **names, dynamo=True, verbose=False)
    program.model.metadata_props.update(metadata)
    return program.model_proto.SerializeToString()


@torch.inference_mode()
def largest_difference(data: bytes, model: GPT) -> float | None:
    """The largest difference between onnxruntime's logits and the model's, over a block of random tokens. None if
    onnxruntime is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    ids = torch.randint(model.vocab_size, (1, model.block_size), generator=torch.Generator().manual_seed(0))
    expected = model(ids)[0].numpy()  # (T, V)
    keys = values = empty_cache(model).numpy()
    largest = 0.0
    for position, token in enumerate(ids[0].tolist()):
        inputs = {"token": np.array([token]), "position": np.array([position]), "keys": keys, "values": values}
        logits, keys, values = session.run(None, inputs)
        largest = np.maximum(largest, np.abs(logits - expected[position]).max())  # NaN stays NaN
    return float(largest)
