"""The finished model, gpt_model.pt: weights, architecture, tokenizer and a summary of its training."""

from pathlib import Path

from torch import Tensor

from model.gpt import GPT
from model.metrics import show_bits_per_byte
from model.storage.checks import FORMAT_VERSION, check_tensors, field, is_number, is_whole, load_format, skeleton
from model.storage.safe_load import save
from model.tokenization.tokenizer import BareIds, Tokenizer
from plumbing.errors import UserError
from plumbing.text import shown_path


def show_training(training: dict) -> str:
    """What a model's file says of its training: "trained for 830 steps, validation 1.650 bits per byte"."""
    per_byte = show_bits_per_byte(training["val_bits_per_byte"])
    return f"trained for {training['steps']:,} steps, validation {per_byte}"


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
        weights, architecture = field(content, "weights", dict), field(content, "architecture", dict)
        check_tensors(weights, skeleton(architecture, weights).state_dict())
        text = field(field(content, "tokenizer", dict), "json", str)
        if content["tokenizer"].get("kind") == "none":
            tokenizer = BareIds(architecture["vocab_size"])
        else:
            tokenizer = Tokenizer(text, f"the tokenizer in {shown_path(path)}")
        if (tokenizer.vocab_size, tokenizer.sha256) != (architecture["vocab_size"], content["tokenizer"].get("sha256")):
            raise ValueError("its tokenizer does not belong to its weights")
        training = field(content, "training", dict)
        bits_known = is_number(training.get("val_bits_per_byte")) or tokenizer.kind == "none"
        data_known = isinstance(training.get("data", {}), dict)
        if not (is_whole(training.get("steps"), 0) and bits_known and data_known):
            raise ValueError("its summary of the training is incomplete")
        model = GPT(**architecture)
        model.load_state_dict(weights)
    except (ValueError, TypeError) as error:
        raise UserError(f"{foreign}, or it is damaged: {str(error).splitlines()[0]}") from None
    return model.eval(), tokenizer, training
