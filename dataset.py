"""Token files: what training reads. Drawing batches from them, opening and checking them, writing them.

A token file such as data/train.bin is raw little-endian uint16 ids without a header, with the end-of-text id after
every document. np.memmap("data/train.bin", dtype=np.uint16) opens one. Its sidecar data/train.bin.json says how many
tokens, documents and bytes of text it has, which tokenizer made it, what it was prepared together with, and its
checksum. A folder of token files can be used wherever a token file can. scripts/prepare_dataset.py writes them,
train.py reads them.
"""

if __name__ == "__main__":
    raise SystemExit("This file is what reads and writes token files, and no script: python train.py trains a model.")

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from plumbing.errors import UserError
from plumbing.files import CHUNK, allow_open_files, checksum, flush_to_disk, only_writer, whole_file
from plumbing.inputs import state_of
from plumbing.text import printable, shown_path

FORMAT_VERSION = 2  # of sidecars; 1 had no checksum
MAX_VOCAB_SIZE = 1 << 16  # uint16 ids
COUNTS = ("tokens", "documents", "utf8_bytes", "unknown_characters")  # in the sidecar


def sidecar(path: Path) -> Path:
    """The description beside a token file: data/train.bin.json for data/train.bin."""
    return path.with_name(path.name + ".json")


@dataclass
class TokenFile:
    """A token file that was checked and stays open, and the facts in its sidecar."""

    path: Path
    facts: dict
    file: BinaryIO
    state: tuple = ()  # of the open file before it was checked: see plumbing.inputs.state_of()

    @property
    def tokens(self) -> np.ndarray:
        """All ids, (tokens,) uint16, read-only. Mapped anew at each use, because the pages touched count as this
        process's memory until the mapping is gone: one that stayed would in the end hold the whole file."""
        return np.memmap(self.file, dtype="<u2", mode="r") if len(self) else np.empty(0, "<u2")

    def __len__(self) -> int:
        return self.facts["tokens"]

    def check_unchanged(self) -> None:
        """Raise UserError if the file's bytes are not those that were checked: it was changed in place."""
        if (state := state_of(self.file)) == self.state:
            return
        self.file.seek(0)
        if state[0] != 2 * len(self) or read_through(self.file)[0] != self.facts["sha256"]:
            raise UserError(f"{shown_path(self.path)} was changed while it was in use. Do not write to it meanwhile.")
        self.state = state  # only its date has changed

    @property
    def tokens_per_byte(self) -> float:
        """Turns bits per token into bits per byte. End-of-text ids have no bytes. NaN if the bytes are unknown."""
        return self.facts["tokens"] / (self.facts["utf8_bytes"] or math.nan)


@dataclass
class TokenFolder(TokenFile):
    """The token files of a folder in the order of their names, used as if they were one file."""

    shards: tuple[TokenFile, ...] = ()

    @property
    def tokens(self) -> "TokenFolder":
        return self

    def check_unchanged(self) -> None:
        for shard in self.shards:
            shard.check_unchanged()

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        """What one array of all ids would give for a slice (of step 1) or an array of indices: uint16."""
        begins = np.cumsum([0, *map(len, self.shards)])
        if isinstance(index, slice):
            start, end, _ = index.indices(len(self))
            spans = [(max(0, start - begin), max(0, end - begin)) for begin in begins[:-1]]
            return np.concatenate([shard.tokens[a:b] for shard, (a, b) in zip(self.shards, spans, strict=True)])
        shard_of = np.searchsorted(begins, index, side="right") - 1
        ids = np.empty(index.shape, np.uint16)
        for i in np.unique(shard_of):
            ids[shard_of == i] = self.shards[i].tokens[index[shard_of == i] - begins[i]]
        return ids


# --- drawing batches --------------------------------------------------------------------------------------------------


