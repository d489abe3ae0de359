"""The layers of a transformer block: RMSNorm, rotary positions, causal self-attention, SwiGLU.

Notation, here and in gpt.py:
    B  sequences in the batch        C  channels of the residual stream, n_embd
    T  tokens fed in this call       H  attention heads, n_head
    S  tokens attended to, S >= T    D  head size, C / H
    V  tokens in the vocabulary

S is T plus the tokens in the KV cache. A comment such as (B, T, C) gives the shape of the result on its line.
"""

import functools
import subprocess
import sys
from types import ModuleType

if __name__ == "__main__":
    raise SystemExit("This file is the layers of the model, and no script: python train.py trains a model.")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import by_hand as by_hand_torch
from model import by_hand_c
from plumbing.errors import reason

# Up to this many tokens, a CPU trains faster without the fused attention kernel, whose backward pass is slow there.
EXPLICIT_UP_TO = 512
# What Triton raises where it, or the C compiler that it needs, cannot work.
TRITON_FAILS = RuntimeError, OSError, ImportError, subprocess.SubprocessError


def by_hand(x: Tensor) -> ModuleType | None:
    """The module whose backward passes to use for x, by_hand_c.py or by_hand.py: faster on a CPU, unless a compiler
    fuses the layers."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    return by_hand_c if by_hand_c.takes(x) else by_hand_torch


def on_gpu(x: Tensor) -> ModuleType | None:
    """by_hand_gpu.py where x is on an NVIDIA GPU. Its kernels are faster than what a compiler makes of the layers."""
    return gpu_kernels(x.device) if x.is_cuda and not torch.compiler.is_compiling() else None


@functools.cache
def gpu_kernels(device: torch.device) -> ModuleType | None:
    """by_hand_gpu.py, if its kernels run on this device. Otherwise None, and why is said."""
    if torch.version.cuda is None:  # AMD
        return None
    try:
        from model import by_hand_gpu

        by_hand_gpu.norm_beside(torch.ones(1, 8, device=device), torch.ones(8, device=device), 1e-6)
        return by_hand_gpu
    except TRITON_FAILS as error:
        print(f"The kernels for a GPU do not work here, so it computes more slowly: {reason(error)}", file=sys.stderr)
        return None


class Linear(nn.Linear):
    """y = W x without bias. Input, weight and output are in the precision `compute`: (..., in) -> (..., out)

    The weight is kept in fp32, like its gradient and the optimizer's state: updates are smaller than the steps between
    bfloat16 numbers. The casts are explicit because torch.autocast would cost a small model more than its products do.
    """

    compute = torch.float32  # changed by GPT.compute_in()

    def forward(self, x: Tensor) -> Tensor:
        if (gpu := on_gpu(x)) and torch.is_grad_enabled():
            return gpu.linear(x, self.weight, self.compute)
        return F.linear(x.to(self.compute), self.weight.to(self.compute))


class RMSNorm(nn.Module):
    """Scale each vector to a root mean square of 1, then each channel by a learned weight: (..., C) -> (..., C)

    y = x / sqrt(mean(x^2) + eps) * weight, Zhang and Sennrich 2019 (arXiv:1910.07467). Computed in fp32, because bf16
    is too coarse for the mean of squares.
    """

    def __init__(self, size: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.beside(x)[0]

    def beside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of x; and x beside it, for the residual stream."""
        if gpu := on_gpu(x):
            return gpu.norm_beside(x, self.weight, self.eps)
        if (hand := by_hand(x)) and x.dtype == torch.float32:
            return hand.rms_norm(x, self.weight, self.eps), x
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).type_as(x), x


