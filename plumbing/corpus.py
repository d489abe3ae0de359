"""The corpus file: reading and writing its documents, sampling them, and splitting them into training and validation.

A corpus is UTF-8 text. A line that is exactly <|endoftext|> separates two documents, so a file without one is a single
document, and any text file works. Empty documents are ignored.
"""

import functools
import hashlib
import os
import random
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import compress
from pathlib import Path

import numpy as np

from plumbing.errors import UserError
from plumbing.files import CHUNK, whole_file
from plumbing.inputs import Unchanged
from plumbing.text import quoted_path, shown_path

END_OF_TEXT = "<|endoftext|>"
MARKER = END_OF_TEXT.encode()
SEPARATOR = b"\n" + MARKER + b"\n"
MARKER_WITH_CR = re.compile(rb"(?:^|[\r\n])" + re.escape(MARKER) + rb"\r")
MEND = (  # LF for line ends, and no byte order mark
    'python -c "import pathlib, sys; p = pathlib.Path(sys.argv[1]); '
    "p.write_text(p.read_text('utf-8-sig'), 'utf-8', newline='\\n')\" "
)
NO_TEXT = "It holds NUL bytes, as token files and UTF-16 texts do. Name a text in UTF-8."


def read_documents(path: Path) -> Iterator[str]:
    """Yield the documents of a corpus file in order, in memory of about the longest one. Raises UserError for a missing
    file and for bytes that are not UTF-8, with their offset."""
    return (document.decode() for document in read_document_bytes(path))


def read_document_bytes(path: Path, start: int = 0, end: int | None = None, check: bool = True) -> Iterator[bytes]:
    """read_documents() as bytes, of the whole file or of a chunk of it (see cut_into_chunks). check=False skips the
    check for UTF-8."""
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"There is no corpus {shown_path(path)}. Make one with scripts/extract_parquets_to_text.py, "
            "or name any text file with --corpus."
        )
    if check and not start:
        note_windows_text(path)
    with open(path, "rb") as file:
        file.seek(start)
        left = (os.fstat(file.fileno()).st_size if end is None else end) - start
        rest, offset = b"", start  # bytes read but not yet split, and their offset in the file
        while True:
            # Reading more at once in a long document keeps the number of times that it is scanned constant.
            data = file.read(min(max(CHUNK, len(rest)), left))
            left -= len(data)
            *complete, rest = (rest + data).split(SEPARATOR)
            if not data:
                complete, rest = [*complete, rest], b""
            for document in complete:
                if check and not document.isascii():
                    decode_text(document, path, offset)
                if MARKER + b"\r" in document and MARKER_WITH_CR.search(document):
                    note_windows(path, f"lines {END_OF_TEXT} that end in CR and therefore separate no documents")
                offset += len(document) + len(SEPARATOR)
                # SEPARATOR does not match a marker line at the start or end of the file or right after another one.
                document = document.removeprefix(MARKER + b"\n").removesuffix(b"\n" + MARKER)
                if document and document != MARKER:
                    yield document
            if not data:
                return


@functools.cache  # once per run
def note_windows(path: Path, what: str) -> None:
    """Say on stderr what a corpus has of Windows, and the command that changes it."""
    print(f"note: {shown_path(path)} has {what}. This command changes that:", file=sys.stderr)
    print(f"  {MEND}{quoted_path(path)}", file=sys.stderr)


def note_windows_text(path: Path) -> None:
    """Say it if a corpus starts with a byte order mark or has CR LF for line ends, because a model would learn them."""
    with open(path, "rb") as file:
        start = file.read(CHUNK)
    has = {"a byte order mark": start.startswith(b"\xef\xbb\xbf"), "Windows line ends (CR LF)": b"\r\n" in start}
    if found := " and ".join(name for name, there in has.items() if there):
        note_windows(path, f"{found}, which count as characters of the text")


