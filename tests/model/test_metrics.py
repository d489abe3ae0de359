"""The displayed arithmetic: a wrong figure on the screen teaches something wrong."""

import math

import pytest

from model import metrics


def test_surprise_by_hand():
    assert [metrics.surprise(p) for p in (1.0, 0.5, 0.25, 1 / 1024)] == [0.0, 1.0, 2.0, 10.0]
    assert metrics.surprise(0.001) == pytest.approx(9.965784)
    assert metrics.surprise(0.0) == math.inf
    assert f"{metrics.surprise(1.0):.2f}" == f"{metrics.surprise(math.nextafter(1.0, 2.0)):.2f}" == "0.00"  # no minus
    assert metrics.surprise(5e-324) == 1074.0  # the smallest float above zero


def test_bits_by_hand():
    assert metrics.bits(0.0) == 0.0
    assert metrics.bits(math.log(2)) == 1.0
    assert metrics.bits(math.log(1024)) == pytest.approx(10.0)
    assert metrics.bits(1.0) == pytest.approx(1.442695)


def test_surprise_and_loss_are_the_same_thing_in_two_units():
    p = [0.5, 0.1, 0.003]
    loss = -sum(math.log(q) for q in p) / 3
    assert metrics.bits(loss) == pytest.approx(sum(metrics.surprise(q) for q in p) / 3)


def test_bits_per_byte_by_hand():
    # 8 tokens of 3 bits each write 12 bytes: 24 bits over 12 bytes.
    assert metrics.bits_per_byte(3 * math.log(2), 8 / 12) == pytest.approx(2.0)
    # A byte a token, every byte equally likely: 8 bits per byte, which is no compression at all.
    assert metrics.bits_per_byte(math.log(256), 1.0) == pytest.approx(8.0)


def test_tokens_per_second_by_hand():
    assert metrics.tokens_per_second(3000, 1.5) == 2000
    assert metrics.tokens_per_second(10, 0.0) == 0  # a clock that has not moved


def test_perplexity_by_hand():
    assert metrics.perplexity(0.0) == 1.0
    assert metrics.perplexity(math.log(65)) == pytest.approx(65)
    assert metrics.perplexity(math.log(50257)) == pytest.approx(50257)
    assert metrics.perplexity(600.0) == pytest.approx(math.exp(600))
    assert metrics.perplexity(1e4) == math.inf
    assert metrics.perplexity(math.inf) == math.inf


def test_first_loss_by_hand():
    assert metrics.uniform_loss(1) == 0.0
    assert metrics.uniform_loss(65) == pytest.approx(4.174387)
    assert metrics.uniform_loss(4096) == pytest.approx(12 * math.log(2))
