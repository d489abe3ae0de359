"""Byte-pair encoding at the speed of numpy: cut text into words by arithmetic on its bytes, look known words up.

Merges never cross the words that GPT-2's pattern cuts a text into, so the ids of a text are those of its words, one
after the other, and a word that was seen before needs no merging again. Source code repeats itself: of a megabyte of
Python nearly all words are known from the megabytes before. So each distinct word goes once through the `tokenizers`
library, and the rest is arrays: where words begin, which of them are the same, where the ids of each are kept.

    import os END import sys END   ->   words import| os|END|import| sys|END, distinct ones 0 1 2 0 3 2   ->   ids

The pattern (Radford et al. 2019, as in the library's ByteLevel) tries, at each place, from left to right:

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

For ASCII this is a rule about neighbours, see word_starts(). A stretch with other characters goes to the library whole.
"""

import threading
from collections.abc import Iterator
from itertools import repeat

import numpy as np
import pyarrow as pa

END = 0xFF  # the byte that stands behind every document: no byte of UTF-8 is 255

BLOCK = 1 << 19  # bytes worked on at once: few for the caches, many for threads, which meet between operations

WORD_BLOCK = 1 << 21  # the same where words are told apart: enough that most of them are there more than once

LETTER, DIGIT, OTHER, HIGH, SPACE, BLANK, STOP = 1, 2, 3, 4, 8, 9, 16  # HIGH: not ASCII; BLANK: the space character

KIND = bytearray([OTHER] * 128 + [HIGH] * 127 + [STOP])  # of each byte

KIND[ord("A") : ord("Z") + 1] = KIND[ord("a") : ord("z") + 1] = bytes([LETTER] * 26)

KIND[ord("0") : ord("9") + 1] = bytes([DIGIT] * 10)

KIND[9:14] = bytes([SPACE] * 5)

KIND[ord(" ")] = BLANK

WHITE = b" \t\n\v\f\r"

APOSTROPHE = ord("'")

SUFFIX = np.zeros(256, np.uint8)  # 's 't 'm 'd are words of one letter; r, v and l need a second one

SUFFIX[list(b"stmd")] = 1

SUFFIX[list(b"rvl")] = list(b"eel")


def word_starts(data: bytes) -> np.ndarray:
    """Where the words of a text begin, (words,) int64, the text being documents with an END behind each.

    For ASCII, a word begins
    - where the kind changes to letters, digits or others, and no blank stands before;
    - at the first of several white characters, and at the last one if something else follows it: a blank belongs to the
      word behind it;
    - behind a word that is an apostrophe and a suffix: where such a word begins, the pattern prefers it.
    From the white character before to the next one behind it, a word with a character that is not ASCII stays whole,
    and so do its neighbours in between: no word of the pattern crosses these two borders, whatever stands between.
    """
    size = len(data)
    text = np.frombuffer(data + b"\0\0", np.uint8)  # so that one can look two bytes ahead
    kind = np.zeros(size + 1, np.uint8)
    kind[:size] = np.frombuffer(data.translate(bytes(KIND)), np.uint8)
    kind[size] = STOP  # a block ends with END, or where a white character follows
    previous = np.zeros(size, np.uint8)
    previous[1:] = kind[: size - 1]
    white = (kind & SPACE) != 0
    changed = kind[:size] != previous
    at_edge = ((previous & SPACE) == 0) | ~white[1:] & (kind[1:] != STOP)  # the first or last of white characters
    starts = np.zeros(size + 4, bool)
    starts[:size] = white[:size] & at_edge | ~white[:size] & changed & (previous != BLANK) | (kind[:size] == STOP)

    # --- an apostrophe and a suffix -----------------------------------------------------------------------------------
    quotes = np.flatnonzero(starts[:size] & (text[:size] == APOSTROPHE))
    suffix = SUFFIX[text[quotes + 1]]
    for length, found in ((2, suffix == 1), (3, (suffix > 1) & (text[quotes + 2] == suffix))):
        starts[quotes[found] + 1] = False
        starts[quotes[found] + length] = True

    # --- stretches that are not ASCII ---------------------------------------------------------------------------------
    high = np.flatnonzero(kind[:size] == HIGH)
    if len(high):
        borders = np.flatnonzero(safe_borders(kind[:size], previous))
        stretch = np.unique(np.searchsorted(borders, high, "right"))
        for i in stretch.tolist():
            begin = borders[i - 1] if i else 0
            starts[begin + 1 : borders[i] if i < len(borders) else size] = False
    if size:
        starts[0] = True
    return np.flatnonzero(starts[:size])


