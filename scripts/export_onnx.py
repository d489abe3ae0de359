"""Take a trained model to ONNX, which runs in browsers, phones and programs of other languages: one token a call.

    python scripts/export_onnx.py --output data/tiny.onnx

Reads   gpt_model.pt (train.py, trainv2.py)
Writes  one file: a graph of the step, the weights, and the tokenizer's JSON among its metadata
Next    onnxruntime.InferenceSession("data/tiny.onnx"), as the README shows

The graph has no memory of its own. It takes a token, its position and the keys and values of the tokens before it, and
gives the logits of the next token and the keys and values with this one among them, to be handed in at the next call.

    token (1,), position (1,) int64; keys, values (L, H, S, D) fp32, S being block_size, zeros at first
        ->  logits (V,) fp32; new_keys, new_values (L, H, S, D) fp32

torch's own exporter writes it. Needs onnx, onnxscript and onnxruntime: uv run --extra onnx, or pip install them.
"""

import argparse
from pathlib import Path

import _root

from config import CHAR
from plumbing.command_line import add_flags, model_flag, parse_before_torch, refuse_same
from plumbing.errors import UserError, run_script
from plumbing.text import shown_path


def command_line(argv: list[str] | None = None):
    """Returns (settings, arguments)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model_flag(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the file to write")
    add_flags(parser, CHAR, "debug")
    return parse_before_torch(parser, CHAR, argv)


if __name__ == "__main__":
    settings, args = command_line()  # before torch, which takes seconds to import

import logging
import warnings

import numpy as np
import torch
from torch import Tensor, nn

from model.generation.sampling import read
from model.gpt import GPT
from model.layers import rotate
from model.storage.model_file import load_model
from plumbing.files import whole_file

TOLERANCE = 1e-4  # by which logits may differ, as those of two ways to add in fp32 do
LARGEST = 2**31 - 2**20  # bytes of weights: an ONNX file is one protocol buffer, which ends at 2 GiB


class OneStep(nn.Module):
    """GPT.forward for one token, its cache as tensors that come in and go out, so that a graph can hold it.

    A cache that grows is a slice of another length at every step. Here every step looks at all S places, and a mask
    hides those that are not filled yet. Notation as in layers.py, with L layers.
    """

    def __init__(self, model: GPT):
        super().__init__()
        self.model = model

    def forward(self, token: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        model, (_, H, S, D) = self.model, keys.shape
        places = torch.arange(S)
        here, seen = (places == position)[:, None], places <= position  # (S, 1), (S)
        cos, sin = model.cos[position], model.sin[position]  # (1, D)
        new_keys, new_values = [], []
        x = model.embedding(token)  # (1, C)
        for layer, block in enumerate(model.blocks):
            a = block.attention
            q, k, v = a.qkv(block.attention_norm(x)).view(3, H, 1, D)
            q, k = rotate(a.query_norm(q), cos, sin), rotate(a.key_norm(k), cos, sin)
            new_keys.append(torch.where(here, k, keys[layer]))  # (H, S, D)
            new_values.append(torch.where(here, v, values[layer]))
            scores = q @ new_keys[-1].transpose(1, 2) / D**0.5  # (H, 1, S)
            shares = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
            x = x + a.output((shares @ new_values[-1]).view(1, H * D))
            x = x + block.mlp(block.mlp_norm(x))
        return model.head(model.norm(x))[0], torch.stack(new_keys), torch.stack(new_values)


def empty_cache(model: GPT) -> Tensor:
    """Zeros in the shape of the keys, and of the values: (L, H, S, D)."""
    return torch.zeros_like(model.new_cache().store[:, 0, 0])


def to_onnx(model: GPT, metadata: dict[str, str]) -> bytes:
    """The content of an ONNX file. Raises UserError where a package is missing, or the model too large for one file."""
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if size > LARGEST:
        raise UserError(f"An ONNX file ends at 2 GiB; the weights are {size / 2**30:.1f} GiB. Nothing was written.")
    try:
        import onnxscript  # noqa: F401 (torch's exporter is written in it)
    except ImportError:
        raise UserError(
            "The packages onnx and onnxscript are missing. Install them with: uv sync --extra onnx "
            "(or pip install onnx onnxscript onnxruntime)."
        ) from None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision, which nobody asked for
    cache = empty_cache(model)
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            OneStep(model).eval(),
            (torch.tensor([0]), torch.tensor([0]), cache, cache.clone()),
            input_names=["token", "position", "keys", "values"],
            output_names=["logits", "new_keys", "new_values"],
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props.update(metadata)
    return program.model_proto.SerializeToString()


def largest_difference(data: bytes, model: GPT, tokens: int) -> float | None:
    """By how much the logits that onnxruntime gives for a random text differ from the model's, at most; None where
    that package is missing."""
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    ids = torch.randint(model.vocab_size, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    expected = read(model, ids, model.new_cache()).numpy()  # (T, V)
    keys = values = empty_cache(model).numpy()
    largest = 0.0
    for position, token in enumerate(ids):
        inputs = {"token": np.array([token]), "position": np.array([position]), "keys": keys, "values": values}
        logits, keys, values = session.run(None, inputs)
        largest = max(largest, float(np.abs(logits - expected[position]).max()))
    return largest


def main(settings, args) -> None:
    refuse_same({"--output": args.output}, settings.model_file)
    model, tokenizer, _ = load_model(settings.model_file)
    if settings.debug:
        shape = tuple(empty_cache(model).shape)
        print(f"{shown_path(settings.model_file)}, a {tokenizer.kind} model; keys and values are {shape}")
    data = to_onnx(model, {"tokenizer": tokenizer.json_text, "block_size": str(model.block_size)})
    difference = largest_difference(data, model, model.block_size)
    if difference is not None and not difference < TOLERANCE:
        raise UserError(f"What onnxruntime computes differs from the model by {difference}. Nothing was written.")
    with whole_file(args.output) as file:
        file.write(data)
    checked = "onnxruntime is not installed, so it was not tried"
    if difference is not None:
        checked = f"onnxruntime gives the model's logits for {model.block_size} tokens, to {difference:.0e}"
    print(f"{shown_path(args.output)}: {len(data) / 1e6:.1f} MB; {checked}")
    print("Next: run it with onnxruntime, as the README shows")


if __name__ == "__main__":
    run_script(lambda: main(settings, args))