def rotary_table(length: int, head_size: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotation angles: two tensors (length, D), fp32.

    At position t, channels i and i + D / 2 are a pair, rotated by the angle t * base^(-2i / D). Su et al. 2021,
    RoFormer (arXiv:2104.09864), section 3.4. Both channels of a pair have the same angle, so each angle is in the table
    twice. The paper's base of 10,000 suits long texts. In a block of 64 or 128 tokens it leaves half of the channels
    nearly unrotated, and heads take longer to learn to attend to the previous token.
    """
    # On the CPU even for a model on torch's "meta" device, where the first arithmetic takes a second of imports.
    frequency = base ** (-torch.arange(0, head_size, 2, device="cpu").float() / head_size)  # (D / 2)
    angle = torch.arange(length, device="cpu").float()[:, None] * frequency  # (length, D / 2)
    angle = torch.cat([angle, angle], dim=-1)  # (length, D)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair of channels by the angle of its position: x (B, T, H, D), cos and sin (T, 1, D) -> (B, T, H, D)

    The dot product of a rotated query and a rotated key depends on the distance between their positions only.
    """
    half = x.size(-1) // 2
    rotated_90 = torch.cat([-x[..., half:], x[..., :half]], dim=-1)  # (B, T, H, D), each pair (a, b) as (-b, a)
    return (x * cos + rotated_90 * sin).type_as(x)


class KeyValueCache:
    """The keys and values of the tokens so far, so that a new token needs only its own.

    `store` holds those of all layers, allocated once: (n_layer, 2, B, H, block_size, D). `length` counts the tokens.
    """

    def __init__(self, n_layer: int, batch: int, n_head: int, block_size: int, head_size: int, like: Tensor):
        self.store = like.new_empty(n_layer, 2, batch, n_head, block_size, head_size)
        self.length = 0  # GPT.features increases it after the last layer

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values (B, H, T, D) of new tokens. Returns those of all tokens so far, (B, H, S, D)."""
        end = self.length + key.size(2)
        keys, values = self.store[layer, 0], self.store[layer, 1]  # (B, H, block_size, D)
        keys[:, :, self.length : end] = key
        values[:, :, self.length : end] = value
        return keys[:, :, :end], values[:, :, :end]


def causal_mask(T: int, S: int, device) -> Tensor:
    """(T, S), True where a token may attend: the last T of S tokens, each to itself and to all before it.

    causal_mask(2, 4, "cpu") is [[1, 1, 1, 0], [1, 1, 1, 1]].
    """
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(D)), each row summing to 1: query (B, H, T, D), key (B, H, S, D) -> (B, H, T, S)

    Row t says how much token t takes from each token up to itself. Vaswani et al. 2017 (arXiv:1706.03762), equation 1.
    """
    T, S, D = query.size(2), key.size(2), query.size(3)
    scores = query @ key.transpose(2, 3) / D**0.5  # (B, H, T, S)
    scores = scores.masked_fill(~causal_mask(T, S, query.device), float("-inf"))
    return scores.float().softmax(dim=-1).type_as(query)


# Eleven places compute this block. Whoever changes the architecture changes all eleven. The test under each place
# compares it with the layers below, and these with Hugging Face's Qwen3.
#
#   The model itself: model/layers.py, model/gpt.py
#       tests/model/test_model.py::test_logits_equal_qwen3
#   The backward pass by hand: model/by_hand.py
#       tests/model/test_by_hand.py::test_a_whole_model
#   The same in C: model/by_hand.c
#       tests/model/test_by_hand.py::test_a_whole_model
#   The same on a GPU, in Triton: model/by_hand_gpu.py
#       tests/model/test_by_hand_gpu.py::test_attention
#   One token on a CPU, in numpy: model/generation/one_token.py
#       tests/generation/test_one_token.py::test_logits_and_cache_are_the_models
#   One token on a CPU, in C: model/generation/one_token.c, model/generation/one_token_c.py
#       tests/generation/test_one_token.py::test_logits_and_cache_are_the_models
#   One token on a GPU, in Triton: model/generation/one_token_gpu.py
#       tests/generation/test_one_token_gpu.py::test_logits_and_cache_are_the_models
#   Interpretation, module by module: model/interpretation/forward_pass.py
#       tests/interpretation/test_forward_pass.py::test_every_number_is_that_of_plain_pytorch
#   One token in plain Python, to be read: scripts/gpt_in_plain_python.py
#       tests/scripts/test_gpt_in_plain_python.py::test_probabilities_are_the_models
#   One token as an ONNX graph: model/storage/onnx_file.py
#       tests/scripts/test_export_onnx.py::test_greedy_text_and_logits_are_the_models
#   One token in a browser, in JavaScript: scripts/pages/gpt.js
#       tests/scripts/test_export_html.py::test_logits_are_the_models
#
# The weights have their names and shapes in three more: GPT.hidden_matrices() for the optimizer, Qwen3's names in
# model/storage/huggingface.py, and the limits in model/storage/checks.py.


class Attention(nn.Module):
    """Causal self-attention: each token gathers values from itself and the tokens before it. (B, T, C) -> (B, T, C)

    Queries and keys are RMS-normalised per head before they are rotated (QK-norm, Henry et al. 2020,
    arXiv:2010.04245). This bounds their dot products, so training tolerates higher learning rates.
    """

    def __init__(self, n_embd: int, n_head: int, dropout: float):
        super().__init__()
        self.n_head, self.dropout = n_head, dropout
        self.qkv = Linear(n_embd, 3 * n_embd, bias=False)  # queries, keys and values in one product
        self.query_norm = RMSNorm(n_embd // n_head)
        self.key_norm = RMSNorm(n_embd // n_head)
        self.output = Linear(n_embd, n_embd, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache=None, layer=0, weights: list | None = None) -> Tensor:
        B, T, C = x.shape
        H, D = self.n_head, C // self.n_head
        qkv = self.qkv(x)  # (B, T, 3C)
        plain = cache is not None or weights is not None or (self.dropout > 0 and self.training)
        hand = by_hand(qkv)
        if hand and not plain and (hand is by_hand_c or T <= EXPLICIT_UP_TO):
            norms = torch.stack([self.query_norm.weight, self.key_norm.weight]).unsqueeze(1)  # (2, 1, D)
            return self.output(hand.attention(qkv, norms, cos, sin, H, self.query_norm.eps))

        if gpu := on_gpu(qkv):
            norms = torch.stack([self.query_norm.weight, self.key_norm.weight])  # (2, D)
            q, k, v = gpu.split_heads(qkv, norms, cos, sin, H, self.query_norm.eps)  # (B, T, H, D) each
        else:
            q, k, v = (each.view(B, T, H, D) for each in qkv.split(C, dim=2))
            q = rotate(self.query_norm(q), cos[:, None], sin[:, None])
            k = rotate(self.key_norm(k), cos[:, None], sin[:, None])
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))  # (B, H, T, D) each, without a copy
        if cache is not None:
            k, v = cache.update(layer, k, v)  # (B, H, S, D)
        S = k.size(2)

        explicit = weights is not None or (x.device.type == "cpu" and T == S <= EXPLICIT_UP_TO)
        if explicit:  # because the caller wants the weights, or because it is faster
            p = attention_weights(q, k)  # (B, H, T, S)
            if weights is not None:
                weights.append(p)
            y = F.dropout(p, self.dropout, self.training) @ v  # (B, H, T, D)
        else:  # the same in one fused kernel, which never holds all the weights at once
            mask = causal_mask(T, S, x.device) if 1 < T < S else None  # is_causal is for T == S only
            dropout = self.dropout if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=T == S)
        return self.output(y.transpose(1, 2).reshape(B, T, C))


