"""What the steps hand to each other: the documents of a corpus file, their split, and token files.

Corpus   UTF-8 text. A line of its own that is exactly <|endoftext|> separates two documents; a file without one is a
         single document, so any text file works.
Tokens   train.bin, val.bin: raw little-endian uint16 ids without a header, the end-of-text id after every document.
         np.memmap("data/train.bin", dtype=np.uint16) opens one. Beside it lies train.bin.json, the sidecar: how many
         tokens, documents and bytes, and which tokenizer made them.

Every file is written under a temporary name and renamed when it is whole. This is the only place that knows the
formats; it takes plain values and imports no script.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from plumbing.errors import UserError
from plumbing.files import CHUNK, flush_to_disk, whole_file
from plumbing.text import shown_path

FORMAT_VERSION = 1

MAX_VOCAB_SIZE = 1 << 16  # what uint16 can count


# --- token files ------------------------------------------------------------------------------------------------------


def sidecar(path: Path) -> Path:
    """The description that lies beside a token file: data/train.bin.json for data/train.bin."""
    return path.with_name(path.name + ".json")


class TokenWriter:
    """Appends documents to an open token file and counts them. token_writer() makes one."""

    def __init__(self, file, vocab_size: int, end_of_text_id: int):
        self.file, self.vocab_size, self.end_of_text_id = file, vocab_size, end_of_text_id
        self.tokens = self.documents = self.utf8_bytes = self.unknown_characters = 0
        self.hash = hashlib.sha256()

    def add(self, ids: np.ndarray, utf8_bytes: int, unknown_characters: int = 0) -> None:
        """Append the ids of one document, which came from so many bytes of text, and the end-of-text id."""
        self.extend(np.append(ids, self.end_of_text_id))
        self.count(1, utf8_bytes, unknown_characters)

    def extend(self, ids: np.ndarray) -> None:
        """Append ids as they are: some or all of whole documents, the end-of-text id behind each. count() tells what
        they came from."""
        if len(ids) and int(ids.max()) >= self.vocab_size:
            raise ValueError(f"id {ids.max()} does not fit a vocabulary of {self.vocab_size}")
        data = memoryview(np.ascontiguousarray(ids, "<u2")).cast("B")
        self.file.write(data)
        self.hash.update(data)
        self.tokens += len(ids)

    def count(self, documents: int, utf8_bytes: int, unknown_characters: int) -> None:
        """Of so many documents, bytes of text and characters without an id were ids that are written."""
        self.documents += documents
        self.utf8_bytes += utf8_bytes
        self.unknown_characters += unknown_characters

    def counts(self) -> dict[str, int]:
        names = ("tokens", "documents", "utf8_bytes", "unknown_characters")
        return {name: getattr(self, name) for name in names}

    def take_up(self, counts: dict[str, int]) -> None:
        """Go on in a file that holds tokens already: read them for the checksum, and count on from `counts`."""
        for name, count in counts.items():
            setattr(self, name, count)
        self.file.seek(0)
        while chunk := self.file.read(CHUNK):
            self.hash.update(chunk)


def withdraw(*paths: Path) -> None:
    """Take away the sidecars of token files that are about to be replaced, so that until the new ones are there, no new
    file can be taken for the partner of an old one."""
    for path in paths:
        sidecar(path).unlink(missing_ok=True)


@contextmanager
def token_writer(path: Path, facts: dict, journal=None) -> Iterator[TokenWriter]:
    """Write a token file and its sidecar: yields a TokenWriter. For the journal, see whole_file().

    `facts` goes into the sidecar as it is; its vocab_size and end_of_text_id are used here. Both files appear when the
    block ends without an error, the sidecar last, so a token file without one is unfinished.
    """
    if facts["vocab_size"] > MAX_VOCAB_SIZE:
        raise UserError(
            f"The vocabulary has {facts['vocab_size']:,} ids, and token files (uint16) hold {MAX_VOCAB_SIZE:,}. "
            "Train a smaller tokenizer."
        )
    with whole_file(path, journal) as file:
        writer = TokenWriter(file, facts["vocab_size"], facts["end_of_text_id"])
        yield writer
        flush_to_disk(file)  # a full disk shows here, while the earlier pair is still whole
        withdraw(path)
    facts = {"format_version": FORMAT_VERSION, **facts, **writer.counts(), "sha256": writer.hash.hexdigest()}
    with whole_file(sidecar(path)) as file:
        file.write(json.dumps(facts, indent=2).encode() + b"\n")


@dataclass(frozen=True)
class TokenFile:
    """A token file that was checked and stays open, and what its sidecar says."""

    path: Path
    facts: dict
    file: BinaryIO

    @property
    def tokens(self) -> np.ndarray:
        """All ids, (tokens,) uint16, read only: mapped, not read.

        Mapped anew at each use, because the pages that were touched count as this process's memory until the mapping
        goes: one that stayed would in the end hold the whole file.
        """
        return np.memmap(self.file, dtype="<u2", mode="r") if len(self) else np.empty(0, "<u2")

    def __len__(self) -> int:
        return self.facts["tokens"]

    @property
    def tokens_per_byte(self) -> float:
        """Turns bits a token into bits per byte. End-of-text ids count as tokens and stand for no bytes. NaN where
        the file does not say of how many bytes it was made."""
        return self.facts["tokens"] / (self.facts["utf8_bytes"] or math.nan)


@dataclass(frozen=True)
class TokenFolder(TokenFile):
    """The token files of a folder, in the order of their names, as if they were one file."""

    shards: tuple[TokenFile, ...]

    @property
    def tokens(self) -> "TokenFolder":
        return self

    def __getitem__(self, at: slice | np.ndarray) -> np.ndarray:
        """What one array of all ids would give for a slice (of step 1) or an array of places: uint16."""
        begins = np.cumsum([0, *map(len, self.shards)])
        if isinstance(at, slice):
            start, end, _ = at.indices(len(self))
            parts = [s.tokens[max(0, start - b) : max(0, end - b)] for s, b in zip(self.shards, begins, strict=False)]
            return np.concatenate(parts)
        number = np.searchsorted(begins, at, side="right") - 1  # of the shard that holds each
        found = np.empty(at.shape, np.uint16)
        for i in np.unique(number):
            found[number == i] = self.shards[i].tokens[at[number == i] - begins[i]]
        return found


def open_shards(folder: Path, checksums: bool = True) -> TokenFolder:
    """Open all token files of a folder, each checked as open_tokens() checks one. Raises UserError where one is not
    sound, or was made with another tokenizer than the first."""
    paths = sorted(folder.glob("*.bin"))
    if not paths:
        raise UserError(f"The folder {shown_path(folder)} holds no token files (*.bin). Name another one.")
    shards = tuple(open_tokens(path, checksums, may_be_empty=True) for path in paths)
    first = shards[0].facts
    for shard in shards:
        for name in ("tokenizer_sha256", "vocab_size"):
            if shard.facts[name] != first[name]:
                raise UserError(
                    f"{shown_path(shard.path)} was made with another tokenizer than {shown_path(paths[0])} in the same "
                    "folder. Prepare them with one tokenizer, or put them into folders of their own."
                )
    names = ("tokens", "documents", "utf8_bytes", "unknown_characters")
    facts = first | {name: sum(shard.facts.get(name, 0) for shard in shards) for name in names}
    if not facts["tokens"]:
        raise UserError(f"The token files of {shown_path(folder)} hold no tokens. Name another folder.")
    facts["sha256"] = hashlib.sha256("".join(shard.facts["sha256"] for shard in shards).encode()).hexdigest()
    return TokenFolder(folder, facts, None, shards)


def open_tokens(path: Path, checksums: bool = True, may_be_empty: bool = False) -> TokenFile:
    """Open a token file after comparing all of it with its sidecar, checksum included: 0.6 seconds a gigabyte. A folder
    is opened as the one file that its token files would make, merged in the order of their names.

    Without `checksums` the bytes are not read, only counted: for a process beside one that reads them. Raises UserError
    where a file and its sidecar disagree, or one is missing, or where it has no tokens, as a share of a corpus may.
    """
    path = Path(path)
    if path.is_dir():
        return open_shards(path, checksums)
    again = "Run scripts/prepare_dataset.py (characters) or scripts/prepare_dataset_bpe.py (BPE)"
    if not path.is_file():
        raise UserError(f"There is no token file {shown_path(path)}. {again}.")
    try:
        facts = json.loads(sidecar(path).read_text("utf-8"))
        if facts["format_version"] != FORMAT_VERSION:
            raise UserError(f"{shown_path(sidecar(path))} has format version {facts['format_version']}. {again} again.")
        kinds = dict.fromkeys(("tokens", "utf8_bytes", "documents", "vocab_size"), int)
        kinds |= dict.fromkeys(("tokenizer_sha256", "sha256"), str)
        for name, kind in kinds.items():
            below = "" if kind is str else -1 if facts["tokens"] == 0 else 0  # what each must be above
            if type(facts[name]) is not kind or facts[name] <= below:
                raise ValueError(f"{name} is {facts[name]!r}")
    except FileNotFoundError:
        raise UserError(f"{shown_path(path)} has no {sidecar(path).name} beside it. {again} again.") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{shown_path(sidecar(path))} is damaged ({error!r}). {again} again."[:600]) from None
    if path.stat().st_size != 2 * facts["tokens"]:
        raise UserError(
            f"{shown_path(path)} has {path.stat().st_size:,} bytes and should have {2 * facts['tokens']:,}, "
            f"two for each of its {facts['tokens']:,} tokens. {again} again."
        )
    if not facts["tokens"] and not may_be_empty:
        raise UserError(f"{shown_path(path)} holds no tokens. Join it with the other shares, or prepare more text.")
    file = open(path, "rb")  # noqa: SIM115 (the TokenFile keeps it open)
    if not checksums:
        return TokenFile(path, facts, file)
    sha256, largest = read_through(file)
    if sha256 != facts["sha256"] or largest >= facts["vocab_size"]:
        file.close()
        raise UserError(f"{shown_path(path)} is damaged: it is not the file that its sidecar describes. {again} again.")
    return TokenFile(path, facts, file)


def read_through(file: BinaryIO) -> tuple[str, int]:
    """The SHA-256 and the largest id of an open token file."""
    digest, largest, size = hashlib.sha256(), 0, os.fstat(file.fileno()).st_size
    name = f"checking {Path(file.name).name}"
    with tqdm(desc=name, total=size, unit="B", unit_scale=True, delay=2) as progress:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            largest = max(largest, int(np.frombuffer(chunk, "<u2").max()))
            progress.update(len(chunk))
    return digest.hexdigest(), largest


def open_bare_tokens(path: Path, vocab_size: int) -> TokenFile:
    """Open a token file without a sidecar, raw little-endian uint16, such as nanoGPT's prepare.py writes. What cannot
    be counted in it, documents and bytes of text, is 0. Raises UserError where it is missing or has larger ids."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{shown_path(path)} is a folder, and bare ids (--tokenizer none) are one file: name that.")
    if not path.is_file():
        raise UserError(f"There is no token file {shown_path(path)}. Name one with --train-file and --val-file.")
    size = path.stat().st_size
    if size == 0 or size % 2:
        raise UserError(f"{shown_path(path)} has {size:,} bytes: it is empty, or not one of ids of two bytes (uint16).")
    file = open(path, "rb")  # noqa: SIM115 (the TokenFile keeps it open)
    sha256, largest = read_through(file)
    if largest >= vocab_size:
        file.close()
        raise UserError(
            f"{shown_path(path)} holds the id {largest:,}, so --vocab-size must be {largest + 1:,} or more, and it is "
            f"{vocab_size:,}."
        )
    facts = {"tokens": size // 2, "utf8_bytes": 0, "documents": 0, "vocab_size": vocab_size, "sha256": sha256}
    return TokenFile(path, {**facts, "source": path.name}, file)


def draw_starts(n_tokens: int, block_size: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Where the sequences of a training step begin in the token file: (B, 1) int64, at random.

    A pure function of (seed, step), so a resumed run sees the very batches that it would have seen, with no state to
    save. Needs more than block_size tokens.
    """
    return np.random.default_rng((seed, step)).integers(0, n_tokens - block_size, size=(batch_size, 1))


def draw_batch(
    tokens: np.ndarray, block_size: int, batch_size: int, seed: int, step: int, rows: slice = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the training batch of a step, or some rows of it: windows of the token file at draw_starts().

    Returns (idx, targets), both (B, T) int64, targets being idx one token later.
    """
    starts = draw_starts(len(tokens), block_size, batch_size, seed, step)[rows]
    window = tokens[starts + np.arange(block_size + 1)].astype(np.int64)  # (B, T + 1), one indexing operation
    return window[:, :-1], window[:, 1:]


def blocks_in_order(
    data: TokenFile, block_size: int, batch_size: int, every: int = 1, rank: int = 0, size: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (idx, targets) batches that cover a file once in non-overlapping blocks: each token but the first is a
    target exactly once. The last block is as short as what is left, in a batch of its own. Of these batches, the first
    of every `every` is taken.

    Of `size` processes, each takes the turns of its rank; all get as many batches, at the end perhaps an empty one.
    """
    whole = (len(data) - 1) // block_size  # blocks of full length
    firsts = range(0, whole, batch_size * every)
    spans = [(first * block_size, min(first + batch_size, whole) * block_size) for first in firsts]
    if whole * block_size < len(data) - 1 and (every == 1 or whole == 0):
        spans.append((whole * block_size, len(data) - 1))
    spans += [(0, 0)] * (-len(spans) % size)
    for start, end in spans[rank::size]:
        window = data.tokens[start : end + 1].astype(np.int64)
        T = min(block_size, max(1, end - start))
        yield window[:-1].reshape(-1, T), window[1:].reshape(-1, T)