def draw_starts(n_tokens: int, block_size: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Random positions in a token file at which the sequences of a training step start: (B, 1) int64. A pure function
    of (seed, step), so a resumed run draws the same batches without any state. Needs more than block_size tokens."""
    return np.random.default_rng((seed, step)).integers(0, n_tokens - block_size, size=(batch_size, 1))


def draw_batch(
    tokens: np.ndarray, block_size: int, batch_size: int, seed: int, step: int, rows: slice = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the training batch of a step, or some rows of it: (inputs, targets), both (B, T) int64. The targets are the
    inputs one token later."""
    starts = draw_starts(len(tokens), block_size, batch_size, seed, step)[rows]
    windows = tokens[starts + np.arange(block_size + 1)].astype(np.int64)  # (B, T + 1), one indexing operation
    return windows[:, :-1], windows[:, 1:]


def blocks_in_order(
    data: TokenFile, block_size: int, batch_size: int, every: int = 1, rank: int = 0, size: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (inputs, targets) batches that cover a file once in non-overlapping blocks, for evaluation: each token but
    the first is a target exactly once. A last, shorter block is a batch of its own. With every=n, one batch in n. Of
    `size` processes, each takes every size-th batch from its rank on; all get as many, the last may be empty."""
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


# --- opening and checking ---------------------------------------------------------------------------------------------

PREPARE = "Run scripts/prepare_dataset.py (characters) or scripts/prepare_dataset_bpe.py (BPE)"


def open_tokens(path: Path, checksums: bool = True, may_be_empty: bool = False) -> TokenFile:
    """Open a token file after comparing all of it with its sidecar, checksum included: 0.6 seconds per GB. A folder is
    opened as the one file that its token files would make, merged in the order of their names. With checksums=False
    the bytes are only counted, not read: for a process beside one that reads them. Raises UserError if a file and its
    sidecar disagree, one is missing, or there are no tokens (as in some shards, for which there is may_be_empty)."""
    if path.is_dir():
        return open_folder(path, checksums)
    if not path.is_file():
        raise UserError(f"There is no token file {shown_path(path)}. {PREPARE}.")
    facts = read_sidecar(path)
    if path.stat().st_size != 2 * facts["tokens"]:
        found, tokens = path.stat().st_size, facts["tokens"]
        sizes = f"{found:,} bytes and should have {2 * tokens:,}, two for each of its {tokens:,} tokens"
        raise UserError(f"{shown_path(path)} has {sizes}. {PREPARE} again.")
    if not facts["tokens"] and not may_be_empty:
        raise UserError(f"{shown_path(path)} holds no tokens. Merge it with the other shards, or prepare more text.")
    file = open(path, "rb")  # noqa: SIM115 (the TokenFile keeps it open)
    state = state_of(file)
    if checksums:
        sha256, largest = read_through(file)
        if sha256 != facts["sha256"] or largest >= facts["vocab_size"]:
            file.close()
            raise UserError(f"{shown_path(path)} is damaged: its sidecar describes another file. {PREPARE} again.")
    return TokenFile(path, facts, file, state)


def read_sidecar(path: Path) -> dict:
    """The facts about a token file. Raises UserError if its sidecar is missing or damaged."""
    try:
        facts = json.loads(sidecar(path).read_text("utf-8"))
        if facts["format_version"] not in (1, FORMAT_VERSION):
            version = facts["format_version"]
            raise UserError(f"{shown_path(sidecar(path))} has format version {version}. {PREPARE} again.")
        least = 0 if facts["tokens"] == 0 else 1
        numbers = ("tokens", "utf8_bytes", "documents", "vocab_size")
        wrong = [name for name in numbers if type(facts[name]) is not int or not least <= facts[name] < 2**63]
        more = {"end_of_text_id": facts["end_of_text_id"], "unknown_characters": facts.get("unknown_characters", 0)}
        wrong += [name for name, value in more.items() if type(value) is not int or not 0 <= value < 2**63]
        wrong += [name for name in ("tokenizer_sha256", "sha256") if type(facts[name]) is not str or not facts[name]]
        pairs = facts.get("pairs", [])
        wrong += [] if type(pairs) is list and all(type(pair) is str for pair in pairs) else ["pairs"]
        if wrong:
            raise ValueError(f"{wrong[0]} is {facts[wrong[0]]!r}")
        if facts["format_version"] == FORMAT_VERSION and facts.pop("crc32") != checksum(facts):
            raise ValueError("its checksum is not that of the rest")
    except FileNotFoundError:
        raise UserError(f"{shown_path(path)} has no {sidecar(path).name} beside it. {PREPARE} again.") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{shown_path(sidecar(path))} is damaged ({error!r}). {PREPARE} again."[:600]) from None
    return facts


def open_folder(folder: Path, checksums: bool = True) -> TokenFolder:
    """Open all token files of a folder. Raises UserError if they were not all made with the same tokenizer."""
    paths = sorted(folder.glob("*.bin"))
    if not paths:
        raise UserError(f"The folder {shown_path(folder)} holds no token files (*.bin). Name another one.")
    allow_open_files(len(paths))
    shards = tuple(open_tokens(path, checksums, may_be_empty=True) for path in paths)
    first = shards[0].facts
    for shard in shards:
        if not same_tokenizer(shard.facts, first):
            raise UserError(
                f"{shown_path(shard.path)} was made with another tokenizer than {shown_path(paths[0])} in the same "
                "folder. Prepare them with one tokenizer, or put them into folders of their own."
            )
    facts = first | {name: sum(shard.facts.get(name, 0) for shard in shards) for name in COUNTS}
    facts |= {"pairs": joined_pairs(shards), "format_version": min(shard.facts["format_version"] for shard in shards)}
    if not facts["tokens"]:
        raise UserError(f"The token files of {shown_path(folder)} hold no tokens. Name another folder.")
    facts["sha256"] = hashlib.sha256("".join(shard.facts["sha256"] for shard in shards).encode()).hexdigest()
    return TokenFolder(folder, facts, None, shards=shards)


def joined_pairs(files: Iterable[TokenFile]) -> list[str]:
    """The pairs (see pair_of) that these files are halves of. Empty if one of them does not say, as older ones."""
    pairs = [data.facts.get("pairs", []) for data in files]
    return sorted({pair for several in pairs for pair in several}) if all(pairs) else []


def check_pair(train: TokenFile, val: TokenFile) -> None:
    """Refuse a training and a validation file of two preparations: a text can be in both. Raises UserError."""
    of_train, of_val = (set(data.facts.get("pairs", [])) for data in (train, val))
    names = f"{shown_path(train.path)} and {shown_path(val.path)}"
    if not (of_train and of_val):
        old = any(data.facts.get("format_version") == 1 for data in (train, val))
        print(f"{names} do not say that they were prepared together. If not, texts to validate on can be in both.")
        if old:
            print("  An older version wrote them, and their sidecars have no checksum. Step 5 again adds both.")
    elif not (of_train <= of_val or of_val <= of_train):  # one shard of several is enough to validate on
        sources = " and ".join(
            f"{data.facts.get('source')} with --val-fraction {data.facts.get('val_fraction')}" for data in (train, val)
        )
        raise UserError(
            f"{names} were not prepared together (from {sources}), so texts to validate on can be in both. {PREPARE} "
            "again, for both."
        )


def same_tokenizer(a: dict, b: dict) -> bool:
    """Whether the facts of two token files name the same tokenizer: the same file, or files that mean the same."""
    names = [name for name in ("tokenizer_sha256", "tokenizer_meaning") if name in a and name in b]
    return a["vocab_size"] == b["vocab_size"] and any(a[name] == b[name] for name in names)


def open_bare_tokens(path: Path, vocab_size: int) -> TokenFile:
    """Open a token file without a sidecar, raw little-endian uint16, such as nanoGPT's prepare.py writes. Its numbers
    of documents and bytes of text are unknown and set to 0. Raises UserError if it is missing or has larger ids."""
    if path.is_dir():
        raise UserError(f"{shown_path(path)} is a folder, and bare ids (--tokenizer none) are one file. Name it.")
    if not path.is_file():
        raise UserError(f"There is no token file {shown_path(path)}. Name one with --train-file and --val-file.")
    size = path.stat().st_size
    if size == 0 or size % 2:
        raise UserError(f"{shown_path(path)} has {size:,} bytes: it is empty, or not one of ids of two bytes (uint16).")
    file = open(path, "rb")  # noqa: SIM115 (the TokenFile keeps it open)
    state = state_of(file)
    check_bare_format(path, file)
    sha256, largest = read_through(file)
    if largest >= vocab_size:
        file.close()
        raise UserError(
            f"{shown_path(path)} holds the id {largest:,}, so --vocab-size must be {largest + 1:,} or more, and it is "
            f"{vocab_size:,}."
        )
    facts = {"tokens": size // 2, "utf8_bytes": 0, "documents": 0, "vocab_size": vocab_size, "sha256": sha256}
    return TokenFile(path, {**facts, "source": path.name}, file, state)


LLM_C = 20240520  # llm.c's files begin with this number, in a header of 256 int32


def check_bare_format(path: Path, file: BinaryIO) -> None:
    """Raise UserError for two formats that could be taken for uint16: llm.c's, and wider integers, in which every
    second number is zero."""
    beginning = file.read(CHUNK)
    file.seek(0)
    cut = path.with_suffix(".ids").name
    if beginning[:4] == LLM_C.to_bytes(4, "little"):
        raise UserError(
            f"{shown_path(path)} has the header of llm.c's token files. Cut it off: tail -c +1025 {path.name} > {cut}"
        )
    ids = np.frombuffer(beginning, "<u2")
    if len(ids) % 2 == 0 and ids.any() and not ids[1::2].any():
        wide = "<i8" if len(ids) % 4 == 0 and not ids[2::4].any() else "<i4"
        raise UserError(
            f"{shown_path(path)} holds ids of {wide[2]} bytes, not two (uint16). Convert it in Python: "
            f'numpy.fromfile("{path.name}", "{wide}").astype("<u2").tofile("{cut}")'
        )


def read_through(file: BinaryIO) -> tuple[str, int]:
    """The SHA-256 and the largest id of an open token file."""
    digest, largest, size = hashlib.sha256(), 0, os.fstat(file.fileno()).st_size
    name = f"checking {printable(Path(file.name).name)}"
    with tqdm(desc=name, total=size, unit="B", unit_scale=True, delay=2) as progress:
        while data := file.read(CHUNK):
            digest.update(data)
            largest = max(largest, int(np.frombuffer(data, "<u2").max()))
            progress.update(len(data))
    return digest.hexdigest(), largest


# --- writing ----------------------------------------------------------------------------------------------------------


class TokenWriter:
    """Appends documents to an open token file and counts them. token_writer() makes one."""

    def __init__(self, file: BinaryIO, vocab_size: int, end_of_text_id: int):
        self.file, self.vocab_size, self.end_of_text_id = file, vocab_size, end_of_text_id
        self.tokens = self.documents = self.utf8_bytes = self.unknown_characters = 0
        self.hash = hashlib.sha256()

    def add(self, ids: np.ndarray, utf8_bytes: int, unknown_characters: int = 0) -> None:
        """Append the ids of one document, which has so many bytes of text, and the end-of-text id."""
        self.extend(np.append(ids, self.end_of_text_id))
        self.count(1, utf8_bytes, unknown_characters)

    def extend(self, ids: np.ndarray) -> None:
        """Append ids, end-of-text ids included. count() adds what they were made from."""
        if len(ids) and int(ids.max()) >= self.vocab_size:
            raise ValueError(f"id {ids.max()} does not fit a vocabulary of {self.vocab_size}")
        data = memoryview(np.ascontiguousarray(ids, "<u2")).cast("B")
        self.file.write(data)
        self.hash.update(data)
        self.tokens += len(ids)

    def count(self, documents: int, utf8_bytes: int, unknown_characters: int) -> None:
        self.documents += documents
        self.utf8_bytes += utf8_bytes
        self.unknown_characters += unknown_characters

    def counts(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in COUNTS}

    def pair_of(self, other: "TokenWriter") -> str:
        """What the sidecars of two files that were prepared together have in common."""
        return hashlib.sha256(self.hash.digest() + other.hash.digest()).hexdigest()[:16]

    def resume(self, counts: dict[str, int]) -> None:
        """Continue a file that already has tokens: read them for the checksum, and count on from `counts`."""
        for name, count in counts.items():
            setattr(self, name, count)
        self.file.seek(0)
        while data := self.file.read(CHUNK):
            self.hash.update(data)


@contextmanager
def token_writer(path: Path, facts: dict, journal=None) -> Iterator[TokenWriter]:
    """Write a token file and its sidecar: yields a TokenWriter. For `journal`, see whole_file(). `facts` goes into the
    sidecar unchanged; vocab_size and end_of_text_id are used here as well. Both files appear if the block ends without
    an error, the sidecar last, so a token file without one is unfinished."""
    if facts["vocab_size"] > MAX_VOCAB_SIZE:
        raise UserError(
            f"The vocabulary has {facts['vocab_size']:,} ids, and token files (uint16) hold {MAX_VOCAB_SIZE:,}. "
            "Train a smaller tokenizer."
        )
    with only_writer(path) if journal is None else nullcontext():  # a journal is the only writer of its outputs
        with whole_file(path, journal) as file:
            writer = TokenWriter(file, facts["vocab_size"], facts["end_of_text_id"])
            yield writer
            flush_to_disk(file)  # a full disk fails here, while the earlier pair is still whole
            remove_sidecars(path)
        facts = {"format_version": FORMAT_VERSION, **facts, **writer.counts(), "sha256": writer.hash.hexdigest()}
        with whole_file(sidecar(path)) as file:
            file.write(json.dumps({**facts, "crc32": checksum(facts)}, indent=2).encode() + b"\n")


def remove_sidecars(*paths: Path) -> None:
    """Remove the sidecars of token files about to be replaced: an old one must not describe a new file."""
    for path in paths:
        sidecar(path).unlink(missing_ok=True)
