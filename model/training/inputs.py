"""What a run reads: two token files, their tokenizer, the batches to train on, and with --init-from the weights of
another model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from config import BPE, CHAR, Model, Settings
from dataset import TokenFile, check_pair, draw_batch, draw_starts, open_bare_tokens, open_tokens
from model.device import to_device
from model.storage.huggingface import read_folder
from model.tokenization.tokenizer import BareIds, Tokenizer, load_tokenizer
from model.training import distributed
from plumbing.command_line import flag_name
from plumbing.errors import UsageError, UserError
from plumbing.settings import field_names
from plumbing.text import shown_path

INIT_SOURCE = "--init-from folder"  # its name among the sources of a checkpoint


def open_inputs(
    settings: Settings, kind: str, ids: int | None, stored: Tokenizer | None = None
) -> tuple[TokenFile, TokenFile, Tokenizer | BareIds]:
    """Open the token files to train and to validate on, and the tokenizer, unless it is `stored` in a checkpoint.
    `kind` is "char" or "bpe". With a number of `ids`, the files are bare ids and have no tokenizer. Raises UserError if
    they do not belong together."""
    paths = settings.train_file, settings.val_file
    if ids is not None:
        if ids < 2:
            raise UsageError(f"--vocab-size must be 2 or more, and it is {ids}: one id leaves nothing to learn.")
        tokenizer = BareIds(ids)
        train, val = (open_bare_tokens(path, ids) for path in paths)
    else:
        tokenizer = stored or load_tokenizer(settings.tokenizer_file)
        train, val = (open_tokens(path, checksums=distributed.local_rank() == 0) for path in paths)
        path = shown_path(settings.tokenizer_file)
        if tokenizer.kind != kind:
            script = {"char": "train.py", "bpe": "trainv2.py"}[tokenizer.kind]
            raise UserError(f"{path} is a {tokenizer.kind} tokenizer; {script} trains on it.")
        for data in (train, val):
            if not tokenizer.made(data.facts):
                raise UserError(
                    f"{shown_path(data.path)} was made with a different tokenizer than {path}. Run the "
                    "scripts/prepare_dataset script again, with this --tokenizer-file."
                )
    if settings.val_file.parent.samefile(settings.train_file):
        raise UserError(
            f"The folder to train on, {shown_path(settings.train_file)}, also contains the validation file. Move one "
            "of them elsewhere."
        )
    check_pair(train, val)
    if len(train) <= settings.block_size or len(val) < 2:
        raise UserError(
            f"{len(train):,} tokens to train on and {len(val):,} to validate on are too few for blocks of "
            f"{settings.block_size}. Use more text, or a smaller --block-size."
        )
    return train, val, tokenizer


class Batches:
    """batches(step) gives (inputs, targets), both (B, T) int64 on the device: a pure function of (seed, step).

    Each of several processes gets its own rows. If a quarter of a GPU's free memory holds the whole token file, the
    file moves there at the start, and a batch costs the bus only a few numbers.
    """

    def __init__(self, data: TokenFile, settings: Settings, device: torch.device):
        self.data, self.device, self.resident = data, device, None
        self.shape = (settings.block_size, settings.batch_size, settings.seed)
        self.rows = distributed.batch_rows(settings.batch_size)
        if device.type == "cuda" and 4 * len(data) < torch.cuda.mem_get_info(device)[0] / 4:
            self.move_to_device()

    def move_to_device(self) -> None:
        """Copy all tokens to the device, as int32 (torch has little arithmetic for uint16)."""
        self.resident = torch.from_numpy(self.data.tokens[:].astype(np.int32)).to(self.device)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        if self.resident is None:
            inputs, targets = draw_batch(self.data.tokens, *self.shape, step, self.rows)
            return to_device(inputs, self.device), to_device(targets, self.device)
        starts = to_device(draw_starts(len(self.data), *self.shape, step)[self.rows], self.device)
        window = self.resident[starts + torch.arange(self.shape[0] + 1, device=self.device)].long()  # (B, T + 1)
        return window[:, :-1], window[:, 1:]


def weights_of_folder(settings: Settings, folder: Path, kind: str) -> tuple[Settings, dict[str, Tensor], str]:
    """What --init-from brings: the settings with the architecture and the tokenizer of a folder in Hugging Face's
    layout, its weights, and their SHA-256. Raises UsageError for a flag that contradicts the folder."""
    architecture, weights, sha256 = read_folder(folder, settings.block_size)
    own = {name: architecture[name] for name in field_names(Model) if name != "dropout"}
    for name, value in own.items():
        default = getattr({"char": CHAR, "bpe": BPE}[kind], name)  # which looks like no flag at all
        if getattr(settings, name) not in (value, default):
            raise UsageError(
                f"{flag_name(name)} is {getattr(settings, name)}, and the model in {shown_path(folder)} has "
                f"{value}. Leave the flag out: with --init-from, the folder decides."
            )
    settings = replace(settings, tokenizer_file=folder / "tokenizer.json", **own)
    ids = load_tokenizer(settings.tokenizer_file).vocab_size
    if ids != architecture["vocab_size"]:
        raise UserError(
            f"The tokenizer in {shown_path(folder)} has {ids:,} ids, but the model beside it has "
            f"{architecture['vocab_size']:,}. They do not belong together."
        )
    return settings, weights, sha256


def settings_begun_with(saved: dict, settings: Settings, folder: Path, kind: str) -> tuple[Settings, Tokenizer | None]:
    """The settings of a run that began with --init-from, from a checkpoint of it, so that the folder may be changed or
    gone; and its tokenizer, which checkpoints of old versions do not have."""
    default = {"char": CHAR, "bpe": BPE}[kind]
    left_out = [name for name in field_names(Model) if getattr(settings, name) == getattr(default, name)]
    own = {name: saved["settings"].get(name, getattr(default, name)) for name in left_out if name != "dropout"}
    settings = replace(settings, tokenizer_file=folder / "tokenizer.json", **own)
    print(f"  {shown_path(folder)} is not read again: the run has weights of its own")
    if "tokenizer" not in saved:
        return settings, None
    return settings, Tokenizer(saved["tokenizer"]["json"], "the tokenizer in the checkpoint")
