"""What heads do: scores on attention made by hand."""

import numpy as np
import pytest
import torch

from model.interpretation.heads import attention_pattern, head_role, induction, same_token

T = 8


def heads(*rows):
    """Attention (1, H, T, T) of heads of which each token looks at one other: rows[h][i] is at whom."""
    attention = torch.zeros(1, len(rows), T, T)
    for h, row in enumerate(rows):
        attention[0, h, range(T), row] = 1
    return attention


UNIFORM = torch.tril(torch.ones(T, T)) / torch.arange(1, T + 1)[:, None]


def test_a_previous_token_head():
    before = [0, *range(T - 1)]
    scores = attention_pattern(heads(before, range(T), [0] * T))[0, :, 0]
    assert scores.tolist() == pytest.approx([1, 0, 1 / 7])  # of seven tokens, the second has the first before it
    uniform = attention_pattern(UNIFORM)[0].item()
    assert uniform == pytest.approx(np.mean([1 / i for i in range(2, T + 1)]))


def test_a_same_token_head():
    idx = torch.tensor([[5, 6, 5, 7, 6, 5, 8, 8]])
    last = [0, 1, 0, 3, 1, 2, 6, 6]  # at the last one that is equal, or at itself
    assert same_token(heads(last, range(T), [0] * T), idx).tolist() == pytest.approx([1, 0, 2 / 4])
    # Spread over both earlier fives, it is the same token all the same.
    spread = heads(last)
    spread[0, 0, 5] = 0
    spread[0, 0, 5, [0, 2]] = 0.5
    assert same_token(spread, idx).tolist() == pytest.approx([1])
    assert same_token(heads(last), torch.arange(T)[None]).tolist() == [0]


def test_an_induction_head():
    n = T // 2
    after_the_same = [0] * n + [i - n + 1 for i in range(n, T)]
    the_same = [0] * n + [i - n for i in range(n, T)]
    assert induction(heads(after_the_same, the_same, [0, *range(T - 1)])).tolist() == pytest.approx([1, 0, 0])
    assert induction(UNIFORM[None, None]).item() == pytest.approx(np.mean([1 / i for i in range(n + 1, T + 1)]))


def test_roles_have_names():
    assert head_role((0.9, 0.1, 0.2)) == "previous token"
    assert head_role((0.1, 0.4, 0.2)) == "same token"
    assert head_role((0.0, 0.0, 0.31)) == "induction"
    assert head_role((0.2, 0.2, 0.2)) == ""
