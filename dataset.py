"""What the steps hand to each other: the documents of a corpus file, their split, and token files.

Corpus   UTF-8 text. A line of its own that is exactly <|endoftext|> separates two documents; a file without one is a
         single document, so any text file works.
Tokens   train.bin, val.bin: raw little-endian uint16 ids without a header, the end-of-text id after every document.
         np.memmap("data/train.bin", dtype=np.uint16) opens one. Beside it lies train.bin.json, the sidecar: how many
         tokens, documents and bytes, and which tokenizer made them.

Every file is written under a temporary name and renamed when it is whole. This is the only place that knows the
formats; it takes plain values and imports no script.
"""

import errno
import glob
import hashlib
import itertools
import json
import math
import os
import random
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from config import UserError, shown_path

if os.name == "posix":
    import fcntl
else:
    import msvcrt

END_OF_TEXT = "<|endoftext|>"
MARKER = END_OF_TEXT.encode()
SEPARATOR = b"\n" + MARKER + b"\n"
CHUNK = 1 << 20  # bytes read at once
NO_TEXT = "It holds NUL bytes, as token files and texts in UTF-16 do: name a text in UTF-8."

FORMAT_VERSION = 1
MAX_VOCAB_SIZE = 1 << 16  # what uint16 can count


# --- files that are whole or not there ------------------------------------------------------------------------------


@contextmanager
def whole_file(path: Path, journal=None):
    """Open a binary file that appears under `path` only when the block ends without an error.

    It is written in the same folder as `path`.PROCESS.tmp, flushed to the disk, then renamed: a run that is killed, or
    a disk that fills up, leaves the earlier file as it was. What a killed run left is removed by the next one, or, with
    a journal (pieces.Journal), taken up: the file then opens behind the bytes that the journal vouches for.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a folder, or a device such as /dev/null, which a rename would replace
        raise UserError(f"{shown_path(path)} is not a file that can be replaced. Name another one.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if journal:
        temporary = journal.unfinished(path)
    else:
        remove_abandoned(path)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # no two processes write into the same one
    try:
        with saying_what_is_free(path):
            with open(temporary, "r+b" if temporary.exists() else "wb", buffering=1 << 20) as file:
                hold(file)  # tells others that its writer lives
                file.seek(file.truncate(journal.size(path) if journal else 0))
                yield file
                flush_to_disk(file)  # the bytes before the name: a rename can reach the disk first
            os.replace(temporary, path)
            if os.name == "posix":  # and then the name itself; Windows cannot open a folder
                folder = os.open(path.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
    finally:
        if not (journal and journal.saved):
            temporary.unlink(missing_ok=True)


def flush_to_disk(file) -> None:
    """Hand what is buffered to the system, and have the system write it."""
    file.flush()
    os.fsync(file.fileno())


def hold(file) -> bool:
    """Lock an open file until it is closed or the process ends, however it ends. False where another holds it.

    True as well on a file system that has no locks: there, nobody is warned.
    """
    try:
        if os.name == "posix":
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass
    return True


def remove_abandoned(path: Path) -> None:
    """Remove the temporary files of `path` whose writers have been killed."""
    for temporary in path.parent.glob(f"{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError):  # gone meanwhile, or held by a system that does not let go of open files
            with open(temporary, "ab") as file:
                abandoned = hold(file)
            if abandoned:
                temporary.unlink()


@contextmanager
def saying_what_is_free(path: Path):
    """Around writing a file: the error of a full or broken disk gets the file's name and the space left, which the
    system does not say."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        free = shutil.disk_usage(path.parent).free / 1e6
        reason = f"{error.strerror}, with {free:,.0f} MB free; what was written before is whole"
        raise OSError(error.errno, reason, shown_path(path)) from None


# --- documents --------------------------------------------------------------------------------------------------------


def read_documents(path: Path) -> Iterator[str]:
    """Yield the documents of a corpus file, one at a time, in order; empty ones are passed over.

    Memory: about one chunk and the longest document. Raises UserError for a missing file and for bytes that are not
    UTF-8, with their offset.
    """
    return (document.decode() for document in read_document_bytes(path))