def safe_borders(kind: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """Where a text may be cut without a change to its words: before an END, behind one, and where white characters
    begin. The pattern looks ahead only from white characters, and never back."""
    return ((kind & SPACE) != 0) & (previous < HIGH) | (kind == STOP) | (previous == STOP)


def blocks(data: bytes, size: int) -> Iterator[bytes]:
    """Cut a text (documents with an END behind each) into blocks of about `size` bytes, its words left whole."""
    begin = 0
    while len(data) - begin > size and (cut := next_border(data, begin, size)):
        yield data[begin:cut]
        begin = cut
    yield data[begin:] if begin else data


def next_border(data: bytes, begin: int, size: int) -> int:
    """The last border up to `size` bytes behind begin, or one as near behind as there is; 0 if there is none."""
    while True:
        end = min(begin + size, len(data))
        for tail in (4096, size):  # it is seldom far from the end
            if cut := last_border(data, max(begin, end - tail), end):
                return cut
        if end == len(data):
            return 0
        size *= 4


def last_border(data: bytes, start: int, end: int) -> int:
    """The last place inside data[start:end] where it may be cut without a change to its words; 0 if there is none."""
    kind = np.frombuffer(data[start:end].translate(bytes(KIND)), np.uint8)
    found = np.flatnonzero(safe_borders(kind[1:], kind[:-1]))
    return start + int(found[-1]) + 1 if len(found) else 0


# --- words to ids -----------------------------------------------------------------------------------------------------

WORDS = 500_000  # remembered at most, with their ids: about 80 MB

LONGEST = 256  # bytes of a word that is remembered

TOGETHER = 200  # new words that the library gets as one text


def distinct_words(data: bytes) -> tuple[list[bytes], np.ndarray]:
    """The different words of a block, and for each of its words which of these it is, (words,) int32."""
    starts, begin = [], 0
    for block in blocks(data, BLOCK):
        starts.append(word_starts(block) + begin)
        begin += len(block)
    offsets = np.append(np.concatenate(starts), begin).astype(np.int32)
    array = pa.Array.from_buffers(pa.binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    encoded = array.dictionary_encode()  # a hash table in C++, which compares the bytes
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


class WordEncoder:
    """Encodes documents with a BPE tokenizer, to the very ids that the `tokenizers` library gives.

    Several threads may use one encoder: what one of them has learned, all know. It remembers up to WORDS words.
    """

    def __init__(self, tokenizer):
        self.library, self.lock = tokenizer.library, threading.Lock()
        self.newline = self.library.encode("\n", add_special_tokens=False).ids[0]
        # Where the ids of a word are in self.ids, and how many: place << 32 | number.
        self.known: dict[bytes, int] = {bytes([END]): 1}
        self.ids, self.used = np.array([tokenizer.end_of_text_id], np.uint16), 1

    def encode(self, data: bytes) -> Iterator[np.ndarray]:
        """Yield the ids of a text, (tokens,) uint16, a piece at a time. The text is documents with an END behind each;
        the end-of-text id stands for it."""
        for block in blocks(data, WORD_BLOCK):
            words, index = distinct_words(block)
            spans = np.array(list(map(self.known.get, words, repeat(-1))), np.int64)
            new = np.flatnonzero(spans < 0)
            ids = self.ids
            if len(new):
                with self.lock:  # another thread may have met the same words just now
                    spans[new], ids = self.learn([words[i] for i in new.tolist()])
            place, number = spans[index] >> 32, spans[index] & 0xFFFFFFFF
            ends = np.cumsum(number)
            # All ids of all words in one step: their places in ids, which go up by one inside a word.
            places = np.repeat(place - ends + number, number) + np.arange(ends[-1] if len(ends) else 0)
            yield ids[places]

    def learn(self, words: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Encode words with the library. Returns (where the ids of each are, the array of ids that they are in)."""
        spans = np.array(list(map(self.known.get, words, repeat(-1))), np.int64)
        new = np.flatnonzero(spans < 0).tolist()
        longest = LONGEST if len(self.known) < WORDS else 0  # of the words to remember
        kept = [i for i in new if len(words[i]) <= longest]
        ids, place, number = self.encode_words([words[i] for i in kept])
        spans[kept] = (place + self.used) << 32 | number
        self.ids = append(self.ids, self.used, ids)
        self.used += len(ids)
        self.known.update((words[i], int(spans[i])) for i in kept)
        others = [i for i in new if len(words[i]) > longest]
        if not others:
            return spans, self.ids
        ids, place, number = self.encode_words([words[i] for i in others])
        spans[others] = (place + self.used) << 32 | number
        return spans, np.append(self.ids[: self.used], ids)

    def encode_words(self, words: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(the ids of all words, where those of each begin, how many they are).

        The library is quicker with a text than with its words: words that do not end in white space go to it many at a
        time, a newline behind each, which is a word and a token by itself.
        """
        plain = [i for i, word in enumerate(words) if word[-1] not in WHITE and word.isascii()]
        others = sorted(set(range(len(words))) - set(plain))
        texts = [words[i].decode() for i in others]
        for first in range(0, len(plain), TOGETHER):
            texts.append(b"\n".join([*(words[i] for i in plain[first : first + TOGETHER]), b""]).decode())
        found = [encoding.ids for encoding in self.library.encode_batch_fast(texts, add_special_tokens=False)]
        ids = np.array([token for part in found for token in part], np.uint16)
        counts = np.array([len(part) for part in found[: len(others)]], np.int64)
        ends = np.flatnonzero(ids[counts.sum() :] == self.newline)
        number = np.append(counts, np.diff(ends, prepend=-1) - 1)
        ids = np.delete(ids, ends + counts.sum())
        order = np.array([*others, *plain], np.int64)
        by_word = np.zeros((2, len(words)), np.int64)
        by_word[:, order] = np.cumsum(number) - number, number
        return ids, *by_word


class WordCounter:
    """Counts the distinct words of documents."""

    def __init__(self):
        self.rows: dict[bytes, int] = {}
        self.counts = np.zeros(0, np.int64)

    def add(self, data: bytes) -> None:
        """Count the words of a text: documents with an END behind each."""
        for block in blocks(data, WORD_BLOCK):
            words, index = distinct_words(block)
            rows = [self.rows.setdefault(word, len(self.rows)) for word in words]
            counts = np.zeros(len(self.rows), np.int64)
            counts[: len(self.counts)] = self.counts
            counts[rows] += np.bincount(index)
            self.counts = counts


def append(array: np.ndarray, used: int, more: np.ndarray) -> np.ndarray:
    """Write `more` behind the used part of an array, which is replaced by one of twice the size where it is full."""
    if used + len(more) > len(array):
        larger = np.empty(max(2 * len(array), used + len(more)), array.dtype)
        larger[:used] = array[:used]
        array = larger
    array[used : used + len(more)] = more
    return array
