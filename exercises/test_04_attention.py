"""4. One head of attention, with its mask.

Queries, keys and values of T tokens, (T, D) each. Each token takes the values of itself and of the tokens before it,
as much of each as softmax(q . k / sqrt(D)) says: (T, D). No token may see what follows it.

Where the project does it: attention_weights() and causal_mask() in model/layers.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    raise NotImplementedError


# === the test: it passes when you are done ============================================================================


def test_attend():
    q, k, v = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(2))
    expected = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
    torch.testing.assert_close(attend(q, k, v), expected)


def test_the_first_token_sees_only_itself():
    q, k, v = torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(attend(q, k, v)[0], v[0])
    later = v.clone()
    later[2] += 100
    torch.testing.assert_close(attend(q, k, later)[:2], attend(q, k, v)[:2])
