"""Backward passes written by hand: RMSNorm, attention, SwiGLU, and the head with its loss. They make training fast.

The plain twin is layers.py (and GPT.loss), where autograd finds the same gradients. But autograd runs a hundred small
operations, each of which reads and writes whole tensors, and on a CPU most of a small model's step goes into that. Here
the algebra is done on paper first, which leaves few operations. A CPU takes this path: by_hand() in layers.py decides.
Where there is a C compiler, by_hand.c does the same for fp32 in fewer passes over memory. An NVIDIA GPU has
by_hand_gpu.py, everything else the plain layers. tests/model/test_by_hand.py holds the first three together.

Read layers.py first; the notation is the same. dx is the gradient of the loss with respect to x, in the shape of x.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from model import by_hand_c


def norm_forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """RMSNorm without its weight: x (..., C) -> x * scale (..., C) and scale (..., 1) = 1 / sqrt(mean(x^2) + eps)"""
    scale = torch.linalg.vecdot(x, x).div_(x.size(-1)).add_(eps).rsqrt_().unsqueeze(-1)
    return x * scale, scale


def norm_backward(dy: Tensor, normed: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """For y = normed * weight: returns dx / scale and dy * normed, both (..., C).

    With g = dy * weight, the gradient of normed = x * scale is dx = scale * (g - normed * mean(g * normed)): the
    component of g along x drops out, since a longer x has the same norm. dy * normed, summed over tokens, is dweight.
    """
    dy_normed = dy * normed
    mean = torch.linalg.vecdot(dy_normed, weight.expand_as(dy_normed)).div_(-normed.size(-1)).unsqueeze(-1)  # (..., 1)
    return torch.addcmul(dy * weight, normed, mean), dy_normed


class RMSNormByHand(Function):
    """layers.RMSNorm: x (B, T, C), weight (C) -> (B, T, C)"""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed, scale = norm_forward(x, eps)
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    def backward(ctx, dy: Tensor):
        normed, scale, weight = ctx.saved_tensors
        dx, dy_normed = norm_backward(dy, normed, weight)
        return dx.mul_(scale), dy_normed.flatten(0, -2).sum(0), None


def rotate_into(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> None:
    """layers.rotate, written to `out`. A rotation's gradient is the rotation back: direction 1 forward, -1 backward."""
    half = x.size(-1) // 2
    torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(x[..., half:], sin[:, half:], value=-direction)
    out[..., half:].addcmul_(x[..., :half], sin[:, :half], value=direction)


class AttentionByHand(Function):
    """layers.Attention between its two matrices: qkv (B, T, 3C), cos and sin (T, D) -> (B, T, C)

    `weight` (2, 1, D) holds the weights of query_norm and key_norm. Queries and keys are normalised and rotated
    together, in fp32. The matrix products are in the precision of qkv.

    Backward, for s = q k^T / sqrt(D), p = softmax(s), y = p v:
        dv = p^T dy                       dp = dy v^T
        ds = p * (dp - sum(dp * p))       the sum is dy . y, because y = p v: a dot product over D instead of T numbers
        dq = ds k / sqrt(D)               dk = ds^T q / sqrt(D)
    then back through the rotation and the norm of q and k.
    """

    @staticmethod
    def forward(ctx, qkv: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, n_head: int, eps: float) -> Tensor:
        B, T, C = qkv.size(0), qkv.size(1), qkv.size(2) // 3
        H, D = n_head, C // n_head
        split = qkv.view(B, T, 3, H, D)
        normed, scale = norm_forward(split[:, :, :2].float(), eps)  # (B, T, 2, H, D), (B, T, 2, H, 1)
        rotated = normed.new_empty(2, B, H, T, D)
        rotate_into(rotated, (normed * weight).permute(2, 0, 3, 1, 4), cos, sin, 1)
        q, k = rotated.to(qkv.dtype).view(2, B * H, T, D)  # (BH, T, D) each
        v = split[:, :, 2].transpose(1, 2).reshape(B * H, T, D)
        mask = q.new_full((T, T), float("-inf")).triu_(1)
        p = torch.baddbmm(mask, q, k.mT, alpha=D**-0.5).softmax(dim=-1)  # (BH, T, T)
        y = torch.bmm(p, v)  # (BH, T, D)
        ctx.save_for_backward(normed, scale, weight, cos, sin, q, k, v, p, y)
        return y.view(B, H, T, D).transpose(1, 2).reshape(B, T, C)

    @staticmethod
    def backward(ctx, dy: Tensor):
        normed, scale, weight, cos, sin, q, k, v, p, y = ctx.saved_tensors
        B, T, _, H, D = normed.shape
        dy = dy.view(B, T, H, D).transpose(1, 2).reshape(B * H, T, D)
        dv = torch.bmm(p.mT, dy)  # (BH, T, D)
        ds = torch.bmm(dy, v.mT).sub_(torch.linalg.vecdot(dy, y).unsqueeze(-1)).mul_(p)  # (BH, T, T)
        drotated = dy.new_empty(2, B * H, T, D)  # dq and dk, after the rotation
        torch.baddbmm(q, ds, k, beta=0, alpha=D**-0.5, out=drotated[0])  # beta=0: the first argument is ignored
        torch.baddbmm(k, ds.mT, q, beta=0, alpha=D**-0.5, out=drotated[1])
        drotated = drotated.float().view(2, B, H, T, D)
        dweighted = torch.empty_like(drotated)  # the gradient of normed * weight
        rotate_into(dweighted, drotated, cos, sin, -1)
        dqk, dy_normed = norm_backward(dweighted.permute(1, 3, 0, 2, 4), normed, weight)  # (B, T, 2, H, D) each
        dqkv = dy.new_empty(B, T, 3, H, D)
        torch.mul(dqk, scale, out=dqkv[:, :, :2])
        dqkv[:, :, 2] = dv.view(B, H, T, D).transpose(1, 2)
        return dqkv.view(B, T, -1), dy_normed.sum((0, 1, 3)).unsqueeze(1), None, None, None, None


