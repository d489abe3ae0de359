"""What attention heads do, as numbers. Shapes use the notation of model/layers.py."""

import torch
from torch import Tensor

from model.gpt import GPT

ROLES = ("previous token", "same token", "induction")  # of a head, in the order of its scores
ROLE_SCORE = 0.3  # the score from which on a head is named after its role


def attention_pattern(attention: Tensor) -> Tensor:
    """Where heads look: attention (..., T, T) -> (..., 3), the mean fraction that goes to the previous token, to the
    token itself and to the first token, over all rows but the first. With one token the result is 0."""
    T = attention.size(-1)
    if T < 2:
        return attention.new_zeros(*attention.shape[:-2], 3)
    previous = attention.diagonal(-1, dim1=-2, dim2=-1)  # (..., T - 1)
    itself = attention.diagonal(0, dim1=-2, dim2=-1)[..., 1:]
    return torch.stack([previous.mean(-1), itself.mean(-1), attention[..., 1:, 0].mean(-1)], dim=-1)


def entropy(attention: Tensor) -> Tensor:
    """How widely heads look: attention (..., T, T) -> (...), the mean over rows of -sum p log2 p, in bits. 0 bits means
    a single token, 3 bits as widely as evenly over eight."""
    return -(attention.float() * attention.float().clamp(min=1e-30).log2()).sum(-1).mean(-1)


def same_token(attention: Tensor, idx: Tensor) -> Tensor:
    """Attention (B, H, T, T) of tokens idx (B, T) -> (H,): the mean fraction that goes to earlier occurrences of the
    same token, over the positions that have one."""
    equal = (idx[:, :, None] == idx[:, None, :]).tril(-1)  # (B, T, T)
    has_any = equal.any(-1)  # (B, T)
    fractions = (attention * equal[:, None]).sum(-1)  # (B, H, T)
    return (fractions * has_any[:, None]).sum((0, 2)) / has_any.sum().clamp(min=1)


def induction(attention: Tensor) -> Tensor:
    """Attention (B, H, T, T) -> (H,), for a sequence whose second half repeats its first half: the mean fraction that
    goes from the second half to the token that followed the same token in the first half."""
    n = attention.size(-1) // 2
    return attention.diagonal(1 - n, dim1=-2, dim2=-1)[..., 1:].mean((0, 2))  # rows n to 2 n - 1, n - 1 columns back


@torch.inference_mode()
def head_scores(model: GPT, idx: Tensor, seed: int) -> dict[str, tuple[float, float, float]]:
    """The scores of each head, in the order of ROLES: {"L0H0": (0.1, 0.0, 0.7), ...}. The first two are measured on idx
    (B, T), which should be text, the third on random tokens that come twice."""
    on_text, on_repeated = [], []
    model(idx, weights=on_text)  # (B, H, T, T) of each layer
    n = model.block_size // 2
    random = torch.randint(model.vocab_size, (8, n), generator=torch.Generator().manual_seed(seed)).to(idx.device)
    if n > 1:
        model(torch.cat([random, random], dim=1), weights=on_repeated)
    scores = {}
    for layer, text in enumerate(on_text):
        repeated = induction(on_repeated[layer]).tolist() if on_repeated else [0.0] * text.size(1)
        previous = attention_pattern(text)[..., 0].mean(0).tolist()
        rows = zip(previous, same_token(text, idx).tolist(), repeated, strict=True)
        scores |= {f"L{layer}H{head}": row for head, row in enumerate(rows)}
    return scores


def head_role(scores: tuple[float, float, float]) -> str:
    """The role with the highest score, or "" if no score reaches ROLE_SCORE."""
    score, role = max(zip(scores, ROLES, strict=True))
    return role if score >= ROLE_SCORE else ""
