"""Byte-pair encoding learned the plain way: find the most common pair of neighbours, merge it everywhere, repeat.

    hug 10, pug 5, hugs 5      pairs: u g 20, h u 15, p u 5, g s 5     ->  merge u g
    h ug 10, p ug 5, h ug s 5  pairs: h ug 15, p ug 5, ug s 5          ->  merge h ug

Sennrich et al. 2015, Neural Machine Translation of Rare Words with Subword Units, arXiv:1508.07909, algorithm 1.

To be read and tested with: bpe_trainer.py learns the same merges, without counting all pairs again for each one.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from model.tokenization.byte_letters import LETTER_TO_BYTE
from model.tokenization.tokenizer import make_bpe_tokenizer
from plumbing.corpus import END_OF_TEXT

Word = tuple[str, ...]  # a pre-token as its tokens: ("h", "ug")


def learn_merges_plainly(documents: Iterable[str], vocab_size: int) -> list[tuple[str, str]]:
    """Learn merges until there are vocab_size ids or no pair is left. Returns them in order."""
    splitter = make_bpe_tokenizer().pre_tokenizer
    words = Counter(tuple(word) for text in documents for word, _ in splitter.pre_tokenize_str(text))
    ids = {token: i for i, token in enumerate([END_OF_TEXT, *sorted(LETTER_TO_BYTE)])}
    merges: list[tuple[str, str]] = []
    while len(ids) < vocab_size:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        # The most common pair; of several, the one with the lowest ids.
        left, right = min(pairs, key=lambda pair: (-pairs[pair], ids[pair[0]], ids[pair[1]]))
        merges.append((left, right))
        ids[left + right] = len(ids)
        words = Counter({merge_pair(word, left, right): count for word, count in words.items()})
    return merges


def merge_pair(word: Word, left: str, right: str) -> Word:
    """Merge a pair wherever it occurs, from left to right: ("a", "a", "a") gives ("aa", "a")."""
    merged, i = [], 0
    while i < len(word):
        if word[i : i + 2] == (left, right):
            merged.append(left + right)
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return tuple(merged)
