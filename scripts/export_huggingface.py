"""Export a trained model as a folder that Hugging Face's transformers opens without any of our code.

    python scripts/export_huggingface.py --output data/exported
    python scripts/export_huggingface.py --output data/exported --gguf data/tiny.gguf

Reads   gpt_model.pt (train.py, trainv2.py)
Writes  config.json, model.safetensors, tokenizer.json and a few small files, and a model card, README.md, to edit;
        with --gguf also one file with all of it for llama.cpp and the programs built on it
Next    AutoModelForCausalLM.from_pretrained("data/exported"), or python train.py --init-from data/exported

Only names are converted, because the model has the architecture that is called Qwen3 there. Needs the package
safetensors, and for --gguf the package gguf: uv run --extra export, or pip install safetensors gguf.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from config import CHAR
from plumbing.command_line import ScriptParser, add_flags, model_flag, parse, refuse_same
from plumbing.errors import UsageError, UserError, run_script
from plumbing.files import TEMPORARY
from plumbing.text import printable, shown_path

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- tinylittlegpt
---

# {name}

A very small GPT, trained with TinyLittleGPT{start}. It continues a text; it was never taught to answer.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForCausalLM.from_pretrained("{folder}")
ids = tokenizer("def ", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids)[0]))
```

## Model

| | |
| --- | --- |
{rows}

It was trained on texts of {block_size} tokens. Beyond that length, prompt included, it writes nonsense.

## Data

{data} The validation figures come from documents that it was not trained on.

## Licence

What may be done with these weights depends on the texts that they were trained on. Name their licences here, and the
one that you give the model, before you pass it on.
"""


MARK = "\n<!-- as exported: {} -->\n"  # with the hash of the text above


def named(text) -> str:
    """A name from the model's file in quotes; as code if it holds anything that a page could obey."""
    text = printable(str(text)).replace("`", "'")
    return f"'{text}'" if re.fullmatch(r"(?!www\.)[\w .-]+", text) else f"`{text}`"


def model_card(folder: Path, model, tokenizer, training: dict) -> str:
    """README.md of the folder, which the hub calls a model card: figures, data, and what the user has to fill in."""
    a = model.architecture
    tokens = "one token per character" if tokenizer.kind == "char" else "byte-level BPE"
    numbers = {name: value for name, value in training.items() if type(value) in (int, float)}  # and none of its texts
    figures = {
        "parameters": sum(model.parameter_counts().values()),
        "layers, heads, width": f"{a['n_layer']}, {a['n_head']}, {a['n_embd']}",
        "tokenizer": f"{tokens}, {a['vocab_size']:,} ids",
        "training steps": numbers["steps"],
        "training tokens": numbers.get("tokens_seen"),
        "validation loss, nats per token": numbers.get("val_loss"),
        "validation, bits per byte of text": numbers.get("val_bits_per_byte"),
    }
    form = {str: "", int: ",", float: ",.4f"}
    rows = [f"| {name} | {value:{form[type(value)]}} |" for name, value in figures.items() if value is not None]
    init_from, data = training.get("init_from"), training.get("data", {})
    source, size = data.get("source"), data.get("utf8_bytes")
    known = isinstance(source, str) and isinstance(size, int)
    card = CARD.format(
        name=printable(folder.resolve().name),
        folder=shown_path(folder),
        start=f", starting from the weights of {named(init_from)}" if init_from else "",
        rows="\n".join(rows),
        block_size=a["block_size"],
        data=f"{size:,} bytes of text from {named(Path(source).name)}."
        if known
        else "Say here what it was trained on.",
    )
    return card + MARK.format(hashlib.sha256(card.encode()).hexdigest())


def was_edited(card: str) -> bool:
    """Whether somebody has changed the text of model_card()."""
    text = card[: -len(MARK.format("0" * 64))]
    return card != text + MARK.format(hashlib.sha256(text.encode()).hexdigest())


def holds_only(folder: Path, names: set[str]) -> bool:
    """Whether a folder contains these files and nothing else but what whole_file() leaves of one when it is killed."""
    return {re.sub(f"{TEMPORARY}$", "", path.name) for path in folder.iterdir()} <= names


def show_names(model) -> None:
    """Print the tensors of the first block, and those before it, with their names in Qwen3."""
    from model.storage.huggingface import qwen3_names

    for name, weight in model.state_dict().items():
        if name.startswith("blocks.1."):
            print("  and so on, block by block")
            return
        print(f"  {name:36} {tuple(weight.shape)!s:14} {', '.join(qwen3_names(name))}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = ScriptParser(__doc__)
    model_flag(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="also write this file for llama.cpp")
    add_flags(parser, CHAR, "debug")
    settings, args = parse(parser, CHAR, argv)
    refuse_same({"--gguf": args.gguf}, settings.model_file)

    from model.storage.gguf_file import write_gguf  # imports torch, which takes seconds
    from model.storage.huggingface import folder_content, write_folder
    from model.storage.model_file import load_model

    model, tokenizer, training = load_model(settings.model_file)
    source, folder = shown_path(settings.model_file), shown_path(args.output)
    if tokenizer.kind == "none":
        raise UserError(f"{source} was trained on bare ids. It has no tokenizer, so it cannot be exported.")
    card, earlier = model_card(args.output, model, tokenizer, training), args.output / "README.md"
    if kept := earlier.is_file() and was_edited(earlier.read_text("utf-8", errors="surrogateescape")):
        card = earlier.read_text("utf-8", errors="surrogateescape")
    files = folder_content(model, tokenizer, card, settings)
    own = {*files, args.gguf.name} if args.gguf else {*files}
    if args.output.exists() and not (args.output.is_dir() and holds_only(args.output, own)):
        raise UsageError(f"{folder} contains something other than an exported model. Name a new folder.")

    print(f"{source}, a {tokenizer.kind} model, in the layout that is called Qwen3")
    if settings.debug:
        show_names(model)
    if args.gguf:  # first, in case its path cannot be written
        write_gguf(args.gguf, model, tokenizer)
        print(f"{shown_path(args.gguf)}: {args.gguf.stat().st_size / 1e6:.1f} MB for llama.cpp")
        if tokenizer.kind == "char":
            print("  llama.cpp drops characters that the model has never seen; here they are read as <|unk|>")
    write_folder(args.output, files, model)
    print(f"{folder}: {len(files)} files, {sum(map(len, files.values())) / 1e6:.1f} MB, read back: the same")
    if kept:
        print(f"{shown_path(earlier)}: kept as you edited it. If it describes an earlier model, correct its figures.")
    else:
        print(f"Next: edit {shown_path(earlier)}: what the model was trained on, and its licence")


if __name__ == "__main__":
    run_script(main)
