"""Export a trained model to ONNX, which runs in browsers, on phones and in other languages: one token per call.

    python scripts/export_onnx.py --output data/tiny.onnx

Reads   gpt_model.pt (train.py, trainv2.py)
Writes  one file: the graph of one step, the weights, and the tokenizer's JSON in its metadata
Next    onnxruntime.InferenceSession("data/tiny.onnx"), as docs/exporting.md shows

What goes into the graph and what comes out: model/storage/onnx_file.py. Needs the packages onnx, onnxscript and
onnxruntime: uv run --extra onnx, or pip install onnx onnxscript onnxruntime.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

from collections.abc import Sequence
from pathlib import Path

from config import CHAR
from plumbing.command_line import ScriptParser, add_flags, model_flag, parse, refuse_same
from plumbing.errors import UserError, run_script
from plumbing.files import whole_file
from plumbing.text import shown_path

TOLERANCE = 1e-4  # how far logits may differ; two ways to add up the same numbers in fp32 differ by less


def main(argv: Sequence[str] | None = None) -> None:
    parser = ScriptParser(__doc__)
    model_flag(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the file to write")
    add_flags(parser, CHAR, "debug")
    settings, args = parse(parser, CHAR, argv)
    refuse_same({"--output": args.output}, settings.model_file)

    from model.storage.model_file import load_model  # imports torch, which takes seconds
    from model.storage.onnx_file import empty_cache, largest_difference, to_onnx

    model, tokenizer, _ = load_model(settings.model_file)
    if settings.debug:
        shape = tuple(empty_cache(model).shape)
        print(f"{shown_path(settings.model_file)}, a {tokenizer.kind} model; keys and values are {shape}")
    data = to_onnx(model, {"tokenizer": tokenizer.json_text, "block_size": str(model.block_size)})
    difference = largest_difference(data, model)
    if difference is None:
        checked = "not checked, because onnxruntime is not installed"
    elif difference < TOLERANCE:
        checked = f"onnxruntime gives the model's logits for {model.block_size} tokens, to {difference:.0e}"
    else:
        raise UserError(
            f"onnxruntime's logits differ from the model's by {difference:.0e}. Nothing was written. "
            "Try other versions of torch, onnxscript and onnxruntime."
        )
    with whole_file(args.output) as file:
        file.write(data)
    print(f"{shown_path(args.output)}: {len(data) / 1e6:.1f} MB; {checked}")
    print("Next: run it with onnxruntime, as docs/exporting.md shows")


if __name__ == "__main__":
    run_script(main)
