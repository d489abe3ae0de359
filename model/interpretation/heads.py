"""What attention heads do, as numbers. Shapes use the notation of model/layers.py."""

import torch
from torch import Tensor


def habits(attention: Tensor) -> Tensor:
    """Where heads look: attention (..., T, T) -> (..., 3), the mean share that a token gives to the one before it, to
    itself, and to the first one. Over all tokens but the first, which has only itself; 0 where there is no other."""
    T = attention.size(-1)
    if T < 2:
        return attention.new_zeros(*attention.shape[:-2], 3)
    before = attention.diagonal(-1, dim1=-2, dim2=-1)  # (..., T - 1)
    itself = attention.diagonal(0, dim1=-2, dim2=-1)[..., 1:]
    return torch.stack([before.mean(-1), itself.mean(-1), attention[..., 1:, 0].mean(-1)], dim=-1)


def entropy(attention: Tensor) -> Tensor:
    """How widely heads look: attention (..., T, T) -> (...), the mean over tokens of -sum p log2 p of their row, in
    bits. 0: one token alone; 3: as if evenly over eight."""
    return -(attention.float() * attention.float().clamp(min=1e-30).log2()).sum(-1).mean(-1)


def previous_token(attention: Tensor) -> Tensor:
    """The mean share that goes to the token just before."""
    return habits(attention)[..., 0].mean(0)


def same_token(attention: Tensor, idx: Tensor) -> Tensor:
    """The mean share that goes to earlier tokens equal to the one that looks, over those that have any; idx (B, T)."""
    equal = (idx[:, :, None] == idx[:, None, :]).tril(-1)  # (B, T, T)
    has_any = equal.any(-1)  # (B, T)
    shares = (attention * equal[:, None]).sum(-1)  # (B, H, T)
    return (shares * has_any[:, None]).sum((0, 2)) / has_any.sum().clamp(min=1)


def induction(attention: Tensor) -> Tensor:
    """On tokens of which the second half repeats the first: the mean share that goes from there to the token that came
    after the same one the first time."""
    n = attention.size(-1) // 2
    return attention.diagonal(1 - n, dim1=-2, dim2=-1)[..., 1:].mean((0, 2))  # rows n to 2 n - 1, n - 1 columns back
