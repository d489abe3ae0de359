"""Take a trained model into other tools: a folder that Hugging Face's transformers opens without any code of ours.

    python scripts/export_huggingface.py --output data/exported
    python scripts/export_huggingface.py --output data/exported --gguf data/tiny.gguf

Reads   gpt_model.pt (train.py, trainv2.py)
Writes  config.json, model.safetensors, tokenizer.json and what goes with them, and a model card, README.md, to edit;
        with --gguf all of it as one file for llama.cpp and the programs built on it
Next    AutoModelForCausalLM.from_pretrained("data/exported"), or python train.py --init-from data/exported

Nothing is converted but names, because the model has the shape that is called Qwen3 there. Needs the package
safetensors, and for --gguf the package gguf: uv run --extra export, or pip install safetensors gguf.
"""

import argparse
from pathlib import Path

import _root

from config import CHAR
from plumbing.command_line import add_flags, model_flag, parse_before_torch, refuse_same
from plumbing.errors import UsageError, UserError, run_script
from plumbing.text import shown_path


def command_line(argv: list[str] | None = None):
    """Returns (settings, arguments)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model_flag(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="write this file for llama.cpp as well")
    add_flags(parser, CHAR, "debug")
    return parse_before_torch(parser, CHAR, argv)


if __name__ == "__main__":
    settings, args = command_line()  # before torch, which takes seconds to import

import json

import torch

from model.gpt import GPT
from model.storage.gguf_file import write_gguf
from model.storage.huggingface import qwen3_config, read_folder, safetensors_library, their_names, to_qwen3
from model.storage.model_file import load_model
from model.tokenization.tokenizer import UNKNOWN, Tokenizer
from plumbing.corpus import END_OF_TEXT
from plumbing.files import whole_file

# The model goes on with a text, it does not converse. A chat program hands it what was said, and nothing else.
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- tinylittlegpt
---

# {name}

A very small GPT, trained with TinyLittleGPT{start}. It goes on with a text; it was never taught to answer.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForCausalLM.from_pretrained("{folder}")
ids = tokenizer("def ", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**ids)[0]))
```

## Model

| | |
| --- | --- |
{rows}

It has seen texts of {block_size} tokens, prompt included. Beyond that it writes nonsense.

## Data

{data} What the validation figures come from was not among what it was trained on.

## Licence

What may be done with these weights depends on the texts that they were made from. Name their licences here, and the one
that you give the model, before you pass it on.
"""


def model_card(folder: Path, model: GPT, tokenizer: Tokenizer, training: dict) -> str:
    """README.md of the folder, in the form that the hub calls a model card: figures, data, and what is left to say."""
    a = model.architecture
    kind = "one token a character" if tokenizer.kind == "char" else "byte-level BPE"
    figures = {
        "parameters": sum(model.parameters_by_part().values()),
        "layers, heads, width": f"{a['n_layer']}, {a['n_head']}, {a['n_embd']}",
        "tokenizer": f"{kind}, {a['vocab_size']:,} ids",
        "training steps": training["steps"],
        "training tokens": training.get("tokens_seen"),
        "validation loss, nats a token": training.get("val_loss"),
        "validation, bits per byte of text": training["val_bits_per_byte"],
    }
    shown = {k: f"{v:,.4f}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else v for k, v in
             figures.items()}  # fmt: skip
    begun, data = training.get("init_from", ""), training.get("data", {})
    source, size = data.get("source"), data.get("utf8_bytes")
    known = isinstance(source, str) and isinstance(size, int)
    return CARD.format(
        name=folder.resolve().name,
        folder=shown_path(folder),
        start=f", beginning with the weights of {begun!r}" if begun else "",
        rows="\n".join(f"| {name} | {value} |" for name, value in shown.items() if value is not None),
        block_size=a["block_size"],
        data=f"{size:,} bytes of text from {Path(source).name!r}." if known else "Say here what it was trained on.",
    )


def as_json(content: dict) -> bytes:
    return json.dumps(content, indent=2).encode() + b"\n"


def files_of(folder: Path, model: GPT, tokenizer: Tokenizer, training: dict) -> dict[str, bytes]:
    """What belongs in the folder, by name: config.json last, without which nobody takes it for a model."""
    special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    end = tokenizer.end_of_text_id
    return {
        "model.safetensors": safetensors_library().torch.save(
            {name: tensor.contiguous() for name, tensor in to_qwen3(model).items()}, {"format": "pt"}
        ),
        "tokenizer.json": tokenizer.json_text.encode(),
        "tokenizer_config.json": as_json({
            "tokenizer_class": "PreTrainedTokenizerFast",
            **special,
            **({"unk_token": UNKNOWN} if tokenizer.kind == "char" else {}),
            "model_max_length": model.block_size,
            "clean_up_tokenization_spaces": False,  # what comes out is what went in
            "split_special_tokens": True,  # a text that reads <|endoftext|> is text, as it is here
        }),
        "chat_template.jinja": CHAT_TEMPLATE.encode(),
        "generation_config.json": as_json({
            "bos_token_id": end,
            "eos_token_id": end,
            "pad_token_id": end,
            "do_sample": True,
            "temperature": CHAR.temperature,
            "top_k": CHAR.top_k,
            "max_length": model.block_size,
        }),
        "README.md": model_card(folder, model, tokenizer, training).encode(),
        "config.json": as_json(qwen3_config(model.architecture, end)),
    }  # fmt: skip


def main(settings, args) -> None:
    refuse_same({"--gguf": args.gguf}, settings.model_file)
    model, tokenizer, training = load_model(settings.model_file)
    if tokenizer.kind == "none":
        raise UserError(
            f"{shown_path(settings.model_file)} was trained on bare ids: it has no tokenizer to take along."
        )
    folder = args.output
    files = files_of(folder, model, tokenizer, training)
    own = {*files, args.gguf.name} if args.gguf else {*files}
    if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= own):
        raise UsageError(f"{shown_path(folder)} holds something else than an exported model. Name a new folder.")

    # === write ========================================================================================================
    print(f"{shown_path(settings.model_file)}, a {tokenizer.kind} model, in the layout that is called Qwen3")
    if settings.debug:
        for name, weight in model.state_dict().items():
            if name.startswith("blocks.1."):
                print("  and so on, block by block")
                break
            print(f"  {name:36} {tuple(weight.shape)!s:14} {', '.join(their_names(name))}")
    if args.gguf:  # first, as its path may be one that cannot be written
        write_gguf(args.gguf, model, tokenizer, CHAT_TEMPLATE)
        print(f"{shown_path(args.gguf)}: {args.gguf.stat().st_size / 1e6:.1f} MB for llama.cpp")
        if tokenizer.kind == "char":
            print("  llama.cpp leaves out the characters that the model has never seen; here they are read as <|unk|>")
    (folder / "config.json").unlink(missing_ok=True)
    for name, data in files.items():
        with whole_file(folder / name) as file:
            file.write(data)

    # === check what was written =======================================================================================
    architecture, weights, _ = read_folder(folder, model.block_size)
    same = all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    if not same or {**architecture, "dropout": model.architecture["dropout"]} != model.architecture:
        raise UserError(f"{shown_path(folder)} does not hold the model that was written. Write it again.")
    megabytes = sum(map(len, files.values())) / 1e6
    print(f"{shown_path(folder)}: {len(files)} files, {megabytes:.1f} MB, read back: the same")
    print(f"Next: edit {shown_path(folder / 'README.md')}: what the model was trained on, and what may be done with it")


if __name__ == "__main__":
    run_script(lambda: main(settings, args))
