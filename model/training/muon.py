"""Muon: momentum with an orthogonalised update, for the matrices inside the blocks.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", https://kellerjordan.github.io/posts/muon

A gradient G = U S V^T moves a matrix almost only along its few largest singular directions. Muon replaces it by the
nearest matrix with orthonormal rows or columns, U V^T: all singular values become 1, so rare directions learn as fast
as common ones. The embedding and the head do not benefit, because each of their rows belongs to one token; they and the
norms stay with AdamW (optimizer.py).

U V^T is computed without an SVD, by a polynomial in matrix products, which are what processors are fastest at:

    X <- a X + b (X X^T) X + c (X X^T)^2 X

maps each singular value s to a s + b s^3 + c s^5 and leaves U and V unchanged. A few steps bring every s close to 1.
"""

import torch
from torch import Tensor

# (a, b, c) of each step: the polynomials that bring singular values between 0.001 and 1 as close to 1 as possible, each
# given the results of those before it. Values from Amsel et al. 2025, The Polar Express (arXiv:2505.16932).
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
# Each polynomial expects singular values up to the maximum of the one before it, and rises steeply beyond. Rounding to
# bfloat16 pushes some values past that maximum, and later steps would blow them up to thousands. So all steps but the
# last divide their input by this factor, as the paper advises for low precision.
MARGIN = 1.01
LARGE, BLOCKS = 384, 4  # rows of a matrix from which a CPU computes X X^T in blocks, and how many


def orthogonalise(matrices: Tensor, coefficients=POLAR_EXPRESS, margin: float = MARGIN) -> Tensor:
    """U V^T of each matrix U S V^T in a stack (k, m, n), approximately: singular values come out between 0.85 and 1.15,
    or lower where they were below a thousandth of the norm. Computed in batched products over the whole stack, in its
    precision; bfloat16 is enough."""
    if matrices.size(1) > matrices.size(2):  # the products are (m, m), so let m be the shorter side
        return orthogonalise(matrices.mT, coefficients, margin).mT
    norm = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)  # at least the largest singular value
    x = matrices / (norm * margin + 1e-7)
    margins = [margin] * (len(coefficients) - 1) + [1.0]
    steps = [(a / m, b / m**3, c / m**5) for (a, b, c), m in zip(coefficients, margins, strict=True)]
    if x.size(1) < x.size(2) and x.dtype == torch.float32:
        # Errors of rounding in the Gram matrix grow with each polynomial, so it is computed again after two. With
        # all five on one, the first updates of a run were off by up to a tenth; bfloat16 would be too coarse.
        for some in (steps[:2], steps[2:]):
            x = through_gram(x, some) if some else x
        return x
    for a, b, c in steps:
        x = torch.baddbmm(x, polynomial(symmetric_product(x, x), b, c), x, beta=a)
    return x


def through_gram(x: Tensor, steps: list[tuple[float, float, float]]) -> Tensor:
    """Some polynomials (a, b, c) of a stack of wide matrices (k, m, n), all products but the first and the last of size
    (m, m). Each multiplies X by P = a I + b G + c G^2, where G = X X^T. G and P commute, so the next G is P G P, and
    the result is the product of all P, times X: Amsel et al., appendix F."""
    gram, product, p = symmetric_product(x, x), None, None
    for a, b, c in steps:
        if p is not None:
            gram = symmetric_product(p, symmetric_product(p, gram))
        p = polynomial(gram, b, c)
        p.diagonal(dim1=1, dim2=2).add_(a)
        product = p if product is None else symmetric_product(product, p)
    return product @ x


def polynomial(gram: Tensor, b: float, c: float) -> Tensor:
    """b G + c G^2 of each symmetric matrix in a stack: (k, m, m) -> (k, m, m)"""
    if in_blocks(gram):
        return symmetric_product(gram, gram).mul_(c).add_(gram, alpha=b)
    return torch.baddbmm(gram, gram, gram, beta=b, alpha=c)


def symmetric_product(x: Tensor, y: Tensor) -> Tensor:
    """X Y^T of each pair of matrices in two stacks, where it is symmetric: (k, m, n) twice -> (k, m, m). Of large ones,
    only the blocks up to the diagonal are computed, and those behind it copied."""
    if not in_blocks(x):
        return x @ y.mT
    m = x.size(1)
    result, rows = x.new_empty(len(x), m, m), -(-m // BLOCKS)
    for begin in range(0, m, rows):
        end = begin + rows
        torch.bmm(x[:, begin:end], y[:, :end].mT, out=result[:, begin:end, :end])
        result[:, :begin, begin:end] = result[:, begin:end, :begin].mT
    return result


def in_blocks(x: Tensor) -> bool:
    """Whether to compute products with so many rows in blocks. A compiler would stumble over them."""
    large = x.device.type == "cpu" and x.dtype == torch.float32 and x.size(1) >= LARGE
    return large and not torch.compiler.is_compiling()


def muon_update(grad: Tensor, mean: Tensor, momentum: float) -> Tensor:
    """Update the moving mean of the gradients in place. Returns Nesterov's look-ahead: the mean after the same gradient
    once more. Elementwise, so any shape."""
    mean.lerp_(grad, 1 - momentum)
    return grad.lerp(mean, momentum)


def update_scale(rows: int, columns: int) -> float:
    """The factor that makes an orthogonal update as large as a typical AdamW update, about 0.2 per element, so that
    both can use similar learning rates.

    An orthonormal m x n matrix has elements with a root mean square of 1 / sqrt(max(m, n)). Liu et al. 2025, Muon is
    Scalable for LLM Training (arXiv:2502.16982), equation 4.
    """
    return 0.2 * max(rows, columns) ** 0.5
