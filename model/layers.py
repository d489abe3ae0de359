"""The parts of a transformer block: RMSNorm, rotary positions, causal self-attention, SwiGLU.

Notation, here and in gpt.py:
    B  sequences in a batch          C  channels of the residual stream, n_embd
    T  tokens fed in this call       H  attention heads, n_head
    S  tokens attended to, S >= T    D  head size, C / H
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.by_hand import AttentionByHand, RMSNormByHand, SwiGLUByHand

# Tokens up to which a CPU trains faster without the fused attention kernel, whose backward is slow there.
EXPLICIT_UP_TO = 512


def by_hand(x: Tensor) -> bool:
    """Whether by_hand.py, which needs fewer operations, is the faster way: on a CPU, unless a compiler fuses them."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


class Linear(nn.Linear):
    """y = W x, without bias, in the precision `compute`: both are rounded to it on the way in, and so is the result.

    The weight itself, its gradient and the optimizer's memory stay fp32: an update is smaller than the steps of
    bfloat16. Casts stand here rather than in torch.autocast, which costs a small model more than its products.
    """

    compute = torch.float32  # GPT.compute_in() changes it

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.compute), self.weight.to(self.compute))


class RMSNorm(nn.Module):
    """Scale each vector to a root mean square of 1, then each channel by a learned weight.

    y = x / sqrt(mean(x^2) + eps) * weight, Zhang and Sennrich 2019 (arXiv:1910.07467). Computed in fp32: the mean of
    squares needs the precision that bf16 lacks. (..., C) -> (..., C)
    """

    def __init__(self, size: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if by_hand(x) and x.dtype == torch.float32:
            return RMSNormByHand.apply(x, self.weight, self.eps)
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).type_as(x)


