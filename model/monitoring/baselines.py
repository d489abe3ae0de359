"""Is this loss any good? What simpler predictors and two compressors reach on the same validation set.

    uniform    every token equally likely: ln(vocab_size)
    unigram    how often each token occurs in the training data
    bigram     how often it follows the one token before it
    trigram    how often it follows the two tokens before it
    gzip, xz   the bytes of the validation text, compressed by themselves

All in bits per byte, over at most the first VALIDATION_TOKENS tokens of the file. The first four predict the same
tokens that an evaluation of all of these scores, each but the first. What was never seen must not have probability 0,
so each n-gram falls back on the next shorter one, the more, the more different tokens have followed its context:
interpolated Witten-Bell smoothing (Chen and Goodman 1998, "An Empirical Study of Smoothing Techniques for Language
Modeling", section 2.5):

    p(w | h) = (count(h w) + different(h) p(w | shorter h)) / (count(h) + different(h))

where different(h) is the number of different tokens that followed h. The unigram falls back on the uniform.
"""

import gzip
import lzma

import numpy as np

from model import metrics
from model.tokenization.tokenizer import Tokenizer
from plumbing.text import bar

# At most so many are counted and predicted, from the start of each file: 0.8 GB of memory, a quarter of a minute.
TRAINING_TOKENS, VALIDATION_TOKENS = 1 << 25, 1 << 20
CHANCE = 0.005  # relative: an untrained model's loss can be so much lower than that of guessing


def ngram_bits(train: np.ndarray, val: np.ndarray, vocab_size: int) -> list[float]:
    """The mean surprise of the tokens val[1:], in bits, of a unigram, a bigram and a trigram that were counted in
    `train`. Both (tokens,) uint16, at least two of each."""
    train = train[:TRAINING_TOKENS]
    p = np.full(len(val) - 1, 1 / vocab_size)  # of val[1:]: uniform, before anything is counted
    means = []
    for n in (1, 2, 3):
        if len(train) >= n and len(val) >= n:
            first = max(0, n - 2)  # of p: in front of val[1] stands one token only, so a trigram leaves it as it is
            asked = keys(val, n, vocab_size)[n == 1 :]  # (len(p) - first,)
            counted = keys(train, n, vocab_size)
            counted.sort()
            count, total, different = look_up(counted, asked, vocab_size)
            p[first:] = (count + different * p[first:]) / np.maximum(total + different, 1) + (total == 0) * p[first:]
        means.append(float(-np.log2(p).mean()))
    return means


def look_up(counted: np.ndarray, asked: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For n-grams (N,), how often each occurs among the sorted ones of a text (M,), how often its context (all but its
    last token) does, and how many different tokens came after that."""
    order = np.argsort(asked)  # neighbours are looked up one after the other, which memory likes
    asked = asked[order]
    context = asked // vocab_size * vocab_size
    begin, end = np.searchsorted(counted, context), np.searchsorted(counted, context + vocab_size)
    count = np.searchsorted(counted, asked, side="right") - np.searchsorted(counted, asked)
    distinct = np.zeros(len(counted) + 1, np.int32)  # how many different n-grams are among the first i
    distinct[1:] = 1
    np.not_equal(counted[1:], counted[:-1], out=distinct[2:], casting="unsafe")
    np.cumsum(distinct, out=distinct)
    result = np.empty((3, len(asked)))
    result[:, order] = count, end - begin, distinct[end] - distinct[begin]
    return tuple(result)


def keys(tokens: np.ndarray, n: int, vocab_size: int) -> np.ndarray:
    """The n-grams of tokens (N,) as numbers, (N - n + 1,) int64: the digits of a number in base vocab_size."""
    number = np.zeros(len(tokens) - n + 1, np.int64)
    for i in range(n):
        number *= vocab_size
        number += tokens[i : len(tokens) - n + 1 + i]
    return number


def compute_baselines(train: np.ndarray, val: np.ndarray, tokenizer: Tokenizer, tokens_per_byte: float) -> dict:
    """The baselines by name, in bits per byte. train and val are all tokens of their files, (tokens,) uint16."""
    V, val = tokenizer.vocab_size, val[:VALIDATION_TOKENS]
    bits = [metrics.bits(metrics.uniform_loss(V)), *ngram_bits(train, val, V)]
    names = "uniform", "unigram", "bigram", "trigram"
    found = {name: b * tokens_per_byte for name, b in zip(names, bits, strict=True)}
    bytes_of = [tokenizer.token_bytes(token) for token in range(V)]
    bytes_of[tokenizer.end_of_text_id] = b""  # the end of a text is no part of it
    text = b"".join(map(bytes_of.__getitem__, val.tolist()))
    found["gzip"] = 8 * len(gzip.compress(text, 9)) / len(text)
    dictionary = min(max(len(text), 1 << 12), 1 << 26)  # all of it; preset 9 alone would clear 64 MB first
    xz = lzma.compress(text, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": dictionary}])
    found["xz"] = 8 * len(xz) / len(text)
    return found


def baselines_table(baselines: dict[str, float]) -> str:
    highest = max(baselines.values())
    return "\n".join(f"  {name:8} {bits:7.3f} {bar(bits / highest, 30)}" for name, bits in baselines.items())


def verdict(bits_per_byte: float, baselines: dict[str, float]) -> str:
    """How a model compares: "better than the bigram, 0.110 bits per byte from the trigram"."""
    if bits_per_byte >= baselines["uniform"] * (1 - CHANCE):
        return "no better than guessing"
    beaten = [name for name in baselines if bits_per_byte < baselines[name]]
    others = [name for name in baselines if bits_per_byte >= baselines[name]]
    best = min(beaten, key=baselines.get)
    if not others:
        return f"better than {the(best)} by {baselines[best] - bits_per_byte:.3f} bits per byte"
    following = max(others, key=baselines.get)
    return f"better than {the(best)}, {bits_per_byte - baselines[following]:.3f} bits per byte from {the(following)}"


def the(name: str) -> str:
    return {"uniform": "guessing", "gzip": "gzip", "xz": "xz"}.get(name, f"the {name}")