def decode_text(data: bytes, path: Path, offset: int = 0) -> str:
    """Decode UTF-8 that was read from a file at an offset. Raises UserError with the position of the first bad byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        advice = NO_TEXT if b"\0" in data else "Convert it, for example with: iconv -f latin1 -t utf-8"
        position = f"at byte {offset + error.start:,} (0x{data[error.start]:02x})"
        raise UserError(f"{shown_path(path)} is not UTF-8 {position}. {advice}") from None


def split_at_marker(text: bytes) -> list[bytes]:
    """Split a text at lines that are exactly <|endoftext|>: b"a\\n<|endoftext|>\\nb" gives [b"a", b"b"]."""
    if MARKER not in text:
        return [text]
    documents: list[list[bytes]] = [[]]
    for line in text.split(b"\n"):
        if line == MARKER:
            documents.append([])
        else:
            documents[-1].append(line)
    return [b"\n".join(lines) for lines in documents]


def is_cut_at_marker(text: str) -> bool:
    """Whether extraction makes several documents of a text, because it has a line <|endoftext|>."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").encode() if END_OF_TEXT in text else b""
    return len(split_at_marker(lines)) > 1


def write_documents(path: Path, documents: Iterable[str | bytes]) -> tuple[int, int]:
    """Write documents to a corpus file, without empty ones; one that contains a line <|endoftext|> becomes two. Returns
    (number of documents, bytes of the file). Raises UserError if there are none."""
    count = 0
    with whole_file(path) as file:
        for text in documents:
            for document in filter(None, split_at_marker(text.encode() if isinstance(text, str) else text)):
                file.write((SEPARATOR if count else b"") + document)
                count += 1
        if not count:
            raise UserError(f"Nothing to write to {shown_path(path)}: no document was found in the input.")
        return count, file.tell()


def find_border(path: Path, position: int) -> int:
    """The first offset at or after a position where the file can be cut between documents: the end of a separator, or
    of the file."""
    if position <= 0:
        return 0
    with open(path, "rb") as file:
        offset = max(0, min(position, path.stat().st_size) - len(SEPARATOR))
        file.seek(offset)
        rest = b""
        while data := file.read(CHUNK):
            found = (rest + data).find(SEPARATOR)
            if found >= 0:
                return offset - len(rest) + found + len(SEPARATOR)
            offset += len(data)
            rest = (rest + data)[-len(SEPARATOR) :]
        return offset


