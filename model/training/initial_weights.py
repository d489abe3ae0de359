"""Initial weights that spare a short run what is known beforehand: where to look, and which token follows which.

--initial-weights previous: heads that look back. The first thing that attention has to find is the token before, and
until a head does, the loss stays on a plateau, for up to half of a short run. Positions are rotations (layers.py), so a
query that is a key turned back by n positions fits the key n tokens before it best, if both are the same everywhere:

    channel 0 of the embedding is CONSTANT for all tokens
    from it, key_h reads a random vector u_h, and query_h reads u_h turned back by h + 1 positions (h = 0, 1, ...)

So head h of the first block begins by attending to the token h + 1 before, and less to that one's neighbours. The other
channels are read with random weights, as ever. What they give is about half as long as what the constant gives.

--initial-weights bigram: counting as well. It makes the untrained model the bigram model of its training tokens. The
blocks start as the identity (GPT.initialise), so at first the logits after token i are x_i H^T: its embedding x_i after
the final norm, and the head H. They are made to be ln p(j | i), the logarithm of how often token j follows token i:

    S_ij = ln(1 + count(i j) / (PRIOR p(j)))       0 for pairs that never occur, so the matrix is sparse
    ln p(j | i) = ln p(j) + S_ij + a number that depends on i alone, which the softmax removes
    [S S'] ~ U diag(s) W^T                         a matrix of rank C - 1; S' is of pairs with a token between them
    x = U diag(s)^(1/2), each row scaled to a root mean square of 1, as RMSNorm will, and CONSTANT in channel 0
    H = argmin sum_i count(i) |x_i H^T - (ln p + S_i)|^2      least squares

The prior is that every token was followed PRIOR times more, by tokens as frequent as they are everywhere. S' gives
tokens similar embeddings that are similar for what comes later, too, which attention makes use of. Levy and Goldberg
factorised how often words occur together in this way: 2014, NeurIPS, "Neural Word Embedding as Implicit Matrix
Factorization". It does not suit tied embeddings: of x x^T, ij is as likely as ji.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.gpt import GPT
from model.layers import rotary_table, rotate

CONSTANT = 3.0  # the other channels of an embedding are about 1
OUTWEIGHS = 2.0  # 1.3 to 3 made no difference that could be told from noise
PRIOR = 200.0  # 60 and 1,000 made an untrained model's loss higher, on Python with 4,096 ids
COUNTED, SPANS = 1 << 23, 64  # at most so many tokens, in so many spans spread evenly over the file
RANK = 256  # at most; the time grows with its square, and 50,000 tokens take a quarter of a minute
NOISE = 1e-3  # gives a token that never occurs an embedding that is not zero
RIDGE = 1e-3  # keeps the least squares solvable where there are fewer tokens than channels


@torch.no_grad()
def look_back(model: GPT) -> None:
    """Let the heads of the first block of a new model begin by attending to the tokens before. Draws from torch's
    default generator."""
    H, C, base = (model.architecture[name] for name in ("n_head", "n_embd", "rotary_base"))
    D = C // H
    u = F.normalize(torch.randn(H, D)) * D**0.5 * OUTWEIGHS / CONSTANT  # (H, D); what others give is about 1
    cos, sin = rotary_table(H + 1, D, base)  # (H + 1, D)
    turned_back = rotate(u[None, :, None], cos[1:, None], -sin[1:, None])[0, :, 0]  # (H, D)
    model.embedding.weight[:, 0] = CONSTANT
    qkv = model.blocks[0].attention.qkv.weight.view(3, H, D, C)
    qkv[0, ..., 0], qkv[1, ..., 0] = turned_back, u


@torch.no_grad()
def start_from_bigrams(model: GPT, tokens: np.ndarray) -> None:
    """Let the heads of a new model on the CPU look_back(), and set its embedding and its output head from training
    tokens (N,) uint16, N > 1: the latter finds ln p(j) in channel 0. Draws from torch's default generator."""
    look_back(model)
    V, C = model.head.weight.shape
    if len(tokens) > COUNTED:
        length = COUNTED // SPANS
        starts = np.linspace(0, len(tokens) - length, SPANS).astype(int)
        tokens = np.concatenate([tokens[start : start + length] for start in starts])
    tokens = tokens[:].astype(np.int64)
    occurs = np.bincount(tokens, minlength=V) + 1.0  # (V,)
    p = occurs / occurs.sum()
    S = excess(tokens, 1, p)
    U, s, _ = torch.svd_lowrank(torch.cat([S, excess(tokens, 2, p)], 1), q=min(V, C - 1, RANK))
    mixed = torch.linalg.qr(torch.randn(C - 1, len(s))).Q.T  # orthonormal rows, so that every channel has its share
    x = U * s.sqrt() @ mixed + NOISE * torch.randn(V, C - 1)
    model.embedding.weight[:, 1:] = F.normalize(x) * (C - 1) ** 0.5
    x = F.normalize(model.embedding.weight) * C**0.5  # (V, C), as the head will see it

    ln_p = torch.from_numpy(np.log(p)).float()  # (V,)
    weighted = x * torch.from_numpy(occurs).float()[:, None]  # (V, C)
    wanted = S.T @ weighted + ln_p[:, None] * weighted.sum(0)  # (V, C): each logit with each channel
    gram = x.T @ weighted  # (C, C)
    gram += RIDGE * gram.diagonal().mean() * torch.eye(C)
    model.head.weight.copy_(torch.linalg.solve(gram, wanted.T).T)


def excess(tokens: np.ndarray, distance: int, p: np.ndarray) -> Tensor:
    """S_ij, (V, V) sparse, of the pairs of tokens (N,) so far apart, for frequencies p (V,)."""
    V = len(p)
    pairs, counts = np.unique(tokens[:-distance] * V + tokens[distance:], return_counts=True)
    i, j = np.divmod(pairs, V)
    place, values = torch.from_numpy(np.stack([i, j])), torch.from_numpy(np.log1p(counts / (PRIOR * p[j]))).float()
    return torch.sparse_coo_tensor(place, values, (V, V), is_coalesced=True, check_invariants=False)
