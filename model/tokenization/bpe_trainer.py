"""Learns byte-pair merges, fast. Read bpe_trainer_plain.py first: it is the algorithm, and this file its fast twin.

Two things make it fast. The merges depend only on the distinct words (pre-tokens) and how often each occurs, so words
are counted once: 200 MB of Python have less than 10 MB of distinct ones. And a merge changes only the pairs next to
it, so counts are updated where it happens instead of counted again.

tests/tokenization/test_bpe_trainer.py compares the merges with those of the plain twin and of the `tokenizers` library.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import tokenizers
from tokenizers import models
from tqdm import tqdm

from model.tokenization.byte_letters import BYTE_TO_LETTER, LETTER_TO_BYTE
from model.tokenization.pre_tokens import END, cut_blocks, distinct_pre_tokens, join_documents
from model.tokenization.tokenizer import make_bpe_tokenizer
from plumbing.corpus import END_OF_TEXT
from plumbing.parallel import cores, in_input_order

COUNTED_BYTES = 1 << 21  # of text, counted at once: large enough that most words occur more than once
NONE = -1  # no neighbour; no longer a token


def train_bpe_tokenizer(documents: Iterable[str], vocab_size: int, progress: bool = False) -> tokenizers.Tokenizer:
    """Learn merges from documents until there are vocab_size ids: <|endoftext|>, the 256 bytes, and one per merge; a
    short text has fewer. Byte-level BPE as in GPT-2 (Radford et al. 2019): merges stay within words, numbers,
    punctuation and white space."""
    vocab = {token: i for i, token in enumerate([END_OF_TEXT, *sorted(LETTER_TO_BYTE)])}
    words = LinkedTokens(count_pre_tokens(documents), np.array([vocab[BYTE_TO_LETTER[byte]] for byte in range(256)]))
    tokens, merges, pairs = {i: token for token, i in vocab.items()}, [], PairCounts()
    pairs.add(*words.pairs(np.flatnonzero(words.next != NONE)))
    with tqdm(desc="merges", total=vocab_size - len(vocab), delay=2, disable=not progress) as shown:
        while len(vocab) < vocab_size and (pair := pairs.pop_most_common()) is not None:
            new, left, right = len(vocab), pair >> 16, pair & 0xFFFF
            merges.append((tokens[left], tokens[right]))
            tokens[new] = tokens[left] + tokens[right]
            vocab[tokens[new]] = new
            added = pairs.add(*words.merge(pairs.positions.pop(pair), left, right, new))
            pairs.replace(added, left, right, new)
            shown.update()
    return make_bpe_tokenizer(models.BPE(vocab, merges))


def count_pre_tokens(documents: Iterable[str]) -> Counter[bytes]:
    """How often each pre-token occurs in the documents. Texts are counted on all cores."""
    counts: Counter[bytes] = Counter()
    for _, results in in_input_order(counts_of_blocks, texts_to_count(documents), cores()):
        for block_counts in results:
            counts.update(block_counts)
    del counts[bytes([END])]
    return split_stretches(counts)


def texts_to_count(documents: Iterable[str]) -> Iterator[bytes]:
    """The documents, joined to texts of about COUNTED_BYTES."""
    waiting, size = [], 0
    for document in documents:
        waiting.append(document.encode())
        size += len(waiting[-1])
        if size >= COUNTED_BYTES:
            yield join_documents(waiting)
            waiting, size = [], 0
    yield join_documents(waiting)


def counts_of_blocks(text: bytes) -> Iterator[dict[bytes, int]]:
    for block in cut_blocks(text, COUNTED_BYTES):
        pre_tokens, index = distinct_pre_tokens(block)
        yield dict(zip(pre_tokens, np.bincount(index).tolist(), strict=True))


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

    def pairs(self, positions: np.ndarray) -> tuple[np.ndarray, ...]:
        """The pairs of these tokens with the next ones: (pairs as numbers of 32 bits that sort as the pairs do, their
        weights, the positions)."""
        keys = self.token[positions].astype(np.int64) << 16 | self.token[self.next[positions]]
        return keys, self.weight[positions], positions

    def merge(self, positions: np.ndarray, left: int, right: int, new: int) -> tuple[np.ndarray, ...]:
        """Merge a pair of tokens at those of these positions where it still is. Returns the pairs() that are new.
        Where one merge follows another, the pair between them is new once."""
        positions = self.still_there(positions, left, right)
        gone = self.next[positions]
        previous, following = self.previous[positions], self.next[gone]
        has_left, has_right = previous != NONE, following != NONE
        has_left[1:] &= following[:-1] != positions[1:]  # and was not merged just now
        a, b, following_b = previous[has_left], positions[has_right], following[has_right]
        self.token[positions], self.token[gone], self.next[positions] = new, NONE, following
        self.previous[following_b] = b
        return self.pairs(np.concatenate([a, b]))

    def still_there(self, positions: np.ndarray, left: int, right: int) -> np.ndarray:
        """Those of the positions, sorted, that have the pair. Of aaa, only the first: pairs must not overlap."""
        positions = positions[self.token[positions] == left]
        following = self.next[positions]
        positions = positions[(following != NONE) & (self.token[following] == right)]
        if left == right and len(positions) > 1:  # every second one of a run
            starts = np.append(True, self.next[positions[:-1]] != positions[1:])
            index = np.arange(len(positions))
            positions = positions[(index - np.maximum.accumulate(np.where(starts, index, 0))) % 2 == 0]
        return positions


class PairCounts:
    """How often each pair occurs, and where it was when it came up: once, because no token is made twice. That is at
    the start, or after the merge that makes one of its tokens."""

    def __init__(self):
        self.count: dict[int, int] = {}
        self.positions: dict[int, np.ndarray] = {}  # ascending
        self.heap: list[int] = []  # pair - (count << 32): the most common first; of several, the lowest ids

    def add(self, keys: np.ndarray, weights: np.ndarray, positions: np.ndarray) -> list[tuple[int, int]]:
        """Add pairs that are new: the keys of all their occurrences, with weights and positions. Returns (pair, count)
        for each."""
        if not len(keys):
            return []
        order = keys << 31 | np.arange(len(keys))  # such numbers are sorted faster than an index by its keys
        order.sort()
        keys, order = order >> 31, order & 0x7FFFFFFF
        starts = [0, *((keys[1:] != keys[:-1]).nonzero()[0] + 1).tolist()]
        pairs, counts = keys[starts].tolist(), np.add.reduceat(weights[order], starts).tolist()
        positions = positions[order]
        for pair, count, start, end in zip(pairs, counts, starts, [*starts[1:], len(keys)], strict=True):
            self.count[pair], self.positions[pair] = count, positions[start:end]
            heapq.heappush(self.heap, pair - (count << 32))
        return list(zip(pairs, counts, strict=True))

    def replace(self, added: list[tuple[int, int]], left: int, right: int, new: int) -> None:
        """Reduce the counts of the pairs that those with the token `new` took the place of."""
        for pair, count in added:  # the heap follows when a pair reaches its top
            first, second = pair >> 16, pair & 0xFFFF
            if first == new:
                self.count[right << 16 | (left if second == new else second)] -= count
            else:
                self.count[first << 16 | left] -= count

    def pop_most_common(self) -> int | None:
        while self.heap:
            entry = heapq.heappop(self.heap)
            pair = entry & 0xFFFFFFFF
            count = self.count[pair]
            if entry == pair - (count << 32):
                return pair
            if count:
                heapq.heappush(self.heap, pair - (count << 32))
        return None
