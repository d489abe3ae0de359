"""6. RMSNorm, backwards.

Forward, y = x / sqrt(mean(x^2) + eps) * weight, for x (N, C) and weight (C). Given dy, the gradient of the loss with
respect to y, return dx (N, C) and dweight (C), without autograd.

Where the project does it: norm_backward() in model/by_hand.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    raise NotImplementedError


# === the test: it passes when you are done ============================================================================


def test_rms_norm_backward():
    generator = torch.Generator().manual_seed(6)
    x, dy = torch.randn(2, 5, 8, generator=generator, dtype=torch.float64)
    weight = torch.rand(8, generator=generator, dtype=torch.float64) + 0.5
    for tensor in (x, weight):
        tensor.requires_grad_()
    F.rms_norm(x, (8,), weight, 1e-6).backward(dy)
    dx, dweight = rms_norm_backward(dy, x.detach(), weight.detach())
    torch.testing.assert_close(dweight, weight.grad)
    torch.testing.assert_close(dx, x.grad)
