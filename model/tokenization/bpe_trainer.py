"""Learns byte-pair merges, fast. Read bpe_trainer_plain.py first: it is the algorithm, and this file its fast twin.

Two things make it fast. The merges depend only on the distinct words (pre-tokens) and how often each occurs, so words
are counted once: 200 MB of Python have less than 10 MB of distinct ones. And a merge changes only the pairs next to
it, so counts are updated where it happens instead of counted again.

tests/tokenization/test_bpe_trainer.py compares the merges with those of the plain twin and of the `tokenizers` library.
"""

import heapq
from collections import Counter
from collections.abc import Iterable

import numpy as np
import tokenizers
from tokenizers import models
from tqdm import tqdm

from model.tokenization.byte_letters import BYTE_TO_LETTER, LETTER_TO_BYTE
from model.tokenization.pre_tokens import END, cut_blocks, distinct_pre_tokens, join_documents
from model.tokenization.tokenizer import make_bpe_tokenizer
from plumbing.corpus import END_OF_TEXT

COUNTED_BYTES = 1 << 21  # of text, counted at once: large enough that most words occur more than once
NONE = -1  # no neighbour; no longer a token


def train_bpe_tokenizer(documents: Iterable[str], vocab_size: int, progress: bool = False) -> tokenizers.Tokenizer:
    """Learn merges from documents until there are vocab_size ids: <|endoftext|>, the 256 bytes, and one per merge; a
    short text has fewer. Byte-level BPE as in GPT-2 (Radford et al. 2019): merges stay within words, numbers,
    punctuation and white space."""
    vocab = {token: i for i, token in enumerate([END_OF_TEXT, *sorted(LETTER_TO_BYTE)])}
    words = LinkedTokens(count_pre_tokens(documents), np.array([vocab[BYTE_TO_LETTER[byte]] for byte in range(256)]))
    tokens, merges, pairs = {i: token for token, i in vocab.items()}, [], PairCounts()
    pairs.add(*words.pairs())
    with tqdm(desc="merges", total=vocab_size - len(vocab), delay=2, disable=not progress) as shown:
        while len(vocab) < vocab_size and (pair := pairs.pop_most_common()) is not None:
            new, left, right = len(vocab), pair >> 16, pair & 0xFFFF
            merges.append((tokens[left], tokens[right]))
            tokens[new] = tokens[left] + tokens[right]
            vocab[tokens[new]] = new
            gone, fresh = words.merge(pairs.positions.pop(pair), left, right, new)
            pairs.remove(*gone)
            pairs.add(*fresh)
            shown.update()
    return make_bpe_tokenizer(models.BPE(vocab, merges))


def count_pre_tokens(documents: Iterable[str]) -> Counter[bytes]:
    """How often each pre-token occurs in the documents."""
    counts: Counter[bytes] = Counter()
    waiting, size = [], 0
    for document in documents:
        waiting.append(document.encode())
        size += len(waiting[-1])
        if size >= COUNTED_BYTES:
            add_counts(counts, join_documents(waiting))
            waiting, size = [], 0
    add_counts(counts, join_documents(waiting))
    del counts[bytes([END])]
    return split_stretches(counts)


def add_counts(counts: Counter[bytes], text: bytes) -> None:
    for block in cut_blocks(text, COUNTED_BYTES):
        pre_tokens, index = distinct_pre_tokens(block)
        counts.update(dict(zip(pre_tokens, np.bincount(index).tolist(), strict=True)))


def split_stretches(counts: Counter[bytes]) -> Counter[bytes]:
    """The same counts, with the library cutting what pre_tokens.py left whole: stretches that are not ASCII."""
    splitter, split = make_bpe_tokenizer().pre_tokenizer, Counter()
    for stretch, count in counts.items():
        if stretch.isascii():
            split[stretch] += count
        else:
            for letters, _ in splitter.pre_tokenize_str(stretch.decode()):
                split[bytes(LETTER_TO_BYTE[letter] for letter in letters)] += count
    return split


