"""One forward pass taken apart, and parts of a model switched off. Shapes use the notation of layers.py.

The residual stream is a sum: the token's embedding, and what every head and every MLP adds to it. So what the model
says can be followed back to its parts, and a part can be taken out to see what it was good for. Parts are called as the
literature calls them, counted from 0: L2H3 is head 3 of layer 2, L2MLP the MLP of layer 2, L2 all of that layer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.gpt import GPT


@dataclass(frozen=True)
class Look:
    """All that one forward pass over T tokens went through. P parts, L layers."""

    parts: list[str]  # (P) embedding, L0H0, L0H1, ..., L0MLP, L1H0, ...
    added: Tensor  # (P, T, C) what each part added to the residual stream; their sum is the last stream
    streams: Tensor  # (L + 1, T, C) the residual stream before the first layer and after each one
    attention: Tensor  # (L, H, T, T) what share each token (row) took from which (column)
    logits: Tensor  # (T, V) as GPT.forward gives them


@torch.inference_mode()
def look(model: GPT, ids: list[int]) -> Look:
    """Run a model in eval mode over T tokens by the explicit path of attention, and keep every part's share."""
    x = model.embedding(torch.tensor(ids, device=model.device))  # (T, C)
    T, (cos, sin) = len(ids), (model.cos[: len(ids)], model.sin[: len(ids)])
    parts, added, streams, attention = ["embedding"], [x], [x], []
    for layer, block in enumerate(model.blocks):
        a, normed, weights = block.attention, block.attention_norm(x), []
        x = x + a(normed[None], cos, sin, weights=weights)[0]
        value = a.qkv(normed).chunk(3, dim=-1)[2].view(T, a.n_head, -1).transpose(0, 1)  # (H, T, D)
        y = weights[0][0] @ value  # (H, T, D): what each head gathered
        for head in range(a.n_head):  # the output matrix takes the heads side by side, so each has columns of its own
            parts.append(f"L{layer}H{head}")
            added.append(y[head] @ a.output.weight[:, columns(a, head)].T)  # (T, C)
        mlp = block.mlp(block.mlp_norm(x))
        x = x + mlp
        parts.append(f"L{layer}MLP")
        added.append(mlp)
        streams.append(x)
        attention.append(weights[0][0])
    return Look(parts, torch.stack(added), torch.stack(streams), torch.stack(attention), model.head(model.norm(x)))


def columns(attention, head: int) -> slice:
    """The columns of an attention's output matrix (C, C) that a head feeds."""
    size = attention.output.weight.size(1) // attention.n_head
    return slice(head * size, (head + 1) * size)


@torch.inference_mode()
def lens(model: GPT, stream: Tensor) -> Tensor:
    """The logits (..., V) if the model ended here: its last norm and head applied to a residual stream (..., C).

    nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    return model.head(model.norm(stream))


@torch.inference_mode()
def credit(model: GPT, look: Look, part: int) -> Tensor:
    """What one part, given by its place, adds to each logit, (T, V): over all parts it sums to the logits, exactly.

    The last norm divides all of a position by one number, and the head is linear, so each part can be sent through both
    by itself. Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", on direct paths.
    """
    x = look.streams[-1]
    scale = (x.square().mean(-1, keepdim=True) + model.norm.eps).rsqrt()  # (T, 1)
    return model.head(look.added[part] * scale * model.norm.weight)