class SwiGLUByHand(Function):
    """layers.SwiGLU between its matrices: gate_up (B, T, 2 hidden) -> silu(gate) * up (B, T, hidden)

    Backward: dup = dy * silu(gate) and dgate = dy * up * silu'(gate). silu(z) = z * sigmoid(z) has the derivative
    silu' = sigmoid + silu * (1 - sigmoid).
    """

    @staticmethod
    def forward(ctx, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        sigmoid = gate.sigmoid()
        silu = gate * sigmoid
        ctx.save_for_backward(sigmoid, silu, up)
        return silu * up

    @staticmethod
    def backward(ctx, dy: Tensor):
        sigmoid, silu, up = ctx.saved_tensors
        hidden = up.size(-1)
        dgate_up = dy.new_empty(*dy.shape[:-1], 2 * hidden)
        slope = torch.addcmul(sigmoid, silu, sigmoid, value=-1).add_(silu)  # silu'(gate)
        torch.mul(slope.mul_(up), dy, out=dgate_up[..., :hidden])
        torch.mul(dy, silu, out=dgate_up[..., hidden:])
        return dgate_up


rms_norm, attention, swiglu = RMSNormByHand.apply, AttentionByHand.apply, SwiGLUByHand.apply


class HeadLossByHand(Function):
    """GPT.loss after the final norm: x (N, C), the head's weight (V, C), targets (N) -> mean of -ln p, 0-dim fp32

    x and weight are in the precision of the products. The logits (N, V) are by far the largest tensor of a small model,
    so they never exist as a whole: they are computed for some tokens at a time, which stay in the processor's cache.
    Their gradient, dlogits = (softmax(logits) - one_hot(targets)) / N, needs nothing from later layers. So dx and
    dweight are computed in the forward pass, chunk by chunk, and the backward pass only scales them.
    """

    CHUNK_LOGITS = 1 << 20  # logits per chunk, 4 MB in fp32
    MIN_TOKENS = 256  # at least this many tokens per chunk, because every chunk updates all of dweight (V, C)

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        loss = torch.zeros(())
        dx, dweight = torch.empty_like(x), torch.zeros_like(weight, dtype=torch.float32)
        n = max(HeadLossByHand.MIN_TOKENS, HeadLossByHand.CHUNK_LOGITS // len(weight))  # tokens per chunk
        for x_chunk, target, dx_chunk in zip(x.split(n), targets.split(n), dx.split(n), strict=True):
            losses, dlogits = HeadLossByHand.gradient(x_chunk @ weight.T, target)
            loss += losses.sum()
            torch.mm(dlogits, weight, out=dx_chunk)
            dweight += dlogits.T @ x_chunk
        ctx.save_for_backward(dx, dweight)
        return loss / len(x)

    @staticmethod
    def gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, V) and targets (n) -> -ln p of the targets (n) and the gradient of their sum (n, V)"""
        if by_hand_c.takes(logits):
            return by_hand_c.losses_in_c(logits, targets), logits
        log_p = F.log_softmax(logits, dim=1, dtype=torch.float32)
        at_target = torch.arange(len(logits)), targets
        losses = -log_p[at_target]
        dlogits = log_p.exp_()
        dlogits[at_target] -= 1
        return losses, dlogits.to(logits.dtype)

    @staticmethod
    def backward(ctx, dloss: Tensor):
        dx, dweight = ctx.saved_tensors
        scale = dloss / len(dx)
        return dx * scale.to(dx.dtype), (dweight * scale).to(dx.dtype), None
