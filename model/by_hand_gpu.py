"""A layer's passes written by hand for an NVIDIA GPU, in Triton: norms, QK-norm with rotation, SwiGLU, and the loss.

The plain twin is layers.py (and GPT.loss); tests/model/test_by_hand_gpu.py compares the two, in Triton's interpreter
where there is no GPU. by_hand.py has the algebra.

A GPU multiplies matrices at 700 TFLOP/s and reads 4 TB/s, so much of a step is reading and writing tensors. In torch,
each operation of a layer reads and writes all its channels; here a kernel reads its input once and writes its result
once. Products, attention's softmax, dropout and the residual additions stay torch's.

Where a weight has a .grad already, as optimizer.py makes them, its gradient is not returned to autograd, which would
write it, convert it to fp32 and add it: the product itself adds to .grad, in fp32. torch.autograd.grad() would miss it.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function

TILE = 1024  # pairs of channels that a program rotates at once
TILES = 16  # and how often, in the backward pass
ROWS = 16  # tokens per program of the norm's backward pass
LOGITS = 2048  # that a program of the loss has at once
CHUNK_LOGITS = 1 << 31  # logits that exist at once, 4 GB in bfloat16


# --- products ---------------------------------------------------------------------------------------------------------


def accumulate_product(total: Tensor, a: Tensor, b: Tensor, keep: bool = True) -> None:
    """total (m, n) += a (m, k) @ b (k, n), summed in the precision of the total. Without `keep`, total = a @ b."""
    if a.dtype == total.dtype:
        torch.addmm(total, a, b, beta=float(keep), out=total)
    else:
        torch.addmm(total, a, b, total.dtype, beta=float(keep), out=total)


class LinearOnGPU(Function):
    """layers.Linear: x (..., in), weight (out, in) in fp32 -> (..., out), all computed in `dtype`"""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        x, low = x.to(dtype), weight.to(dtype)
        ctx.weight = weight
        ctx.save_for_backward(x, low)
        return F.linear(x, low)

    @staticmethod
    def backward(ctx, dy: Tensor):
        x, low = ctx.saved_tensors
        tokens_dy, tokens_x, dweight = dy.reshape(-1, dy.size(-1)), x.reshape(-1, x.size(-1)), None
        if ctx.needs_input_grad[1] and ctx.weight.grad is None:
            dweight = (tokens_dy.T @ tokens_x).to(ctx.weight.dtype)
        elif ctx.needs_input_grad[1]:
            accumulate_product(ctx.weight.grad, tokens_dy.T, tokens_x)
        return dy @ low, dweight, None


# --- RMSNorm ----------------------------------------------------------------------------------------------------------
# One row of channels at a time; Triton wants powers of two, so their number is rounded up to COLUMNS and the rest
# masked.


@triton.jit
def norm_kernel(x_ptr, weight_ptr, y_ptr, size, eps, COLUMNS: tl.constexpr):
    """One row: y = x / sqrt(mean(x^2) + eps) * weight"""
    column = tl.arange(0, COLUMNS)
    offsets, inside = tl.program_id(0).to(tl.int64) * size + column, column < size
    x = tl.load(x_ptr + offsets, inside, 0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, inside, 0.0)
    tl.store(y_ptr + offsets, x * (1 / tl.sqrt(tl.sum(x * x, 0) / size + eps)) * weight, inside)


@triton.jit
def norm_backward_kernel(
    dy_ptr, residual_ptr, x_ptr, weight_ptr, dx_ptr, dweight_ptr, rows, size, eps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """ROWS rows: dx from dy, added to the gradient that x has from elsewhere; and their part of dweight, a row of
    (programs, size)."""
    column = tl.arange(0, COLUMNS)
    weight, dweight = tl.load(weight_ptr + column, column < size, 0.0), tl.zeros([COLUMNS], tl.float32)
    for i in tl.range(ROWS, num_stages=STAGES):  # the next rows are read while one is computed
        row = tl.program_id(0).to(tl.int64) * ROWS + i
        offsets, inside = row * size + column, column < tl.where(row < rows, size, 0)
        x = tl.load(x_ptr + offsets, inside, 0.0).to(tl.float32)
        dy = tl.load(dy_ptr + offsets, inside, 0.0).to(tl.float32)
        residual = tl.load(residual_ptr + offsets, inside, 0.0).to(tl.float32)
        scale = (1 / tl.sqrt(tl.sum(x * x, 0) / size + eps)).to(tl.float32)
        normed, g = x * scale, dy * weight
        tl.store(dx_ptr + offsets, residual + scale * (g - normed * (tl.sum(g * normed, 0) / size)), inside)
        dweight += dy * normed
    tl.store(dweight_ptr + tl.program_id(0).to(tl.int64) * size + column, dweight, column < size)


class RMSNormOnGPU(Function):
    """layers.RMSNorm.beside: x (..., C), weight (C) -> its norm (..., C), and x itself for the residual stream. So the
    gradients of both come here, and are added in the same pass."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.eps, size, y = eps, x.size(-1), torch.empty_like(x)
        norm_kernel[(x.numel() // size,)](x, weight, y, size, eps, **norm_columns(size))
        return y, x

    @staticmethod
    def backward(ctx, dy: Tensor, residual: Tensor):  # zeros where one is not used
        x, weight = ctx.saved_tensors
        size, dx = x.size(-1), torch.empty_like(x)
        rows = x.numel() // size
        programs = triton.cdiv(rows, ROWS)
        parts = weight.new_empty(programs, size)
        norm_backward_kernel[(programs,)](
            dy.contiguous(), residual.contiguous(), x, weight, dx, parts, rows, size, ctx.eps,
            ROWS=ROWS, STAGES=3 if size <= 2048 else 1, **norm_columns(size),  # stages take shared memory
        )  # fmt: skip
        return dx, parts.sum(0), None


def norm_columns(size: int) -> dict:
    """The constants of the norm's kernels for rows of this size."""
    columns = triton.next_power_of_2(size)
    return {"COLUMNS": columns, "num_warps": min(16, max(1, columns // 256))}


# --- queries, keys and values -----------------------------------------------------------------------------------------
# A program takes a few tokens with all their heads, of queries (which = 0), keys (1) or values (2). A head is in two
# halves a and b, whose channels i are a pair. Triton wants powers of two, so HEADS and HALF are rounded up and the rest
# masked. Shapes in the kernels are (TOKENS, HEADS, HALF).


@triton.jit
def place(tile, tokens, heads, which, half, TOKENS: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr):
    """The tokens (TOKENS, 1, 1), heads (1, HEADS, 1) and channels (1, 1, HALF) of a tile; the offset of each first half
    in qkv; and what is inside."""
    token = (tile * TOKENS + tl.arange(0, TOKENS))[:, None, None]
    head, i = tl.arange(0, HEADS)[None, :, None], tl.arange(0, HALF)[None, None, :]
    offsets = ((token.to(tl.int64) * 3 + which) * heads + head) * (2 * half) + i
    return token, head, i, offsets, (token < tokens) & (head < heads) & (i < half)


@triton.jit
def normed_halves(x_ptr, offsets, inside, half, eps):
    """Heads without their norm's weight, as two halves, and the factor 1 / sqrt(mean(x^2) + eps) that was applied."""
    a = tl.load(x_ptr + offsets, inside, 0.0).to(tl.float32)
    b = tl.load(x_ptr + half + offsets, inside, 0.0).to(tl.float32)
    mean = (tl.sum(a * a, 2) + tl.sum(b * b, 2)) / (2 * half)
    scale = (1 / tl.sqrt(mean + eps)).to(tl.float32)[:, :, None]  # eps may come as a double
    return a * scale, b * scale, scale


@triton.jit
def turn(cos_ptr, sin_ptr, token, i, tokens, T, half):
    """Cosine and sine of the angles of each token's position, (TOKENS, 1, HALF)."""
    angles, inside = (token % T) * (2 * half) + i, (token < tokens) & (i < half)
    return tl.load(cos_ptr + angles, inside, 0.0), tl.load(sin_ptr + angles, inside, 0.0)


@triton.jit
def weight_halves(norms_ptr, which, i, half):
    """The weight of the queries' or the keys' norm as two halves, (1, 1, HALF)."""
    weight = norms_ptr + which * 2 * half + i
    return tl.load(weight, i < half, 0.0), tl.load(weight + half, i < half, 0.0)


@triton.jit
def split_kernel(
    qkv_ptr, y_ptr, norms_ptr, cos_ptr, sin_ptr, tokens, heads, T, half, eps,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """A third of qkv (B, T, 3C) -> a third of y (3, B, T, H, D): queries and keys normalised and rotated, values as
    they are."""
    which = tl.program_id(1)
    token, head, i, offsets, inside = place(tl.program_id(0), tokens, heads, which, half, TOKENS, HEADS, HALF)
    y_ptr += ((which.to(tl.int64) * tokens + token) * heads + head) * (2 * half) + i
    if which == 2:
        tl.store(y_ptr, tl.load(qkv_ptr + offsets, inside), inside)
        tl.store(y_ptr + half, tl.load(qkv_ptr + half + offsets, inside), inside)
    else:
        a, b, _ = normed_halves(qkv_ptr, offsets, inside, half, eps)
        weight_a, weight_b = weight_halves(norms_ptr, which, i, half)
        cos, sin = turn(cos_ptr, sin_ptr, token, i, tokens, T, half)
        a, b = a * weight_a, b * weight_b
        tl.store(y_ptr, a * cos - b * sin, inside)
        tl.store(y_ptr + half, b * cos + a * sin, inside)


@triton.jit
def join_kernel(
    dq_ptr, dk_ptr, dv_ptr, batch_stride, token_stride, head_stride, qkv_ptr, dqkv_ptr, dnorms_ptr, norms_ptr, cos_ptr,
    sin_ptr, tokens, heads, T, half, eps,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """The backward pass of split_kernel: the gradients of queries, keys or values, in any layout, become a third of
    dqkv; and each program's part of the gradient of the norm's weight a row of dnorms (3, programs, 2, HALF)."""
    which = tl.program_id(1)
    dy_ptr = dq_ptr
    if which == 1:
        dy_ptr = dk_ptr
    if which == 2:
        dy_ptr = dv_ptr
    dweight_a = tl.zeros([TOKENS, HEADS, HALF], tl.float32)
    dweight_b = tl.zeros([TOKENS, HEADS, HALF], tl.float32)
    for step in range(TILES):
        tile = tl.program_id(0) * TILES + step
        token, head, i, offsets, inside = place(tile, tokens, heads, which, half, TOKENS, HEADS, HALF)
        dy = dy_ptr + (token // T).to(tl.int64) * batch_stride + (token % T) * token_stride + head * head_stride + i
        da, db = tl.load(dy, inside, 0.0).to(tl.float32), tl.load(dy + half, inside, 0.0).to(tl.float32)
        if which != 2:
            a, b, scale = normed_halves(qkv_ptr, offsets, inside, half, eps)
            weight_a, weight_b = weight_halves(norms_ptr, which, i, half)
            cos, sin = turn(cos_ptr, sin_ptr, token, i, tokens, T, half)
            da, db = da * cos + db * sin, db * cos - da * sin  # the rotation back
            dweight_a += da * a
            dweight_b += db * b
            da, db = da * weight_a, db * weight_b
            mean = ((tl.sum(da * a, 2) + tl.sum(db * b, 2)) / (2 * half))[:, :, None]
            da, db = scale * (da - a * mean), scale * (db - b * mean)
        tl.store(dqkv_ptr + offsets, da, inside)
        tl.store(dqkv_ptr + half + offsets, db, inside)
    part = dnorms_ptr + (which * tl.num_programs(0) + tl.program_id(0)) * 2 * HALF + tl.arange(0, HALF)
    tl.store(part, tl.sum(tl.sum(dweight_a, 0), 0))  # zero for values, which have no norm
    tl.store(part + HALF, tl.sum(tl.sum(dweight_b, 0), 0))


class SplitHeadsOnGPU(Function):
    """The beginning of layers.Attention: qkv (B, T, 3C), norms (2, D), cos and sin (T, D) -> q, k, v (B, T, H, D)"""

    @staticmethod
    def forward(ctx, qkv: Tensor, norms: Tensor, cos: Tensor, sin: Tensor, n_head: int, eps: float):
        (B, T, _), D = qkv.shape, norms.size(1)
        ctx.numbers = (B * T, n_head, T, D // 2, eps)
        HEADS, HALF = map(triton.next_power_of_2, (n_head, D // 2))
        TOKENS = max(1, TILE // (HEADS * HALF))
        warps = min(16, max(1, TOKENS * HEADS * HALF // 256))
        ctx.constants = {"TOKENS": TOKENS, "HEADS": HEADS, "HALF": HALF, "num_warps": warps}
        tiles = triton.cdiv(B * T, ctx.constants["TOKENS"])
        ctx.save_for_backward(qkv, norms, cos, sin)
        y = qkv.new_empty(3, B, T, n_head, D)
        split_kernel[(tiles, 3)](qkv, y, norms, cos, sin, *ctx.numbers, **ctx.constants)
        return y.unbind()

    @staticmethod
    def backward(ctx, *grads: Tensor):
        qkv, norms, cos, sin = ctx.saved_tensors
        dqkv, half = torch.empty_like(qkv), norms.size(1) // 2
        programs = triton.cdiv(len(qkv) * qkv.size(1), ctx.constants["TOKENS"] * TILES)
        dnorms = norms.new_empty(3, programs, 2, ctx.constants["HALF"])
        if grads[0].stride(3) != 1 or len({dy.stride() for dy in grads}) > 1:
            grads = [dy.contiguous() for dy in grads]
        join_kernel[(programs, 3)](
            *grads, *grads[0].stride()[:3], qkv, dqkv, dnorms, norms, cos, sin, *ctx.numbers, **ctx.constants,
            TILES=TILES,
        )  # fmt: skip
        return dqkv, dnorms[:2].sum(1)[:, :, :half].flatten(1), None, None, None, None


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
def some_logits(logits_ptr, column, V, stride):
    """The logits in these columns, -inf behind the V columns that count. The mask of the load is the stride, a round
    number, so that a thread reads eight at once."""
    x = tl.load(logits_ptr + column, column < stride, 0.0).to(tl.float32)
    return tl.where(column < V, x, -float("inf"))


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
        x = some_logits(logits_ptr, first + column, V, stride)
        higher = tl.maximum(highest, tl.max(x, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher), 0)
        highest = higher
    tl.store(losses_ptr + token, highest + tl.log(total) - at_target)
    for first in range(0, stride, COLUMNS):
        x = some_logits(logits_ptr, first + column, V, stride)
        gradient = tl.exp(x - highest) / total - tl.where(first + column == target, 1.0, 0.0)
        tl.store(logits_ptr + first + column, gradient, first + column < stride)


class HeadLossOnGPU(Function):
    """HeadLossByHand (by_hand.py), whose chunks are large here, since only their size in memory matters: x (N, C), the
    head's weight (V, C) in fp32, targets (N) -> mean of -ln p of the targets, 0-dim fp32

    The head is padded to a multiple of 128 rows: kernels for products are slow where rows of logits do not start at
    round addresses.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, dtype: torch.dtype, targets: Tensor) -> Tensor:
        (V, C), x = weight.shape, x.to(dtype)
        padded = x.new_zeros(V + -V % 128, C)
        padded[:V] = weight
        loss, dx = torch.zeros((), device=x.device), torch.empty_like(x)
        dweight = torch.empty_like(padded, dtype=torch.float32)
        n = max(1, CHUNK_LOGITS // len(padded))  # tokens per chunk
        for begin in range(0, len(x), n):
            chunk = slice(begin, begin + n)
            logits = x[chunk] @ padded.T
            loss += losses_and_gradients(logits, targets[chunk], V).sum()  # from here on, logits are their gradient
            torch.mm(logits, padded, out=dx[chunk])
            accumulate_product(dweight, logits.T, x[chunk], keep=begin > 0)
            del logits  # before the next ones are made
        ctx.weight = weight
        ctx.save_for_backward(dx, dweight[:V])
        return loss / len(x)

    @staticmethod
    def backward(ctx, dloss: Tensor):
        (dx, dweight), grad = ctx.saved_tensors, ctx.weight.grad
        scale = dloss / len(dx)
        if ctx.needs_input_grad[1] and grad is not None:
            grad.addcmul_(dweight, scale)
        returned = dweight * scale if ctx.needs_input_grad[1] and grad is None else None
        return dx * scale.to(dx.dtype), returned, None, None


def losses_and_gradients(logits: Tensor, targets: Tensor, V: int) -> Tensor:
    """-ln p of the targets (N,), from logits (N, at least V) of which the first V count. The gradient of their sum
    replaces the logits."""
    losses = logits.new_empty(len(logits), dtype=torch.float32)
    columns = min(LOGITS, triton.next_power_of_2(logits.size(1)))
    loss_and_gradient[(len(logits),)](
        logits, targets, losses, V, logits.stride(0), COLUMNS=columns, num_warps=max(1, columns // 512)
    )
    return losses


linear, norm_beside, split_heads = LinearOnGPU.apply, RMSNormOnGPU.apply, SplitHeadsOnGPU.apply
swiglu, head_loss = SwiGLUOnGPU.apply, HeadLossOnGPU.apply
