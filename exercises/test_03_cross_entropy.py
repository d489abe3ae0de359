"""3. Cross-entropy.

The loss of one prediction: -ln of the probability that softmax gives to the token that came. In plain Python.

    cross_entropy([0.0, 0.0], 0)  gives  0.6931...  (ln 2)

It must not fail for large logits: exp(1000) is too large for a float.

Where the project does it: GPT.loss in model/gpt.py; HeadLossByHand in model/by_hand.py
"""

import math

import pytest
import torch
import torch.nn.functional as F


def cross_entropy(logits: list[float], target: int) -> float:
    raise NotImplementedError


# === the test: it passes when you are done ============================================================================


def test_cross_entropy():
    assert cross_entropy([0.0, 0.0], 0) == pytest.approx(math.log(2))
    assert cross_entropy([0.0] * 50, 7) == pytest.approx(math.log(50))
    logits = torch.randn(9, generator=torch.Generator().manual_seed(1)) * 3
    for target in range(9):
        expected = F.cross_entropy(logits.double(), torch.tensor(target)).item()
        assert cross_entropy(logits.tolist(), target) == pytest.approx(expected)


def test_large_logits():
    assert cross_entropy([1000.0, 990.0], 0) == pytest.approx(math.log(1 + math.exp(-10)))
    assert cross_entropy([-1000.0, 0.0], 0) == pytest.approx(1000)
