"""The Python side of by_hand.c: what by_hand.py does in operations of torch, in C, for products in fp32 on a CPU.

use() switches it on, if there is a C compiler. by_hand() in layers.py then takes the functions of this file, which have
the names and arguments of those in by_hand.py.
"""

import ctypes
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from model.compile_c import BY_HAND, compiled_library

PARTS, ROWS, PANEL = 32, 6, 16  # as in by_hand.c
library = None  # what use() has switched on


def use(wanted: bool = True) -> bool:
    """Switch the functions in C on, if they can be had, or off. Returns whether they are on."""
    global library
    # One runtime for the threads of both: two would fight for the cores.
    openmp = sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*"))
    library = compiled_library(BY_HAND, "-fopenmp", str(openmp[0]), "-Wl,--as-needed") if wanted and openmp else None
    return library is not None


def takes(x: Tensor) -> bool:
    """Whether x is computed here: fp32, where use() has switched it on."""
    return library is not None and x.dtype == torch.float32


def call(name: str, *arguments: Tensor | int | float) -> None:
    """Call a function of by_hand.c. A contiguous tensor is handed over as the address of its numbers."""
    function = getattr(library, name)
    function.restype = None
    function(*map(for_c, arguments))


def for_c(value: Tensor | int | float):
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_long(value) if isinstance(value, int) else ctypes.c_float(value)


class RMSNormInC(Function):
    """layers.RMSNorm: x (B, T, C), weight (C) -> (B, T, C)"""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, C = x.contiguous(), x.size(-1)
        y, scale = torch.empty_like(x), x.new_empty(x.shape[:-1])
        call("norm_forward", scale.numel(), C, eps, x, weight, y, scale)
        ctx.save_for_backward(x, scale, weight)
        return y

    @staticmethod
    def backward(ctx, dy: Tensor):
        x, scale, weight = ctx.saved_tensors
        dx, dweight = torch.empty_like(x), x.new_zeros(PARTS, x.size(-1))
        call("norm_backward", scale.numel(), x.size(-1), dy.contiguous(), x, scale, weight, dx, dweight)
        return dx, dweight.sum(0), None


class AttentionInC(Function):
    """layers.Attention between its two matrices: qkv (B, T, 3C), cos and sin (T, D) -> (B, T, C)

    `weight` (2, 1, D) holds the weights of query_norm and key_norm. The attention weights (T, T) never exist as a
    whole: a few rows of them at a time stay in the processor's cache, and backward computes them again.
    """

    @staticmethod
    def forward(ctx, qkv: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, n_head: int, eps: float) -> Tensor:
        qkv = qkv.contiguous()
        B, T, C = qkv.size(0), qkv.size(1), qkv.size(2) // 3
        H, D = n_head, C // n_head
        Tp, Dp = whole_panels(T + ROWS - 1), whole_panels(D)
        heads, scale = qkv.new_zeros(3, B, H, Tp, Dp), qkv.new_empty(B, T, 2, H)
        call("split_heads", B, T, H, D, Tp, Dp, eps, qkv, weight, cos, sin, heads, scale)
        y = qkv.new_empty(B, H, Tp, Dp)
        call("attention_forward", B * H, T, Tp, Dp, D**-0.5, *heads, y)
        ctx.save_for_backward(qkv, weight, cos, sin, heads, scale)
        return y[:, :, :T, :D].transpose(1, 2).reshape(B, T, C)

    @staticmethod
    def backward(ctx, dy: Tensor):
        qkv, weight, cos, sin, heads, scale = ctx.saved_tensors
        B, H, Tp, Dp = heads[0].shape
        T, D = cos.shape
        dy = F.pad(dy.view(B, T, H, D).transpose(1, 2), (0, Dp - D, 0, Tp - T)).contiguous()  # (B, H, Tp, Dp)
        dheads = torch.zeros_like(heads)
        call("attention_backward", B * H, T, Tp, Dp, D**-0.5, dy, *heads, *dheads)
        dqkv, dweight = torch.empty_like(qkv), qkv.new_zeros(PARTS, *weight.shape)
        call("split_heads_backward", B, T, H, D, Tp, Dp, dheads, qkv, weight, cos, sin, scale, dqkv, dweight)
        return dqkv, dweight.sum(0), None, None, None, None


def whole_panels(n: int) -> int:
    return -(-n // PANEL) * PANEL


class SwiGLUInC(Function):
    """layers.SwiGLU between its matrices: gate_up (B, T, 2 hidden) -> silu(gate) * up (B, T, hidden)"""

    @staticmethod
    def forward(ctx, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        y = gate_up.new_empty(*gate_up.shape[:-1], gate_up.size(-1) // 2)
        call("swiglu_forward", y[..., 0].numel(), y.size(-1), gate_up, y)
        ctx.save_for_backward(gate_up)
        return y

    @staticmethod
    def backward(ctx, dy: Tensor):
        (gate_up,) = ctx.saved_tensors
        dgate_up = torch.empty_like(gate_up)
        call("swiglu_backward", dy[..., 0].numel(), dy.size(-1), dy.contiguous(), gate_up, dgate_up)
        return dgate_up


def losses_in_c(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits (n, V), targets (n) -> -ln p of the targets (n); the gradient of their sum overwrites the logits."""
    losses = logits.new_empty(len(logits))
    call("losses_and_gradients", *logits.shape, logits, targets.contiguous(), losses)
    return losses


rms_norm, attention, swiglu = RMSNormInC.apply, AttentionInC.apply, SwiGLUInC.apply
