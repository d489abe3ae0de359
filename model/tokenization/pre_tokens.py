"""Cuts text into pre-tokens (words) at the speed of numpy. Merges never cross them, so BPE works on each by itself.

GPT-2's pattern defines them (Radford et al. 2019). It matches at each position, from left to right:

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

    "import os\\n    x"   ->   "import", " os", "\\n   ", " x"

The plain twin is one line, pre_tokenizers.ByteLevel in make_bpe_tokenizer(). For ASCII the pattern is a rule about
neighbouring bytes, which pre_token_starts() computes for a whole block at once. A stretch with other characters stays
in one piece, and the library cuts it. tests/tokenization/test_bpe_encoder.py compares the two.

Text comes here as bytes: documents with the byte END after each. No byte of UTF-8 is 255.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

END = 0xFF
WHITE = b" \t\n\v\f\r"
BLOCK = 1 << 19  # bytes per numpy operation: small enough for the caches, large enough for threads to be worth it

# Classes of bytes. The bit SPACE is set in both classes of white space; BLANK is the space character itself.
LETTER, DIGIT, OTHER, NOT_ASCII, SPACE, BLANK, STOP = 1, 2, 3, 4, 8, 9, 16
BYTE_CLASS = bytearray([OTHER] * 128 + [NOT_ASCII] * 127 + [STOP])
BYTE_CLASS[ord("A") : ord("Z") + 1] = BYTE_CLASS[ord("a") : ord("z") + 1] = bytes([LETTER] * 26)
BYTE_CLASS[ord("0") : ord("9") + 1] = bytes([DIGIT] * 10)
BYTE_CLASS[9:14] = bytes([SPACE] * 5)
BYTE_CLASS[ord(" ")] = BLANK

# What follows an apostrophe in 's 't 'm 'd is 1; in 're 've 'll it is the second letter.
SUFFIX = np.zeros(256, np.uint8)
SUFFIX[list(b"stmd")] = 1
SUFFIX[list(b"rvl")] = list(b"eel")


def join_documents(documents: Iterable[bytes]) -> bytes:
    """One text, with an END after each document, as the encoders take it."""
    return bytes([END]).join([*documents, b""])


def byte_classes(data: bytes) -> np.ndarray:
    return np.frombuffer(data.translate(BYTE_CLASS), np.uint8)


def pre_token_starts(data: bytes) -> np.ndarray:
    """The offsets where the pre-tokens of a text start, (pre-tokens,) int64.

    For ASCII, a pre-token starts
    - where the class changes to letters, digits or others, unless a blank comes before: it belongs to them;
    - at the first of several white characters, and at the last one if anything but white space follows;
    - after a pre-token that is an apostrophe and a suffix, which the pattern tries first.
    A stretch with a character that is not ASCII stays whole, up to the safe borders around it.
    """
    size = len(data)
    classes = np.append(byte_classes(data), np.uint8(STOP))  # a block ends with END, or before a white character
    here, white = classes[:size], (classes & SPACE) != 0
    before = np.zeros(size, np.uint8)
    before[1:] = here[:-1]
    at_edge = ((before & SPACE) == 0) | ~white[1:] & (classes[1:] != STOP)  # the first or last of white characters
    starts = np.zeros(size + 4, bool)  # a suffix at the end reaches beyond
    starts[:size] = white[:size] & at_edge | ~white[:size] & (here != before) & (before != BLANK) | (here == STOP)
    split_suffixes(data, starts)
    join_stretches(here, before, starts)
    starts[:1] = True
    return np.flatnonzero(starts[:size])


def split_suffixes(data: bytes, starts: np.ndarray) -> None:
    text = np.frombuffer(data + b"\0\0", np.uint8)  # so that one can look two bytes ahead
    quotes = np.flatnonzero(starts[: len(data)] & (text[: len(data)] == ord("'")))
    suffix = SUFFIX[text[quotes + 1]]
    for length, found in ((2, suffix == 1), (3, (suffix > 1) & (text[quotes + 2] == suffix))):
        starts[quotes[found] + 1] = False
        starts[quotes[found] + length] = True


def join_stretches(classes: np.ndarray, before: np.ndarray, starts: np.ndarray) -> None:
    """Remove the starts between two safe borders with a character in between that is not ASCII."""
    not_ascii = np.flatnonzero(classes == NOT_ASCII)
    if not len(not_ascii):
        return
    borders = np.flatnonzero(safe_borders(classes, before))
    for i in np.unique(np.searchsorted(borders, not_ascii, "right")).tolist():
        begin = borders[i - 1] if i else 0
        starts[begin + 1 : borders[i] if i < len(borders) else len(classes)] = False


def safe_borders(classes: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Where a text can be cut without a change to its pre-tokens: before and after an END, and where white characters
    start after ASCII. The pattern looks ahead only from white characters, and never back."""
    return ((classes & SPACE) != 0) & (before < NOT_ASCII) | (classes == STOP) | (before == STOP)


def cut_blocks(data: bytes, size: int) -> Iterator[bytes]:
    """Cut a text into blocks of about `size` bytes, at safe borders."""
    begin = 0
    while len(data) - begin > size and (cut := next_border(data, begin, size)):
        yield data[begin:cut]
        begin = cut
    yield data[begin:] if begin else data


def next_border(data: bytes, begin: int, size: int) -> int:
    """The last safe border at most `size` bytes after begin, else the first one after that; 0 if there is none."""
    while True:
        end = min(begin + size, len(data))
        for tail in (4096, size):  # it is usually close to the end
            start = max(begin, end - tail)
            classes = byte_classes(data[start:end])
            found = np.flatnonzero(safe_borders(classes[1:], classes[:-1]))
            if len(found):
                return start + int(found[-1]) + 1
        if end == len(data):
            return 0
        size *= 4


def distinct_pre_tokens(data: bytes) -> tuple[list[bytes], np.ndarray]:
    """The different pre-tokens of a text, and for each of its pre-tokens which one it is, (pre-tokens,) int32."""
    starts, begin = [], 0
    for block in cut_blocks(data, BLOCK):
        starts.append(pre_token_starts(block) + begin)
        begin += len(block)
    offsets = np.append(np.concatenate(starts), begin).astype(np.int32)
    array = pa.Array.from_buffers(pa.binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    encoded = array.dictionary_encode()  # a hash table in C++
    # Not by to_numpy(), for which Arrow imports pandas, if that is installed: half a second.
    return encoded.dictionary.to_pylist(), np.frombuffer(encoded.indices.buffers()[1], np.int32, len(array))
