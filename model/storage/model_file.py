"""The finished model in one file, gpt_model.pt: all that generation needs.

It is a dict that safe_load.py writes and reads:

    format_version   int     1
    kind             str     "TinyLittleGPT model"
    architecture     dict    the arguments of GPT: vocab_size and the fields of config.Model
    weights          dict    the state dict of the GPT, fp32
    tokenizer        dict    kind ("char", "bpe", or "none" for bare ids), json (its file's text), sha256 (of that text)
    training         dict    summary of the training, plain values: steps, val_bits_per_byte (None for bare ids), and in
                             files of train.py tokens_seen, val_loss, settings, data, init_from. Both val_... are None
                             or missing where the model has not been evaluated, as after Ctrl-C
"""

import re
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from model.device import memory_advice
from model.gpt import GPT
from model.metrics import show_bits_per_byte
from model.storage import checks
from model.storage.checkpoint import as_model, stored_tokenizer
from model.storage.safe_load import save
from model.tokenization.tokenizer import BareIds, Tokenizer
from plumbing.errors import UserError
from plumbing.text import plural, shown_path

KIND = "TinyLittleGPT model"


def show_training(training: dict) -> str:
    """The summary in a model file as text: "trained for 830 steps, validation 1.650 bits per byte"."""
    known = training.get("val_loss", training.get("val_bits_per_byte")) is not None
    validation = f"validation {show_bits_per_byte(training['val_bits_per_byte'])}" if known else "not evaluated"
    return f"trained for {plural(training['steps'], 'step')}, {validation}"


def save_model(
    path: Path, model: GPT, tokenizer: Tokenizer | BareIds, training: dict, weights: dict[str, Tensor] | None = None
) -> None:
    """Write a model file, and read it back before it replaces an earlier one. `training` is the summary; `weights` is
    the complete state dict, for a model that holds only a shard of it. Raises OSError or UserError."""
    content = {
        "format_version": checks.FORMAT_VERSION,
        "kind": KIND,
        "architecture": model.architecture,
        "tokenizer": stored_tokenizer(tokenizer),
        "training": training,
        "weights": model.state_dict() if weights is None else weights,
    }
    save(path, content, check=load_model)


@memory_advice("Close other programs, or name a smaller model.")
def load_model(path: Path) -> tuple[GPT, Tokenizer | BareIds, dict]:
    """Read a model file, or the model in a checkpoint: (model in eval mode on the CPU, tokenizer, training summary).
    Raises UserError."""
    if not path.is_file():
        raise UserError(
            f"There is no model {shown_path(path)}. Train one with train.py (characters) or trainv2.py (BPE), "
            "or name another file with --model."
        )
    try:
        content = checks.load_versioned(path)
        if content.get("kind") != KIND:
            content = as_model(content)
        architecture, weights = checks.require(content, "architecture", dict), checks.require(content, "weights", dict)
        checks.check_tensors(weights, checks.meta_model(architecture, weights).state_dict())
        stored, vocab_size = checks.require(content, "tokenizer", dict), architecture["vocab_size"]
        text, bare = checks.require(stored, "json", str), stored.get("kind") == "none"
        tokenizer = BareIds(vocab_size) if bare else Tokenizer(text, f"the tokenizer in {shown_path(path)}")
        if (tokenizer.vocab_size, tokenizer.sha256) != (vocab_size, stored.get("sha256")):
            raise ValueError("its tokenizer does not belong to its weights")
        training = checks.require(content, "training", dict)
        checks.check_summary(training)
        training.setdefault("val_bits_per_byte", None)
        with torch.random.fork_rng(devices=[]):  # a training reads models too: its random numbers are its own
            model = GPT(**architecture)
        model.load_state_dict(weights)
    except (ValueError, TypeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"{shown_path(path)} is not a model of train.py or trainv2.py, or is damaged: {reason}. "
            "Name another file with --model."
        ) from None
    return model.eval(), tokenizer, training


def check_is_model(path: Path) -> None:
    """Raise UserError for a file of a run that is no model: training would replace what was announced."""
    is_other = re.fullmatch(r"step_\d+\.pt|log\.jsonl", path.name) is not None
    with suppress(ValueError, OSError):  # a damaged file, or none, may be replaced
        is_other = is_other or checks.load_versioned(path).get("kind") != KIND
    if is_other:
        raise UserError(f"{shown_path(path)} belongs to a run and is no model. Name another --model-file.")
