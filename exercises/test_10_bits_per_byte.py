"""10. Bits per byte.

A model with a large vocabulary needs fewer tokens for the same text, and each is harder to guess. To compare models
with different tokenizers, count the surprise of the whole text in bits and divide by its bytes in UTF-8.

`losses` are -ln p of each token of the text, in nats.

Where the project does it: model/metrics.py
"""

import math

import pytest

from model import metrics


def bits_per_byte(losses: list[float], text: str) -> float:
    raise NotImplementedError


# === the test: it passes when you are done ============================================================================


def test_bits_per_byte():
    assert bits_per_byte([math.log(2)] * 8, "abcdefgh") == pytest.approx(1.0), "a coin toss per letter"
    assert bits_per_byte([math.log(256)], "a") == pytest.approx(8.0)
    assert bits_per_byte([math.log(16)] * 2, "é日") == pytest.approx(8 / 5), "characters are not bytes"
    losses, text = [1.0, 2.5, 0.25], "def f():"
    mean, tokens_per_byte = sum(losses) / 3, 3 / 8
    assert bits_per_byte(losses, text) == pytest.approx(metrics.bits_per_byte(mean, tokens_per_byte))
