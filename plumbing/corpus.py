"""The corpus file: documents in, documents out, samples of them, and the split into training and validation."""

import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from plumbing.errors import UserError
from plumbing.files import CHUNK, whole_file
from plumbing.text import shown_path

END_OF_TEXT = "<|endoftext|>"

MARKER = END_OF_TEXT.encode()

SEPARATOR = b"\n" + MARKER + b"\n"

NO_TEXT = "It holds NUL bytes, as token files and texts in UTF-16 do: name a text in UTF-8."


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


def split_of(document: bytes, val_fraction: float) -> str:
    """ "train" or "val", by the hash of a document alone: it stays when the corpus grows or is shuffled, and the same
    text is never in both parts."""
    return "val" if hash_fraction(document) < val_fraction else "train"


def hash_fraction(text: str | bytes) -> float:
    """A number in [0, 1) that follows from the text alone and is evenly spread over texts."""
    data = text.encode() if isinstance(text, str) else text
    return int.from_bytes(hashlib.blake2b(data, digest_size=6).digest(), "big") / 2**48


def document_hashes(documents: Iterable[bytes]) -> np.ndarray:
    """A number of 64 bits for each document, (documents,) uint64: the same for the same bytes."""
    digests = (hashlib.blake2b(document, digest_size=8).digest() for document in documents)
    return np.frombuffer(b"".join(digests), "<u8")


class SeenDocuments:
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
