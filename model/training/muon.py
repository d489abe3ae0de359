"""Muon: momentum whose update is made orthogonal, for the matrices inside the blocks.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", https://kellerjordan.github.io/posts/muon

A gradient G = U S V^T moves a matrix almost wholly along its few largest singular directions. Muon replaces it by the
nearest matrix with orthonormal rows or columns, U V^T: all singular values become 1, and the rare directions learn as
fast as the common ones. A vocabulary has no such directions to share (each row belongs to one token), so the embedding,
the head and the norms stay with AdamW (optimizer.py).

U V^T is not computed by an SVD but by a polynomial in matrix products, which is what processors are fast at:

    X <- a X + b (X X^T) X + c (X X^T)^2 X

moves each singular value s to a s + b s^3 + c s^5 and leaves U and V alone. A few steps take every s near 1.
"""

import torch
from torch import Tensor

# (a, b, c) of each step: the polynomials that bring singular values from 0.001 to 1 nearest to 1, each given what the
# ones before it have done. Amsel et al. 2025, The Polar Express (arXiv:2505.16932), where the values are listed.
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
# Each polynomial is made for singular values up to what the one before it gives, and rises steeply beyond. Rounding to
# bfloat16 carries some of them across, and the next steps then throw them to thousands. So all but the last take their
# argument divided by this much, as the paper advises for low precision.
MARGIN = 1.01


def orthogonalise(matrices: Tensor, coefficients=POLAR_EXPRESS, margin: float = MARGIN) -> Tensor:
    """U V^T of each matrix U S V^T of a stack (k, m, n), nearly: singular values between 0.85 and 1.15, less where they
    were under a thousandth of the norm. Three batched products a step, for the whole stack at once, in the precision of
    the stack, of which bfloat16 is enough.
    """
    if matrices.size(1) > matrices.size(2):  # the products are as large as the first side: let that be the shorter one
        return orthogonalise(matrices.mT, coefficients, margin).mT
    norm = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)  # at least the largest singular value
    x = matrices / (norm * margin + 1e-7)
    for step, (a, b, c) in enumerate(coefficients, 1):
        m = margin if step < len(coefficients) else 1.0
        gram = x @ x.mT  # (k, m, m)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b / m**3, alpha=c / m**5)  # b (X X^T) + c (X X^T)^2
        x = torch.baddbmm(x, polynomial, x, beta=a / m)
    return x


def muon_update(grad: Tensor, mean: Tensor, momentum: float) -> Tensor:
    """Take gradients into their moving mean, in place. Returns Nesterov's look ahead: the mean as it would be if the
    same gradient came again. Any shape; elementwise.
    """
    mean.lerp_(grad, 1 - momentum)
    return grad.lerp(mean, momentum)


def update_scale(rows: int, columns: int) -> float:
    """Factor that gives the update the size of an AdamW update, about 0.2 an element, so that both can share a rate.

    An orthonormal m x n matrix has elements of root mean square 1 / sqrt(max(m, n)). Liu et al. 2025, Muon is Scalable
    for LLM Training (arXiv:2502.16982), equation 4.
    """
    return 0.2 * max(rows, columns) ** 0.5
