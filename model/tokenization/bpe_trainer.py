"""Learning byte-pair merges: the algorithm in the open, and faster than the library's because it counts first.

A merge depends on the distinct words of a text and how often each occurs, not on the text. So the words are counted
once (model/words.py), and the merging is arithmetic on the distinct ones: 200 MB of Python hold less than 10 MB.
The result is, merge for merge, what `tokenizers` learns (tests/test_words.py): it, too, takes the commonest pair of
neighbours, and of several the one with the lowest ids.

    hug 10, pug 5, hugs 5      pairs: u g 20, h u 15, p u 5, g s 5     ->  merge u g
    h ug 10, p ug 5, h ug s 5  pairs: h ug 15, p ug 5, ug s 5          ->  merge h ug

Sennrich et al. 2015, Neural Machine Translation of Rare Words with Subword Units, arXiv:1508.07909, algorithm 1.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import tokenizers
from tokenizers import models
from tqdm import tqdm

from model.tokenization.bpe_encoder import END, WordCounter
from model.tokenization.tokenizer import LETTER_TO_BYTE, LETTERS, byte_pairs
from plumbing.corpus import END_OF_TEXT

TEXT_BYTES = 1 << 22  # counted at once
NONE = -1  # no neighbour; no token any more


def count_words(documents: Iterable[str], cut: Callable[[str], list[bytes]]) -> Counter:
    """How often each word occurs in documents. `cut` cuts a text with other characters than ASCII into words."""
    counter, waiting, size = WordCounter(), [], 0
    for document in documents:
        waiting.append(document.encode())
        size += len(waiting[-1])
        if size >= TEXT_BYTES:
            counter.add(bytes([END]).join([*waiting, b""]))
            waiting, size = [], 0
    counter.add(bytes([END]).join([*waiting, b""]))
    counts: Counter[bytes] = Counter()
    for word, count in zip(counter.rows, counter.counts.tolist(), strict=True):
        if word.isascii():
            counts[word] += count
        elif word != bytes([END]):
            for part in cut(word.decode()):
                counts[part] += count
    return counts


class Neighbours:
    """Distinct words as one row of tokens, each of which knows the ones before and behind it in its word.

    token, before, behind: (bytes of all words,) int32; weight: how often its word occurs. A merge writes the new token
    in the place of the left one and takes the right one out.
    """

    def __init__(self, counts: Counter, byte_ids: np.ndarray):
        text = np.frombuffer(b"".join(counts), np.uint8)
        lengths = np.fromiter(map(len, counts), np.int64, len(counts))
        ends = np.cumsum(lengths)
        self.token = byte_ids[text].astype(np.int32)
        self.weight = np.repeat(np.fromiter(counts.values(), np.int64, len(counts)), lengths)
        self.behind = np.arange(1, len(text) + 1, dtype=np.int32)
        self.behind[ends - 1] = NONE
        self.before = np.arange(-1, len(text) - 1, dtype=np.int32)
        self.before[ends - lengths] = NONE

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """All pairs of neighbours: (their keys, the places of their left tokens)."""
        places = np.flatnonzero(self.behind != NONE)
        return key(self.token[places], self.token[self.behind[places]]), places

    def merge(self, places: np.ndarray, left: int, right: int, new: int) -> tuple[tuple, tuple]:
        """Merge a pair of tokens at these places, where it still stands there.

        Returns ((keys, weights) of the pairs that are gone, (keys, weights, places) of those that are new). The merged
        pair itself is not among the first, and where one merge touches another, what stood only between them is.
        """
        places = np.unique(places[self.token[places] == left])
        behind = self.behind[places]
        places = places[(behind != NONE) & (self.token[behind] == right)]
        if left == right and len(places) > 1:  # of aaa, merge the first two: every second one of a run
            starts = np.append(True, self.behind[places[:-1]] != places[1:])
            index = np.arange(len(places))
            places = places[(index - np.maximum.accumulate(np.where(starts, index, 0))) % 2 == 0]
        gone = self.behind[places]
        before, behind, weight = self.before[places], self.behind[gone], self.weight[places]
        touches = np.append(behind[:-1] == places[1:], False) if len(places) else np.zeros(0, bool)
        first = (before != NONE) & ~np.append(False, touches[:-1])[: len(places)]  # nothing was merged just before
        last = behind != NONE
        follower = self.token[behind]
        a, b = before[first], places[last]
        old = np.append(key(self.token[a], left), key(right, follower[last]))
        weights = np.append(weight[first], weight[last])

        self.token[places], self.token[gone], self.behind[places] = new, NONE, behind
        self.before[behind[last]] = b
        follower = self.token[behind]  # anew: it may be a merged one now
        fresh = np.append(key(self.token[a], new), key(new, follower[last]))
        return (old, weights), (fresh, weights, np.append(a, b))


def key(left, right) -> np.ndarray:
    """A pair of ids as one number that sorts as the pair does."""
    return np.asarray(left, np.int64) << 16 | np.asarray(right, np.int64)


def grouped(keys: np.ndarray, weights: np.ndarray, places: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
    """(key, sum of its weights, its places) for each distinct key."""
    order = np.argsort(keys, kind="stable")
    keys, weights, places = keys[order], weights[order], places[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])
    if not len(starts):
        return []
    sums = np.add.reduceat(weights, starts)
    return list(zip(keys[starts].tolist(), sums.tolist(), np.split(places, starts[1:]), strict=True))


def learn_merges(
    counts: Counter, vocab: dict[str, int], byte_ids: np.ndarray, vocab_size: int, tick: Callable = lambda: None
) -> list[tuple[str, str]]:
    """Learn merges from counted words, until the vocabulary has vocab_size tokens or no pair is left.

    `vocab` holds a token for each byte, byte_ids (256,) the ids of these; new tokens are added to it. A token that two
    different pairs make has one id. Calls tick() at each merge. Returns the merges in order.
    """
    words, tokens = Neighbours(counts, byte_ids), {i: token for token, i in vocab.items()}
    keys, places = words.pairs()
    groups = grouped(keys, words.weight[places], places)
    total = {pair: weight for pair, weight, _ in groups}
    spots = {pair: [where] for pair, _, where in groups}
    heap = [(-weight, pair, 0) for pair, weight, _ in groups]  # the commonest first; of several, the lowest ids
    heapq.heapify(heap)
    merges: dict[tuple[str, str], None] = {}
    while heap and len(vocab) < vocab_size:
        weight, pair, entry = heapq.heappop(heap)
        if -weight != total[pair]:  # it was commoner when it was entered
            if total[pair] > 0:
                heapq.heappush(heap, (-total[pair], pair, entry))
            continue
        left, right = pair >> 16, pair & 0xFFFF
        token = tokens[left] + tokens[right]
        new = vocab.setdefault(token, len(vocab))
        tokens[new] = token
        merges.pop((tokens[left], tokens[right]), None)
        merges[tokens[left], tokens[right]] = None
        tick()
        (old, old_weights), fresh = words.merge(np.concatenate(spots[pair]), left, right, new)
        spots[pair] = [places[:0]]
        for other, lost, _ in grouped(old, old_weights, old):
            total[other] -= lost
        for other, gained, where in grouped(*fresh):
            total[other] = total.get(other, 0) + gained
            spots.setdefault(other, []).append(where)
            heapq.heappush(heap, (-total[other], other, len(spots[other]) - 1))
    return list(merges)


def train_bpe_tokenizer(documents: Iterable[str], vocab_size: int, progress: bool = False) -> tokenizers.Tokenizer:
    """Learn merges from documents until there are vocab_size ids: <|endoftext|>, the 256 bytes, and a merge each.

    Byte-level BPE as in GPT-2 (Radford et al. 2019): a pattern first cuts the text into words, numbers, punctuation and
    white space, and merges stay within these. A little text has few merges to offer, and the vocabulary stays smaller.
    """
    cutter = byte_pairs().pre_tokenizer

    def cut(text: str) -> list[bytes]:
        return [bytes(LETTER_TO_BYTE[letter] for letter in word) for word, _ in cutter.pre_tokenize_str(text)]

    vocab = {token: i for i, token in enumerate([END_OF_TEXT, *sorted(LETTER_TO_BYTE)])}
    byte_ids = np.array([vocab[LETTERS[byte]] for byte in range(256)])
    counts = count_words(documents, cut)
    with tqdm(desc="merges", total=vocab_size - len(vocab), delay=2, disable=not progress) as shown:
        merges = learn_merges(counts, vocab, byte_ids, vocab_size, shown.update)
    library = byte_pairs(models.BPE(vocab, merges))
    library.add_special_tokens([END_OF_TEXT])
    return library
