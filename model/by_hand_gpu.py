"""Passes written by hand for an NVIDIA GPU, in Triton: QK-norm with rotation, SwiGLU, and the loss from its logits.

The plain twin is layers.py (and GPT.loss); tests/model/test_by_hand_gpu.py compares the two, in Triton's interpreter
where there is no GPU. by_hand.py has the algebra.

A GPU multiplies matrices at 700 TFLOP/s and reads 4 TB/s, so much of a step is reading and writing tensors. In torch,
each operation of a layer reads and writes all its channels; here a kernel reads its input once and writes its result
once. The loss reads a row of logits twice, while it is in the cache, and writes their gradient in its place.

A compiled step uses the plain layers, which the compiler fuses, and only the loss from here (docs/experiments.md).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function

ROWS = 64  # heads of tokens per program of the rotation
COLUMNS = 4096  # logits at once per program of the loss


# --- queries, keys and values -----------------------------------------------------------------------------------------
# A program takes ROWS rows, each one head of one token, of queries (which = 0), keys (1) or values (2). A row is in two
# halves a and b, whose channels i are a pair. Triton wants powers of two, so HALF is rounded up and the rest masked.


@triton.jit
def place(rows, heads, which, half, HALF: tl.constexpr, ROWS: tl.constexpr):
    """Token and head of each row (ROWS,), the offset of its first half in qkv (ROWS, HALF), and what is inside."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, HALF)
    token, head = row // heads, row % heads
    offsets = ((token.to(tl.int64) * 3 + which) * heads + head)[:, None] * (2 * half) + i[None, :]
    return token, head, offsets, (row < rows)[:, None] & (i < half)[None, :]


@triton.jit
def normed_halves(x_ptr, offsets, inside, half, eps):
    """A row without its norm's weight, as two halves, and the factor 1 / sqrt(mean(x^2) + eps) that was applied."""
    a = tl.load(x_ptr + offsets, inside, 0.0).to(tl.float32)
    b = tl.load(x_ptr + half + offsets, inside, 0.0).to(tl.float32)
    mean = (tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * half)
    scale = (1 / tl.sqrt(mean + eps)).to(tl.float32)[:, None]  # eps may come as a double
    return a * scale, b * scale, scale


@triton.jit
def turn(cos_ptr, sin_ptr, token, T, half, inside, HALF: tl.constexpr):
    """Cosine and sine of the angles of each row's position, (ROWS, HALF)."""
    angles = (token % T)[:, None] * (2 * half) + tl.arange(0, HALF)[None, :]
    return tl.load(cos_ptr + angles, inside, 0.0), tl.load(sin_ptr + angles, inside, 0.0)


@triton.jit
def weight_halves(norms_ptr, which, half, HALF: tl.constexpr):
    """The weight of the queries' or the keys' norm as two halves, (1, HALF)."""
    i = tl.arange(0, HALF)
    weight = norms_ptr + which * 2 * half + i
    return tl.load(weight, i < half, 0.0)[None, :], tl.load(weight + half, i < half, 0.0)[None, :]


