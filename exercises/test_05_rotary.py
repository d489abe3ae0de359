"""5. Rotary positions.

Rotate the pairs of channels i and i + D / 2 of each vector by the angle position * base^(-2 i / D): x (T, D) -> (T, D).
A pair (a, b) becomes (a cos - b sin, b cos + a sin).

Where the project does it: rotary_table() and rotate() in model/layers.py
"""

import torch
from torch import Tensor

from model.layers import rotary_table, rotate


def rotated(x: Tensor, base: float) -> Tensor:
    raise NotImplementedError


# === the test: it passes when you are done ============================================================================


def test_rotated():
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(rotated(x, 30.0), rotate(x, *rotary_table(5, 6, 30.0)))
    torch.testing.assert_close(rotated(x, 30.0)[0], x[0], msg="position 0 is not rotated")
    torch.testing.assert_close(rotated(x, 30.0).norm(dim=-1), x.norm(dim=-1), msg="a rotation keeps the length")


def test_dot_products_depend_on_the_distance_only():
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(5))
    turned_q, turned_k = rotated(q.repeat(9, 1), 10.0), rotated(k.repeat(9, 1), 10.0)
    torch.testing.assert_close(turned_q[3] @ turned_k[1], turned_q[8] @ turned_k[6])