class SwiGLU(nn.Module):
    """The feed-forward layer, W_down (silu(W_gate x) * (W_up x)): (B, T, C) -> (B, T, C)

    Shazeer 2020, GLU Variants Improve Transformer (arXiv:2002.05202), equation 6.
    """

    def __init__(self, n_embd: int):
        super().__init__()
        hidden = mlp_size(n_embd)
        self.gate_up = Linear(n_embd, 2 * hidden, bias=False)  # W_gate and W_up in one product
        self.down = Linear(hidden, n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate_up = self.gate_up(x)  # (B, T, 2 hidden)
        if hand := by_hand(gate_up) or on_gpu(gate_up):
            return self.down(hand.swiglu(gate_up))
        gate, up = gate_up.chunk(2, dim=-1)  # (B, T, hidden) each
        return self.down(F.silu(gate) * up)


def mlp_size(n_embd: int) -> int:
    """The hidden size of SwiGLU: 8/3 n_embd, rounded up to a multiple of 32, which suits matrix kernels.

    With 8/3, SwiGLU's three matrices have as many weights as the two of a classic MLP with a hidden size of 4 n_embd.
    """
    return -(-8 * n_embd // 3 // 32) * 32


class Block(nn.Module):
    """A transformer block, pre-norm: attention and SwiGLU each add to the residual stream x. (B, T, C) -> (B, T, C)

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
        normed, x = self.attention_norm.beside(x)
        x = x + self.drop(self.attention(normed, cos, sin, cache, layer, weights))
        normed, x = self.mlp_norm.beside(x)
        return x + self.drop(self.mlp(normed))