def rotary_table(length: int, head_size: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle position * base^(-2i / D), for each position and pair of channels i.

    Su et al. 2021, RoFormer (arXiv:2104.09864), section 3.4. Returns two (length, D) fp32 tensors; the D / 2 angles
    stand twice, because channel i is paired with channel i + D / 2. The paper's base of 10,000 is for long texts: in a
    block of 64 or 128 tokens half its channels hardly turn, and heads find the token just before them later.
    """
    # On the CPU even for a model of shapes alone (torch's device "meta"), where arithmetic takes a second to import.
    frequency = base ** (-torch.arange(0, head_size, 2, device="cpu").float() / head_size)  # (D / 2)
    angle = torch.arange(length, device="cpu").float()[:, None] * frequency  # (length, D / 2)
    angle = torch.cat([angle, angle], dim=-1)  # (length, D)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of channels (i, i + D / 2) by its position's angle. x (B, H, T, D); cos, sin (T, D).

    The dot product of a query and a key turned like this depends on their distance, not on where they are.
    """
    half = x.size(-1) // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return (x * cos + turned * sin).type_as(x)


class KeyValueCache:
    """The keys and values of all tokens seen so far, so that the next token needs only its own.

    One tensor for all layers, allocated once: (n_layer, 2, B, H, block_size, D).
    """

    def __init__(self, n_layer: int, batch: int, n_head: int, block_size: int, head_size: int, like: Tensor):
        self.store = like.new_empty(n_layer, 2, batch, n_head, block_size, head_size)
        self.length = 0  # tokens held; GPT.forward moves it on when all layers have written theirs

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values (B, H, T, D) of new tokens. Returns those of all tokens so far, (B, H, S, D)."""
        end = self.length + key.size(2)
        keys, values = self.store[layer, 0], self.store[layer, 1]
        keys[:, :, self.length : end] = key
        values[:, :, self.length : end] = value
        return keys[:, :, :end], values[:, :, :end]


def causal_mask(T: int, S: int, device) -> Tensor:
    """(T, S), True where the token may look: the T last of S positions, each at itself and at what came before."""
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """How much each token takes from each earlier one: softmax(Q K^T / sqrt(D)), rows summing to 1.

    Vaswani et al. 2017 (arXiv:1706.03762), equation 1. query (B, H, T, D), key (B, H, S, D) -> (B, H, T, S)
    """
    T, S, D = query.size(2), key.size(2), query.size(3)
    scores = query @ key.transpose(2, 3) / D**0.5  # (B, H, T, S)
    scores = scores.masked_fill(~causal_mask(T, S, query.device), float("-inf"))
    return scores.float().softmax(dim=-1).type_as(query)


class Attention(nn.Module):
    """Causal self-attention: every token gathers from itself and the tokens before it. (B, T, C) -> (B, T, C)

    Queries and keys are RMS-normalised in each head before they are turned (QK-norm, Henry et al. 2020,
    arXiv:2010.04245): their dot products stay bounded, and training stands higher learning rates.
    """

    def __init__(self, n_embd: int, n_head: int, dropout: float):
        super().__init__()
        self.n_head, self.dropout = n_head, dropout
        self.qkv = Linear(n_embd, 3 * n_embd, bias=False)  # query, key and value in one product
        self.query_norm = RMSNorm(n_embd // n_head)
        self.key_norm = RMSNorm(n_embd // n_head)
        self.output = Linear(n_embd, n_embd, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache=None, layer=0, weights: list | None = None) -> Tensor:
        B, T, C = x.shape
        qkv = self.qkv(x)
        plain = cache is not None or weights is not None or (self.dropout > 0 and self.training)
        if by_hand(qkv) and T <= EXPLICIT_UP_TO and not plain:
            norms = torch.stack([self.query_norm.weight, self.key_norm.weight]).unsqueeze(1)  # (2, 1, D)
            return self.output(AttentionByHand.apply(qkv, norms, cos, sin, self.n_head, self.query_norm.eps))

        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, H, T, D)
            for part in qkv.split(C, dim=2)
        )
        q = rotate(self.query_norm(q), cos, sin)
        k = rotate(self.key_norm(k), cos, sin)
        if cache is not None:
            k, v = cache.update(layer, k, v)  # (B, H, S, D)
        S = k.size(2)

        explicit = weights is not None or (x.device.type == "cpu" and T == S <= EXPLICIT_UP_TO)
        if explicit:  # to look inside, and where it is the faster way
            shares = attention_weights(q, k)
            if weights is not None:
                weights.append(shares)
            y = F.dropout(shares, self.dropout, self.training) @ v  # (B, H, T, D)
        else:  # the same arithmetic in one fused kernel, which never holds all the weights
            mask = causal_mask(T, S, x.device) if 1 < T < S else None
            p = self.dropout if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p, is_causal=T == S)
        return self.output(y.transpose(1, 2).reshape(B, T, C))


class SwiGLU(nn.Module):
    """The feed-forward part: W_down (silu(W_gate x) * (W_up x)). (B, T, C) -> (B, T, C)

    Shazeer 2020, GLU Variants Improve Transformer (arXiv:2002.05202), equation 6.
    """

    def __init__(self, n_embd: int):
        super().__init__()
        hidden = mlp_size(n_embd)
        self.gate_up = Linear(n_embd, 2 * hidden, bias=False)  # both in one product
        self.down = Linear(hidden, n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate_up = self.gate_up(x)
        if by_hand(gate_up):
            return self.down(SwiGLUByHand.apply(gate_up))
        gate, up = gate_up.chunk(2, dim=-1)  # (B, T, hidden) each
        return self.down(F.silu(gate) * up)


def mlp_size(n_embd: int) -> int:
    """Hidden width of SwiGLU: 8/3 of n_embd, so that its three matrices hold as many weights as the two of a classic
    MLP of four times n_embd; rounded up to a multiple of 32, which matrix kernels like."""
    return -(-8 * n_embd // 3 // 32) * 32


class Block(nn.Module):
    """One transformer block, pre-norm: the residual stream x flows through, and each part adds to it.

    x ──┬── norm ── attention ── + ──┬── norm ── SwiGLU ── + ── x
        └────────────────────────┘   └──────────────────┘
    """

    def __init__(self, n_embd: int, n_head: int, dropout: float):
        super().__init__()
        self.attention_norm = RMSNorm(n_embd)
        self.attention = Attention(n_embd, n_head, dropout)
        self.mlp_norm = RMSNorm(n_embd)
        self.mlp = SwiGLU(n_embd)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache=None, layer=0, weights=None) -> Tensor:
        x = x + self.drop(self.attention(self.attention_norm(x), cos, sin, cache, layer, weights))
        return x + self.drop(self.mlp(self.mlp_norm(x)))
