"""Parts of the model with their backward pass written out: RMSNorm, attention, SwiGLU, and the head with its loss.

layers.py says the same in plain torch, and autograd would find these gradients by itself. But it would run them as a
hundred small operations, each of which reads and writes whole tensors, and most of a small model's step on a CPU goes
into that. Here the algebra is done first, so that few operations are left. A CPU takes this path (by_hand in layers.py
says when), everything else the plain one; tests/test_by_hand.py compares the two.

In the notation of layers.py, and with dx for the gradient of the loss with respect to x.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


def norm_forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x (..., C) at a root mean square of 1, and the factor (..., 1) that brought it there."""
    scale = torch.linalg.vecdot(x, x).div_(x.size(-1)).add_(eps).rsqrt_().unsqueeze(-1)
    return x * scale, scale


def norm_backward(dy: Tensor, normed: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """For y = normed * weight: (dx / scale, dy * normed). The second one, summed over tokens, is the weight's gradient.

    With g = dy * weight, dx = scale * (g - normed * mean(g * normed)): what would only lengthen x changes nothing.
    """
    product = dy * normed
    mean = torch.linalg.vecdot(product, weight.expand_as(product)).div_(-normed.size(-1)).unsqueeze(-1)
    return torch.addcmul(dy * weight, normed, mean), product


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
        dx, product = norm_backward(dy, normed, weight)
        return dx.mul_(scale), product.flatten(0, -2).sum(0), None


def turn(x: Tensor, cos: Tensor, sin: Tensor, direction: int, out: Tensor) -> None:
    """layers.rotate into `out`; direction -1 turns back, which is what its gradient does."""
    half = x.size(-1) // 2
    torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(x[..., half:], sin[:, half:], value=-direction)
    out[..., half:].addcmul_(x[..., :half], sin[:, :half], value=direction)


class AttentionByHand(Function):
    """layers.Attention between its two matrices: qkv (B, T, 3C), the weights (2, 1, D) of the query's and the key's
    norm, cos and sin (T, D) -> (B, T, C). Query and key are normed and turned together, as 2H heads, in fp32; the
    products are in the precision of qkv.
    """

    @staticmethod
    def forward(ctx, qkv: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, n_head: int, eps: float) -> Tensor:
        B, T, C = qkv.size(0), qkv.size(1), qkv.size(2) // 3
        H, D = n_head, C // n_head
        parts = qkv.view(B, T, 3, H, D)
        normed, scale = norm_forward(parts[:, :, :2].float(), eps)  # (B, T, 2, H, D), (B, T, 2, H, 1)
        turned = normed.new_empty(2, B, H, T, D)
        turn((normed * weight).permute(2, 0, 3, 1, 4), cos, sin, 1, out=turned)
        q, k = turned.to(qkv.dtype).view(2, B * H, T, D)
        v = parts[:, :, 2].transpose(1, 2).reshape(B * H, T, D)
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
        dv = torch.bmm(p.mT, dy)
        # Softmax: ds = p * (dp - sum(dp * p)), and since y = p v, that sum is dy . y, over D numbers in place of T.
        ds = torch.bmm(dy, v.mT).sub_(torch.linalg.vecdot(dy, y).unsqueeze(-1)).mul_(p)
        dturned = dy.new_empty(2, B * H, T, D)
        torch.baddbmm(q, ds, k, beta=0, alpha=D**-0.5, out=dturned[0])
        torch.baddbmm(k, ds.mT, q, beta=0, alpha=D**-0.5, out=dturned[1])
        dturned = dturned.float().view(2, B, H, T, D)
        dnormed = torch.empty_like(dturned)
        turn(dturned, cos, sin, -1, out=dnormed)
        dqk, product = norm_backward(dnormed.permute(1, 3, 0, 2, 4), normed, weight)
        dqkv = dy.new_empty(B, T, 3, H, D)
        torch.mul(dqk, scale, out=dqkv[:, :, :2])
        dqkv[:, :, 2] = dv.view(B, H, T, D).transpose(1, 2)
        return dqkv.view(B, T, -1), product.sum((0, 1, 3)).unsqueeze(1), None, None, None, None


class SwiGLUByHand(Function):
    """layers.SwiGLU between its matrices: gate_up (B, T, 2 hidden) -> silu(gate) * up (B, T, hidden)"""

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
        slope = torch.addcmul(sigmoid, silu, sigmoid, value=-1).add_(silu)  # silu' = sigmoid + silu * (1 - sigmoid)
        torch.mul(slope.mul_(up), dy, out=dgate_up[..., :hidden])
        torch.mul(dy, silu, out=dgate_up[..., hidden:])
        return dgate_up


class HeadLossByHand(Function):
    """GPT.loss from the last norm on: x (N, C), the head's weight (V, C), both in the precision of the products, and
    targets (N) -> the mean of -ln p of the targets, 0-dim fp32.

    The logits (N, V) are by far the largest tensor of a small model. Here they are never there as a whole: a few tokens
    at a time, logits, loss and gradients are computed while the piece is in the processor's cache, the gradients
    already in the forward pass, since dlogits = (softmax(logits) - one_hot(targets)) / N asks for nothing else.
    """

    PIECE = 1 << 20  # logits at a time, 4 MB in fp32
    TOKENS = 256  # but never fewer tokens: each piece adds to the gradient of the whole (V, C) weight

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        loss = torch.zeros((), device=x.device)
        dx, dweight = torch.empty_like(x), torch.zeros_like(weight, dtype=torch.float32)
        n = max(HeadLossByHand.TOKENS, HeadLossByHand.PIECE // len(weight))  # tokens at a time
        for part, target, dpart in zip(x.split(n), targets.split(n), dx.split(n), strict=True):
            log_p = F.log_softmax(part @ weight.T, dim=1, dtype=torch.float32)  # (n, V)
            own = torch.arange(len(part), device=x.device), target
            loss -= log_p[own].sum()
            dlogits = log_p.exp_()
            dlogits[own] -= 1
            dlogits = dlogits.to(x.dtype)
            torch.mm(dlogits, weight, out=dpart)
            dweight += dlogits.T @ part
        ctx.save_for_backward(dx, dweight)
        return loss / len(x)

    @staticmethod
    def backward(ctx, dloss: Tensor):
        dx, dweight = ctx.saved_tensors
        scale = dloss / len(dx)
        return dx * scale.to(dx.dtype), (dweight * scale).to(dx.dtype), None