@triton.jit
def split_kernel(
    qkv_ptr,
    which,
    y_ptr,
    norms_ptr,
    cos_ptr,
    sin_ptr,
    rows,
    heads,
    T,
    half,
    eps,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A third of qkv (B, T, 3C) -> y (B, T, H, D): queries and keys normalised and rotated, values as they are."""
    token, head, offsets, inside = place(rows, heads, which, half, HALF, ROWS)
    y_ptr += (token.to(tl.int64) * heads + head)[:, None] * (2 * half) + tl.arange(0, HALF)[None, :]
    if which == 2:
        tl.store(y_ptr, tl.load(qkv_ptr + offsets, inside), inside)
        tl.store(y_ptr + half, tl.load(qkv_ptr + half + offsets, inside), inside)
    else:
        a, b, _ = normed_halves(qkv_ptr, offsets, inside, half, eps)
        weight_a, weight_b = weight_halves(norms_ptr, which, half, HALF)
        cos, sin = turn(cos_ptr, sin_ptr, token, T, half, inside, HALF)
        a, b = a * weight_a, b * weight_b
        tl.store(y_ptr, a * cos - b * sin, inside)
        tl.store(y_ptr + half, b * cos + a * sin, inside)


@triton.jit
def join_kernel(
    dy_ptr, batch_stride, token_stride, head_stride, which, qkv_ptr, dqkv_ptr, dnorms_ptr, norms_ptr, cos_ptr, sin_ptr,
    rows, heads, T, half, eps, HALF: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The backward pass of split_kernel for queries, keys or values: their gradient dy, in any layout, becomes a third
    of dqkv; and each program's part of the gradient of the norm's weight a row of dnorms (programs, 2, HALF)."""
    token, head, offsets, inside = place(rows, heads, which, half, HALF, ROWS)
    i = tl.arange(0, HALF)
    begin = (token // T).to(tl.int64) * batch_stride + (token % T) * token_stride + head * head_stride
    dy = dy_ptr + begin[:, None] + i[None, :]
    da, db = tl.load(dy, inside, 0.0).to(tl.float32), tl.load(dy + half, inside, 0.0).to(tl.float32)
    if which != 2:
        a, b, scale = normed_halves(qkv_ptr, offsets, inside, half, eps)
        weight_a, weight_b = weight_halves(norms_ptr, which, half, HALF)
        cos, sin = turn(cos_ptr, sin_ptr, token, T, half, inside, HALF)
        da, db = da * cos + db * sin, db * cos - da * sin  # the rotation back
        part = dnorms_ptr + tl.program_id(0) * 2 * HALF + i
        tl.store(part, tl.sum(da * a, 0))
        tl.store(part + HALF, tl.sum(db * b, 0))
        da, db = da * weight_a, db * weight_b
        mean = ((tl.sum(da * a, 1) + tl.sum(db * b, 1)) / (2 * half))[:, None]
        da, db = scale * (da - a * mean), scale * (db - b * mean)
    tl.store(dqkv_ptr + offsets, da, inside)
    tl.store(dqkv_ptr + half + offsets, db, inside)


class SplitHeadsOnGPU(Function):
    """The beginning of layers.Attention: qkv (B, T, 3C), norms (2, D), cos and sin (T, D) -> q, k, v (B, T, H, D)"""

    @staticmethod
    def forward(ctx, qkv: Tensor, norms: Tensor, cos: Tensor, sin: Tensor, n_head: int, eps: float):
        (B, T, _), D = qkv.shape, norms.size(1)
        rows, half = B * T * n_head, D // 2
        ctx.numbers = (rows, n_head, T, half, eps)
        ctx.constants = {"HALF": triton.next_power_of_2(half), "ROWS": ROWS}
        ctx.save_for_backward(qkv, norms, cos, sin)
        parts = qkv.new_empty(3, B, T, n_head, D).unbind()
        for which, y in enumerate(parts):
            split_kernel[(triton.cdiv(rows, ROWS),)](qkv, which, y, norms, cos, sin, *ctx.numbers, **ctx.constants)
        return parts

    @staticmethod
    def backward(ctx, *grads: Tensor):
        qkv, norms, cos, sin = ctx.saved_tensors
        programs, half = triton.cdiv(ctx.numbers[0], ROWS), norms.size(1) // 2
        dqkv, dnorms = torch.empty_like(qkv), norms.new_empty(2, programs, 2, ctx.constants["HALF"])
        for which, dy in enumerate(grads):
            dy = dy if dy.stride(3) == 1 else dy.contiguous()
            join_kernel[(programs,)](
                dy, *dy.stride()[:3], which, qkv, dqkv, dnorms[min(which, 1)], norms, cos, sin,
                *ctx.numbers, **ctx.constants,
            )  # fmt: skip
        return dqkv, dnorms.sum(1)[:, :, :half].flatten(1), None, None, None, None


# --- SwiGLU -----------------------------------------------------------------------------------------------------------


@triton.jit
def swiglu_kernel(gate_up_ptr, y_ptr, hidden, COLUMNS: tl.constexpr):
    """One token: gate_up (2 hidden) -> silu(gate) * up (hidden)"""
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    gate_ptr, inside = gate_up_ptr + token * 2 * hidden + column, column < hidden
    gate = tl.load(gate_ptr, inside, 0.0).to(tl.float32)
    up = tl.load(gate_ptr + hidden, inside, 0.0).to(tl.float32)
    tl.store(y_ptr + token * hidden + column, gate * tl.sigmoid(gate) * up, inside)


@triton.jit
def swiglu_backward_kernel(dy_ptr, gate_up_ptr, dgate_up_ptr, hidden, COLUMNS: tl.constexpr):
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin, inside = token * 2 * hidden + column, column < hidden
    gate = tl.load(gate_up_ptr + begin, inside, 0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + hidden + begin, inside, 0.0).to(tl.float32)
    dy = tl.load(dy_ptr + token * hidden + column, inside, 0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    tl.store(dgate_up_ptr + begin, dy * up * (sigmoid + silu * (1 - sigmoid)), inside)
    tl.store(dgate_up_ptr + hidden + begin, dy * silu, inside)


class SwiGLUOnGPU(Function):
    """layers.SwiGLU between its matrices: gate_up (B, T, 2 hidden) -> silu(gate) * up (B, T, hidden)"""

    @staticmethod
    def forward(ctx, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        y = gate_up.new_empty(*gate_up.shape[:-1], gate_up.size(-1) // 2)
        grid, columns = per_token(y)
        swiglu_kernel[grid](gate_up, y, y.size(-1), COLUMNS=columns)
        return y

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        dgate_up = torch.empty_like(gate_up)
        grid, columns = per_token(dy)
        swiglu_backward_kernel[grid](dy.contiguous(), gate_up, dgate_up, dy.size(-1), COLUMNS=columns)
        return dgate_up


def per_token(y: Tensor) -> tuple[tuple[int, int], int]:
    """The grid of SwiGLU's kernels for y (..., hidden), and the columns per program."""
    hidden = y.size(-1)
    columns = min(1024, triton.next_power_of_2(hidden))
    return (y.numel() // hidden, triton.cdiv(hidden, columns)), columns


# --- the loss ---------------------------------------------------------------------------------------------------------


@triton.jit
def loss_and_gradient(logits_ptr, targets_ptr, losses_ptr, V, stride, COLUMNS: tl.constexpr):
    """One token: its loss -ln p(target), and in place of its logits their gradient, p - one_hot(target). Behind the V
    logits, up to the stride from one token to the next, it becomes zero."""
    token = tl.program_id(0).to(tl.int64)
    logits_ptr += token * stride
    target = tl.load(targets_ptr + token)
    at_target = tl.load(logits_ptr + target).to(tl.float32)
    column = tl.arange(0, COLUMNS)
    highest, total = -float("inf"), 0.0
    for first in range(0, V, COLUMNS):
        x = tl.load(logits_ptr + first + column, first + column < V, -float("inf")).to(tl.float32)
        higher = tl.maximum(highest, tl.max(x, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher), 0)
        highest = higher
    tl.store(losses_ptr + token, highest + tl.log(total) - at_target)
    for first in range(0, stride, COLUMNS):
        x = tl.load(logits_ptr + first + column, first + column < V, -float("inf")).to(tl.float32)
        gradient = tl.exp(x - highest) / total - tl.where(first + column == target, 1.0, 0.0)
        tl.store(logits_ptr + first + column, gradient, first + column < stride)


def losses_and_gradients(logits: Tensor, targets: Tensor, V: int) -> Tensor:
    """-ln p of the targets (N,), from logits (N, at least V) of which the first V count. The gradient of their sum
    replaces the logits."""
    losses = logits.new_empty(len(logits), dtype=torch.float32)
    columns = min(COLUMNS, triton.next_power_of_2(logits.size(1)))
    loss_and_gradient[(len(logits),)](
        logits, targets, losses, V, logits.stride(0), COLUMNS=columns, num_warps=max(1, columns // 512)
    )
    return losses
