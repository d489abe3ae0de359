"""Byte-pair encoding of a corpus, fast: each distinct word is encoded once, the rest is table look-ups in numpy.

Merges never cross pre-tokens (words, see pre_tokens.py), so the ids of a text are those of its words, one after the
other. Source code repeats itself: in a megabyte of Python, nearly all words are known from the megabytes before. The
`tokenizers` library encodes the new ones.

    import os END import sys END   ->   words import| os|END|import| sys|END   ->   distinct ones 0 1 2 0 3 2   ->   ids

The plain twin is Tokenizer.encode(), one document at a time. tests/tokenization/test_bpe_encoder.py compares the two on
any text.
"""

import threading
from collections.abc import Iterator
from itertools import repeat

import numpy as np

from model.tokenization.pre_tokens import END, WHITE, cut_blocks, distinct_pre_tokens

WORD_BLOCK = 1 << 21  # bytes per table look-up: large enough that most words occur more than once
MAX_KNOWN = 500_000  # words remembered with their ids: about 80 MB
MAX_LENGTH = 256  # bytes of a word that is remembered
BATCH = 200  # new words that the library gets as one text


class BPEEncoder:
    """Encodes documents with a BPE tokenizer. Threads share one encoder: each uses the words that the others have
    learned."""

    def __init__(self, tokenizer):
        self.library, self.lock = tokenizer.library, threading.Lock()
        self.newline = self.library.encode("\n", add_special_tokens=False).ids[0]
        # The ids of a word are self.ids[start : start + count]; its span is start << 32 | count.
        self.known: dict[bytes, int] = {bytes([END]): 1}
        self.ids, self.used = np.array([tokenizer.end_of_text_id], np.uint16), 1
        self.unknown: dict[str, int] = {}  # characters without an id, as in CharacterEncoder: none

    def encode(self, data: bytes) -> Iterator[np.ndarray]:
        """Yield the ids of a text, (tokens,) uint16, block by block. The text is documents with an END after each; END
        becomes the end-of-text id."""
        for block in cut_blocks(data, WORD_BLOCK):
            words, index = distinct_pre_tokens(block)
            spans = self.known_spans(words)
            new = np.flatnonzero(spans < 0)
            ids = self.ids
            if len(new):
                spans[new], ids = self.learn([words[i] for i in new.tolist()])
            start, count = spans[index] >> 32, spans[index] & 0xFFFFFFFF
            ends = np.cumsum(count)
            # The index into ids of every token: within a word it rises by one.
            positions = np.repeat(start - ends + count, count) + np.arange(ends[-1] if len(ends) else 0)
            yield ids[positions]

    def known_spans(self, words: list[bytes]) -> np.ndarray:
        """The span of each word, (words,) int64; -1 for one that is not known."""
        return np.array(list(map(self.known.get, words, repeat(-1))), np.int64)

    def learn(self, words: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Encode words with the library. Returns (their spans, the array of ids that these index). Threads do so at the
        same time, sometimes with the same word: waiting for each other would take longer."""
        max_length = MAX_LENGTH if len(self.known) < MAX_KNOWN else 0
        kept = [i for i, word in enumerate(words) if len(word) <= max_length]
        others = [i for i, word in enumerate(words) if len(word) > max_length]
        spans = np.zeros(len(words), np.int64)
        ids, spans[kept] = self.encode_words([words[i] for i in kept])
        more, spans[others] = self.encode_words([words[i] for i in others])
        with self.lock:
            spans[kept] += self.used << 32
            self.ids, self.used = append(self.ids, self.used, ids), self.used + len(ids)
            self.known.update((words[i], int(spans[i])) for i in kept)  # last: others see no span without its ids
            ids, used = self.ids, self.used
        if others:
            spans[others] += used << 32
            ids = np.append(ids[:used], more)
        return spans, ids

    def encode_words(self, words: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """(the ids of some words, their spans in these ids). The library is faster with one text than with many words.
        So words that do not end in white space go to it many at a time, with a newline after each, which is a word and
        a token by itself."""
        plain = [i for i, word in enumerate(words) if word[-1] not in WHITE and word.isascii()]
        others = sorted(set(range(len(words))) - set(plain))
        texts = [words[i].decode() for i in others]
        for first in range(0, len(plain), BATCH):
            texts.append(b"\n".join([*(words[i] for i in plain[first : first + BATCH]), b""]).decode())
        encoded = [encoding.ids for encoding in self.library.encode_batch_fast(texts, add_special_tokens=False)]
        ids = np.array([token for tokens in encoded for token in tokens], np.uint16)
        counts = np.array([len(tokens) for tokens in encoded[: len(others)]], np.int64)
        newlines = np.flatnonzero(ids[counts.sum() :] == self.newline)
        ids = np.delete(ids, newlines + counts.sum())
        counts = np.append(counts, np.diff(newlines, prepend=-1) - 1)
        spans = np.zeros(len(words), np.int64)
        spans[np.array([*others, *plain], np.int64)] = (np.cumsum(counts) - counts) << 32 | counts
        return ids, spans


def append(array: np.ndarray, used: int, more: np.ndarray) -> np.ndarray:
    """Write `more` after the used part of an array. Returns the array, or one of twice the size if it was full."""
    if used + len(more) > len(array):
        larger = np.empty(max(2 * len(array), used + len(more)), array.dtype)
        larger[:used] = array[:used]
        array = larger
    array[used : used + len(more)] = more
    return array
