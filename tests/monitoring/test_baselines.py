"""The baselines: by hand, against a plain loop, and what is said of it."""

import gzip
import lzma
import math
from collections import Counter

import numpy as np
import pytest

import train
from dataset import open_tokens
from model.monitoring import baselines
from model.tokenization.tokenizer import Tokenizer, load_tokenizer, make_character_tokenizer


def plain_bits(train, val, V):
    """The definition, token by token, with dictionaries."""

    def p(h, w):
        shorter = p(h[1:], w) if h else 1 / V
        n = len(h) + 1
        after = Counter(train[i + n - 1] for i in range(len(train) - n + 1) if tuple(train[i : i + n - 1]) == h)
        if not after:
            return shorter
        return (after[w] + len(after) * shorter) / (after.total() + len(after))

    means = []
    for n in (1, 2, 3):
        bits = [-math.log2(p(tuple(val[max(0, i - n + 1) : i]), val[i])) for i in range(1, len(val))]
        means.append(sum(bits) / len(bits))
    return means


def test_by_hand():
    """Train on a b a b a c; validate on a b. Unigram of b: (2 + 3 / 4) / (6 + 3). After a came b, b, c."""
    train, val = np.array([0, 1, 0, 1, 0, 2], np.uint16), np.array([0, 1], np.uint16)
    unigram = (2 + 3 / 4) / (6 + 3)
    bigram = (2 + 2 * unigram) / (3 + 2)
    found = baselines.ngram_bits(train, val, vocab_size=4)
    assert found[:2] == pytest.approx([-math.log2(unigram), -math.log2(bigram)])
    assert found[2] == found[1]  # there are no two tokens before it
    # c after b a, of which b came once: (0 + 1 * bigram) / (1 + 1) would be b's; c's counts are 1 of b, c
    val = np.array([1, 0, 2], np.uint16)
    uni = (1 + 3 / 4) / 9
    bi = (1 + 2 * uni) / 5
    tri = (1 + 2 * bi) / (2 + 2)
    first = (3 + 3 / 4) / 9
    first_bi = (2 + 1 * first) / (2 + 1)
    assert baselines.ngram_bits(train, val, 4)[2] == pytest.approx(-(math.log2(tri) + math.log2(first_bi)) / 2)


@pytest.mark.parametrize(("V", "n", "m"), [(3, 200, 50), (40, 500, 90), (65_536, 300, 40), (5, 1, 10), (5, 2, 2)])
def test_against_the_definition(V, n, m):
    rng = np.random.default_rng(V)
    train = (rng.integers(0, V, n) * rng.integers(0, 2, n)).astype(np.uint16)
    val = np.concatenate([train[: m // 2], rng.integers(0, V, m - min(m // 2, n))]).astype(np.uint16)
    assert baselines.ngram_bits(train, val, V) == pytest.approx(plain_bits(train.tolist(), val.tolist(), V))


def test_probabilities_sum_to_one():
    rng = np.random.default_rng(1)
    train = rng.integers(0, 6, 80).astype(np.uint16)
    for context in ([2, 4], [5, 5]):
        total = np.zeros(3)
        for token in range(6):
            val = np.array([*context, token], np.uint16)
            whole, start = (np.array(baselines.ngram_bits(train, v, 6)) * (len(v) - 1) for v in (val, val[:2]))
            total += 2.0 ** -(whole - start)
        assert total == pytest.approx([1, 1, 1])


def test_only_the_beginning_of_a_large_file_is_counted(monkeypatch):
    monkeypatch.setattr(baselines, "TRAINING_TOKENS", 4)
    train, val = np.array([0, 1, 0, 1, 2, 2, 2], np.uint16), np.array([0, 1, 2], np.uint16)
    assert baselines.ngram_bits(train, val, 3) == pytest.approx(plain_bits([0, 1, 0, 1], [0, 1, 2], 3))


def test_the_beginning_of_a_long_validation_file_stands_for_it(char, monkeypatch, capsys):
    val = open_tokens(char.val_file)
    arguments = load_tokenizer(char.tokenizer_file), val.tokens_per_byte
    expected = baselines.compute_baselines(val.tokens, val.tokens[:100], *arguments)
    monkeypatch.setattr(baselines, "VALIDATION_TOKENS", 100)
    assert baselines.compute_baselines(val.tokens, val.tokens, *arguments) == expected
    train.main(char, fresh=False)
    assert "Baselines on the first 100 tokens of the validation set, in bits" in capsys.readouterr().out


def test_baselines_in_bits_per_byte():
    text = "abracadabra, é " * 20
    tokenizer = Tokenizer(make_character_tokenizer(text).to_str())
    ids = tokenizer.encode(text)
    tokens = np.append(ids, 0).astype(np.uint16)
    per_byte = len(tokens) / len(text.encode())
    found = baselines.compute_baselines(tokens, tokens, tokenizer, per_byte)
    assert list(found) == ["uniform", "unigram", "bigram", "trigram", "gzip", "xz"]
    assert found["uniform"] == pytest.approx(math.log2(tokenizer.vocab_size) * per_byte)
    assert found["uniform"] > found["unigram"] > found["bigram"] > found["trigram"] > 0
    assert found["gzip"] == 8 * len(gzip.compress(text.encode(), 9)) / len(text.encode())
    assert found["xz"] == 8 * len(lzma.compress(text.encode(), preset=9)) / len(text.encode())
    assert len(baselines.baselines_table(found).splitlines()) == 6


BASELINES = {"uniform": 7.3, "unigram": 4.9, "bigram": 3.5, "trigram": 2.8, "gzip": 2.5, "xz": 2.0}


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        (2.91, "better than the bigram, 0.110 bits per byte from the trigram"),
        (7.5, "no better than guessing"),
        (7.28, "no better than guessing"),  # by chance, as an untrained model
        (1.6, "better than xz by 0.400 bits per byte"),
        (2.5, "better than the trigram, 0.000 bits per byte from gzip"),
    ],
)
def test_the_verdict(bits, said):
    assert baselines.verdict(bits, BASELINES) == said


def test_what_is_worse_than_guessing_is_not_better_than_a_compressor():
    """Of a short text, gzip makes a longer one."""
    assert baselines.verdict(8.0, BASELINES | {"gzip": 9.5, "xz": 30.0}) == "no better than guessing"
    found = baselines.verdict(7.2, BASELINES | {"gzip": 9.5, "xz": 30.0})
    assert found == "better than guessing, 2.300 bits per byte from the unigram"