def read_document_bytes(path: Path, start: int = 0, end: int | None = None, check: bool = True) -> Iterator[bytes]:
    """Yield the documents of a corpus file, or of the bytes between two of its borders, as their bytes.

    As read_documents() otherwise; with check=False, what is not UTF-8 is not noticed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"There is no corpus {shown_path(path)}. Make one with scripts/extract_parquets_to_text.py, "
            "or name any text file with --corpus."
        )
    with open(path, "rb") as file:
        file.seek(start)
        left = (path.stat().st_size if end is None else end) - start
        rest, offset = b"", start  # what is read but not yet cut; where it starts in the file, in bytes
        while True:
            # The chunk grows with a long document, so that this is scanned O(1) times.
            chunk = file.read(min(max(CHUNK, len(rest)), left))
            left -= len(chunk)
            *complete, rest = (rest + chunk).split(SEPARATOR)
            if not chunk:
                complete, rest = [*complete, rest], b""
            for document in complete:
                if check and not document.isascii():
                    decode_text(document, path, offset)
                offset += len(document) + len(SEPARATOR)
                # A marker line at the very start or end of the file, or right behind another one, has no text before
                # or after it, so the separator above does not match it.
                document = document.removeprefix(MARKER + b"\n").removesuffix(b"\n" + MARKER)
                if document and document != MARKER:
                    yield document
            if not chunk:
                return


def find_border(path: Path, position: int) -> int:
    """The first place at or behind a position where the file can be cut between documents: behind a separator, or the
    end of the file."""
    if position <= 0:
        return 0
    with open(path, "rb") as file:
        offset = max(0, min(position, path.stat().st_size) - len(SEPARATOR))
        file.seek(offset)
        rest = b""
        while chunk := file.read(CHUNK):
            found = (rest + chunk).find(SEPARATOR)
            if found >= 0:
                return offset - len(rest) + found + len(SEPARATOR)
            offset += len(chunk)
            rest = (rest + chunk)[-len(SEPARATOR) :]
        return offset


def cut_at_borders(path: Path, start: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut the bytes between two borders of a corpus file into pieces of about `size` bytes: (start, end) of each."""
    while start < end:
        border = min(end, find_border(path, start + size))
        yield start, border
        start = border