def cut_into_chunks(path: Path, start: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of chunks of a corpus file with whole documents, each of about `size` bytes."""
    while start < end:
        border = find_border(path, start + size)
        border = min(border, end) if border > start else end  # the file has become shorter
        yield start, border
        start = border


def sample_documents(path: Path, seed: int, **wanted) -> Iterator[str]:
    return (document.decode() for document in sample_document_bytes(path, seed, **wanted))


def sample_document_bytes(path: Path, seed: int, *, megabytes=None, documents=None, fraction=None) -> Iterator[bytes]:
    """Yield a random subset of a corpus: whole documents in their order, the same ones for the same seed. Give one of:
    megabytes (at most so many, of 1,000,000 bytes), documents (their number), fraction (of the documents, 0 to 1). Each
    document has the same chance; with megabytes, each that is not larger than the sample. Yields nothing if there is
    none. Raises UserError if the corpus has no documents, or changes between the two passes: the first reads the sizes
    of the documents, 8 bytes each, the second takes those that were drawn."""
    with Unchanged(path):
        sizes = np.fromiter(map(len, read_document_bytes(path)), np.int64)
        if not len(sizes):
            raise UserError(f"{shown_path(path)} holds no documents.")
        rng = random.Random(seed)  # noqa: S311 (a sample to repeat, not a secret)
        order = np.argsort(np.fromiter((rng.random() for _ in sizes), float), kind="stable")
        if megabytes is None:
            drawn = order[: int(documents) if documents is not None else round(fraction * len(sizes))]
        else:
            limit = min(int(megabytes * 1e6), int(sizes.sum()))
            small = order[sizes[order] <= limit]
            drawn = small[draw_run(sizes[small], limit, rng)]
        chosen = np.zeros(len(sizes), bool)
        chosen[drawn] = True
        if len(drawn):
            yield from compress(read_document_bytes(path, check=False), chosen.tolist())  # the first pass has checked


def draw_run(sizes: np.ndarray, limit: int, rng: random.Random) -> np.ndarray:
    """Draw neighbours on a ring of sizes, as many as the limit allows: their numbers. Each has the same chance, as none
    would have if sizes were taken one by one until the limit: small ones fit more often.

    From a start, run after run is cut off the ring, each as long as the limit allows. After some laps, a run starts
    where an earlier one did. All runs between the two make whole laps, so each size is in equally many of them: one of
    these runs is drawn."""
    if sizes.sum() <= limit:
        return np.arange(len(sizes))
    ends = np.cumsum(np.concatenate([sizes, sizes]))  # of two laps
    runs, start = {}, 0  # where each run starts: where it ends
    while start not in runs:
        runs[start] = int(np.searchsorted(ends, ends[start] - sizes[start] + limit, side="right"))
        start = runs[start] % len(sizes)
    starts = list(runs)[list(runs).index(start) :]
    start = starts[int(rng.random() * len(starts))]
    return np.arange(start, runs[start]) % len(sizes)


def only_document(path: Path) -> bytes | None:
    """The document of a corpus that has one, None if there are more. Raises UserError if there are none."""
    documents = read_document_bytes(path)
    first = next(documents, None)
    if first is None:
        raise UserError(f"{shown_path(path)} holds no documents.")
    return first if next(documents, None) is None else None


def split_documents(path: Path, val_fraction: float, *chunk: int) -> Iterator[tuple[str, bytes]]:
    """Yield ("train" or "val", document) for each document of a corpus or of a chunk (start, end) of it."""
    for document in read_document_bytes(path, *chunk):
        yield split_of(document, val_fraction), document


def split_of(document: bytes, val_fraction: float) -> str:
    """ "train" or "val", from the hash of a document: it stays the same if the corpus grows or is shuffled, and no text
    is in both splits."""
    return "val" if hash_fraction(document) < val_fraction else "train"


def hash_fraction(text: bytes) -> float:
    """A number in [0, 1) that depends on the text alone and is evenly distributed over texts."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest(), "big") / 2**48


def cut_in_two(document: bytes, val_fraction: float) -> dict[str, bytes]:
    """{"train": the first int((1 - val_fraction) * characters) characters of a document, "val": the rest}, as nanoGPT
    cuts tiny Shakespeare."""
    data = np.frombuffer(document, np.uint8)
    blocks = [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)]
    counts = [int(np.count_nonzero((block & 0xC0) != 0x80)) for block in blocks]  # bytes that begin a character
    before, cut = int((1 - val_fraction) * sum(counts)), 0
    for block, count in zip(blocks, counts, strict=True):
        if before < count:
            cut += int(np.flatnonzero((block & 0xC0) != 0x80)[before])
            break
        before, cut = before - count, cut + len(block)
    return {"train": document[:cut], "val": document[cut:]}


def document_hashes(documents: Iterable[bytes]) -> np.ndarray:
    """A hash of 64 bits for each document, (documents,) uint64."""
    digests = (hashlib.blake2b(document, digest_size=8).digest() for document in documents)
    return np.frombuffer(b"".join(digests), "<u8")


class SeenDocuments:
    """The hashes of the documents so far, in sorted arrays, each much longer than the next: at most 24 bytes per
    document. Among 6 million documents, the chance that two different ones are taken for one is one in a million."""

    def __init__(self):
        self.arrays: list[np.ndarray] = []

    def new(self, hashes: np.ndarray) -> np.ndarray:
        """Which of these hashes are new, (hashes,) bool. From now on they are known."""
        fresh = np.zeros(len(hashes), bool)
        values, first = np.unique(hashes, return_index=True)
        known = np.zeros(len(values), bool)
        for array in self.arrays:
            positions = np.minimum(np.searchsorted(array, values), len(array) - 1)
            known |= array[positions] == values
        fresh[first[~known]] = True
        self.arrays.append(values[~known])
        while len(self.arrays) > 1 and len(self.arrays[-1]) * 4 > len(self.arrays[-2]):
            joined = np.concatenate([self.arrays.pop(), self.arrays.pop()])
            joined.sort()
            self.arrays.append(joined)
        self.arrays = [array for array in self.arrays if len(array)]
        return fresh