class LinkedTokens:
    """The distinct words as one row of tokens, in arrays, each linked to its neighbours within its word. token,
    previous, next: (bytes of all words,) int32; weight: how often the token's word occurs. A merge puts the new token
    at the position of the left one and unlinks the right one."""

    def __init__(self, counts: Counter[bytes], byte_ids: np.ndarray):
        text = np.frombuffer(b"".join(counts), np.uint8)
        lengths = np.fromiter(map(len, counts), np.int64, len(counts))
        ends = np.cumsum(lengths)
        self.token = byte_ids[text].astype(np.int32)
        self.weight = np.repeat(np.fromiter(counts.values(), np.int64, len(counts)), lengths)
        self.next = np.arange(1, len(text) + 1, dtype=np.int32)
        self.next[ends - 1] = NONE
        self.previous = np.arange(-1, len(text) - 1, dtype=np.int32)
        self.previous[ends - lengths] = NONE

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All pairs of neighbours: (their keys, their weights, the positions of their left tokens)."""
        positions = np.flatnonzero(self.next != NONE)
        keys = pair_key(self.token[positions], self.token[self.next[positions]])
        return keys, self.weight[positions], positions

    def merge(self, positions: np.ndarray, left: int, right: int, new: int) -> tuple[tuple, tuple]:
        """Merge a pair of tokens at those of these positions where it still is. Returns (keys, weights, positions) of
        the pairs that are gone, without the merged pair itself, and of those that are new. Where one merge follows
        another, the pair between them is gone once."""
        positions = self.still_there(positions, left, right)
        gone = self.next[positions]
        previous, following, weight = self.previous[positions], self.next[gone], self.weight[positions]
        touches = np.append(following[:-1] == positions[1:], False) if len(positions) else np.zeros(0, bool)
        has_left = (previous != NONE) & ~np.append(False, touches[:-1])[: len(positions)]  # and was not merged just now
        has_right = following != NONE
        right_tokens = self.token[following]
        a, b = previous[has_left], positions[has_right]
        old = np.append(pair_key(self.token[a], left), pair_key(right, right_tokens[has_right]))
        weights = np.append(weight[has_left], weight[has_right])

        self.token[positions], self.token[gone], self.next[positions] = new, NONE, following
        self.previous[following[has_right]] = b
        right_tokens = self.token[following]  # again: some have been merged now
        fresh = np.append(pair_key(self.token[a], new), pair_key(new, right_tokens[has_right]))
        changed = np.append(a, b)
        return (old, weights, changed), (fresh, weights, changed)

    def still_there(self, positions: np.ndarray, left: int, right: int) -> np.ndarray:
        """Those of the positions, sorted, that have the pair. Of aaa, only the first: pairs must not overlap."""
        positions = np.unique(positions[self.token[positions] == left])
        following = self.next[positions]
        positions = positions[(following != NONE) & (self.token[following] == right)]
        if left == right and len(positions) > 1:  # every second one of a run
            starts = np.append(True, self.next[positions[:-1]] != positions[1:])
            index = np.arange(len(positions))
            positions = positions[(index - np.maximum.accumulate(np.where(starts, index, 0))) % 2 == 0]
        return positions


def pair_key(left, right) -> np.ndarray:
    """A pair of ids as one number that sorts as the pair does."""
    return np.asarray(left, np.int64) << 16 | np.asarray(right, np.int64)


def grouped(keys: np.ndarray, weights: np.ndarray, positions: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
    """(key, sum of its weights, its positions) for each distinct key."""
    if not len(keys):
        return []
    order = np.argsort(keys, kind="stable")
    keys, weights, positions = keys[order], weights[order], positions[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    sums = np.add.reduceat(weights, starts)
    return list(zip(keys[starts].tolist(), sums.tolist(), np.split(positions, starts[1:]), strict=True))


class PairCounts:
    """How often each pair occurs, and where it was when it came up: once, because no token is made twice. That is at
    the start, or after the merge that makes one of its tokens."""

    def __init__(self):
        self.count: dict[int, int] = {}
        self.positions: dict[int, np.ndarray] = {}
        self.heap: list[tuple[int, int]] = []  # (-count, pair): the most common first; of several, the lowest ids

    def add(self, keys: np.ndarray, weights: np.ndarray, positions: np.ndarray) -> None:
        for pair, count, where in grouped(keys, weights, positions):
            self.count[pair], self.positions[pair] = count, where
            heapq.heappush(self.heap, (-count, pair))

    def remove(self, keys: np.ndarray, weights: np.ndarray, positions: np.ndarray) -> None:
        for pair, lost, _ in grouped(keys, weights, positions):
            self.count[pair] -= lost  # the heap follows when the pair reaches its top

    def pop_most_common(self) -> int | None:
        while self.heap:
            count, pair = heapq.heappop(self.heap)
            if -count == self.count[pair]:
                return pair
            if self.count[pair]:
                heapq.heappush(self.heap, (-self.count[pair], pair))
        return None