def decode_text(data: bytes, path: Path, offset: int = 0) -> str:
    """The text of UTF-8 bytes that were read from a file, at an offset. Raises UserError naming the first bad byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        advice = NO_TEXT if b"\0" in data else "Convert it, for example with: iconv -f latin1 -t utf-8"
        place = f"at byte {offset + error.start:,} (0x{data[error.start]:02x})"
        raise UserError(f"{shown_path(path)} is not UTF-8 {place}. {advice}") from None


def split_at_marker(text: str | bytes) -> list:
    """Cut a text at lines that are exactly <|endoftext|>: "a\\n<|endoftext|>\\nb" gives ["a", "b"]."""
    marker, newline = (END_OF_TEXT, "\n") if isinstance(text, str) else (MARKER, b"\n")
    if marker not in text:
        return [text]
    documents: list[list] = [[]]
    for line in text.split(newline):
        if line == marker:
            documents.append([])
        else:
            documents[-1].append(line)
    return [newline.join(lines) for lines in documents]


def write_documents(path: Path, documents: Iterable[str | bytes]) -> tuple[int, int]:
    """Write documents to a corpus file. Returns (documents, bytes of the file).

    Empty documents are left out, and one that holds a line <|endoftext|> becomes two. Refuses to write an empty file.
    """
    count = size = 0
    with whole_file(path) as file:
        for document in documents:
            for part in filter(None, split_at_marker(document)):
                data = part.encode() if isinstance(part, str) else part
                size += file.write((SEPARATOR if count else b"") + data)
                count += 1
        if not count:
            raise UserError(f"Nothing to write to {shown_path(path)}: no document was found in the input.")
    return count, size


def sample_documents(path: Path, seed: int, **wanted) -> Iterator[str]:
    """sample_document_bytes() as text."""
    return (document.decode() for document in sample_document_bytes(path, seed, **wanted))


def sample_document_bytes(path: Path, seed: int, *, megabytes=None, documents=None, fraction=None) -> Iterator[bytes]:
    """Yield a random subset of a corpus: whole documents, in their order, the same ones for the same seed.

    Give one of: megabytes (of 1,000,000 bytes, at most), documents (their number), fraction (of the documents, 0 to 1).
    Nothing comes where no document is small enough. Raises UserError where the corpus holds none.
    Two passes, constant memory: the first counts, the second takes each document with the probability (still wanted) /
    (still to come), which is Knuth's selection sampling (The Art of Computer Programming, volume 2, 3.4.2,
    algorithm S), with bytes in place of documents where a size is asked for.
    """
    by_size = megabytes is not None
    to_come = sum(len(document) if by_size else 1 for document in read_document_bytes(path))
    if not to_come:
        raise UserError(f"{shown_path(path)} holds no document.")
    if by_size:
        wanted = int(megabytes * 1e6)
    else:
        wanted = documents if documents is not None else round(fraction * to_come)
    rng = random.Random(seed)  # noqa: S311 (a sample to repeat, not a secret)
    for document in read_document_bytes(path, check=False):  # the first pass has checked it
        cost = len(document) if by_size else 1
        if rng.random() * to_come < wanted and cost <= wanted:
            wanted -= cost
            yield document
            if not wanted:
                return
        to_come -= cost


def only_document(path: Path) -> bytes | None:
    """The document of a corpus that has just one, and None where it has more. Raises UserError where it has none."""
    found = sum(1 for _ in itertools.islice(read_document_bytes(path, check=False), 2))
    if not found:
        raise UserError(f"{shown_path(path)} holds no document.")
    return next(read_document_bytes(path)) if found == 1 else None


def cut_in_two(document: bytes, val_fraction: float) -> dict[str, bytes]:
    """{"train": its first int((1 - val_fraction) * characters) characters, "val": the rest}, as nanoGPT cuts tiny
    Shakespeare."""
    whole = np.frombuffer(document, np.uint8)
    chunks = [whole[i : i + CHUNK] for i in range(0, len(whole), CHUNK)]
    counts = [int(np.count_nonzero((chunk & 0xC0) != 0x80)) for chunk in chunks]  # bytes that begin a character
    before = int((1 - val_fraction) * sum(counts))
    cut = 0
    for chunk, count in zip(chunks, counts, strict=True):
        if before < count:
            cut += int(np.flatnonzero((chunk & 0xC0) != 0x80)[before])
            break
        before, cut = before - count, cut + len(chunk)
    return {"train": document[:cut], "val": document[cut:]}


def part_of(document: bytes, val_fraction: float) -> str:
    """ "train" or "val", by the hash of a document alone: it stays when the corpus grows or is shuffled, and the same
    text is never in both parts."""
    return "val" if hash_fraction(document) < val_fraction else "train"


def hash_fraction(text: str | bytes) -> float:
    """A number in [0, 1) that follows from the text alone and is evenly spread over texts."""
    data = text.encode() if isinstance(text, str) else text
    return int.from_bytes(hashlib.blake2b(data, digest_size=6).digest(), "big") / 2**48


def hashes_of(documents: Iterable[bytes]) -> np.ndarray:
    """A number of 64 bits for each document, (documents,) uint64: the same for the same bytes."""
    digests = (hashlib.blake2b(document, digest_size=8).digest() for document in documents)
    return np.frombuffer(b"".join(digests), "<u8")


class Seen:
    """Hashes of the documents so far, 64 bits each, in sorted arrays of which each is much longer than the next: at
    most 24 bytes a document while two of them are being joined. Two different documents are taken for one with a
    chance of one in a million among 6 million documents."""

    def __init__(self):
        self.arrays: list[np.ndarray] = []

    def new(self, hashes: np.ndarray) -> np.ndarray:
        """Which of these are here for the first time, (hashes,) bool; from now on they are known."""
        fresh = np.zeros(len(hashes), bool)
        values, first = np.unique(hashes, return_index=True)
        known = np.zeros(len(values), bool)
        for array in self.arrays:
            places = np.minimum(np.searchsorted(array, values), len(array) - 1)
            known |= array[places] == values
        fresh[first[~known]] = True
        self.arrays.append(values[~known])
        while len(self.arrays) > 1 and len(self.arrays[-1]) * 4 > len(self.arrays[-2]):
            joined = np.concatenate([self.arrays.pop(), self.arrays.pop()])
            joined.sort()
            self.arrays.append(joined)
        self.arrays = [array for array in self.arrays if len(array)]
        return fresh


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
