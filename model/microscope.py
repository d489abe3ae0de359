"""One forward pass taken apart, and parts of a model switched off. Shapes use the notation of layers.py.

The residual stream is a sum: the token's embedding, and what every head and every MLP adds to it. So what the model
says can be followed back to its parts, and a part can be taken out to see what it was good for. Parts are called as the
literature calls them, counted from 0: L2H3 is head 3 of layer 2, L2MLP the MLP of layer 2, L2 all of that layer.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
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


def habits(attention: Tensor) -> Tensor:
    """Where heads look: attention (..., T, T) -> (..., 3), the mean share that a token gives to the one before it, to
    itself, and to the first one. Over all tokens but the first, which has only itself; 0 where there is no other."""
    T = attention.size(-1)
    if T < 2:
        return attention.new_zeros(*attention.shape[:-2], 3)
    before = attention.diagonal(-1, dim1=-2, dim2=-1)  # (..., T - 1)
    itself = attention.diagonal(0, dim1=-2, dim2=-1)[..., 1:]
    return torch.stack([before.mean(-1), itself.mean(-1), attention[..., 1:, 0].mean(-1)], dim=-1)


def entropy(attention: Tensor) -> Tensor:
    """How widely heads look: attention (..., T, T) -> (...), the mean over tokens of -sum p log2 p of their row, in
    bits. 0: one token alone; 3: as if evenly over eight."""
    return -(attention.float() * attention.float().clamp(min=1e-30).log2()).sum(-1).mean(-1)


# === what a head does, as scores from 0 to 1: attention (B, H, T, T) -> (H) ==========================================


def previous_token(attention: Tensor) -> Tensor:
    """The mean share that goes to the token just before."""
    return habits(attention)[..., 0].mean(0)


def same_token(attention: Tensor, idx: Tensor) -> Tensor:
    """The mean share that goes to earlier tokens equal to the one that looks, over those that have any; idx (B, T)."""
    equal = (idx[:, :, None] == idx[:, None, :]).tril(-1)  # (B, T, T)
    has_any = equal.any(-1)  # (B, T)
    shares = (attention * equal[:, None]).sum(-1)  # (B, H, T)
    return (shares * has_any[:, None]).sum((0, 2)) / has_any.sum().clamp(min=1)


def induction(attention: Tensor) -> Tensor:
    """On tokens of which the second half repeats the first: the mean share that goes from there to the token that came
    after the same one the first time."""
    n = attention.size(-1) // 2
    return attention.diagonal(1 - n, dim1=-2, dim2=-1)[..., 1:].mean((0, 2))  # rows n to 2 n - 1, n - 1 columns back


# === switching parts off ==============================================================================================


def part_weights(model: GPT, name: str) -> list[Tensor]:
    """The weights through which a part adds to the residual stream, as views. Raises ValueError with a reason."""
    found = re.fullmatch(r"L(\d+)(?:H(\d+)|(MLP))?", name.upper())
    if not found:
        raise ValueError(f"{name!r} is no part of a model: L2H3 is head 3 of layer 2, L2MLP its MLP, L2 all of it.")
    layer, head, mlp = found.groups()
    if int(layer) >= len(model.blocks):
        raise ValueError(f"There is no layer {layer}: this model's are 0 to {len(model.blocks) - 1}.")
    block = model.blocks[int(layer)]
    if head is not None and int(head) >= block.attention.n_head:
        raise ValueError(f"There is no head {head}: a layer's are 0 to {block.attention.n_head - 1}.")
    if head is not None:
        return [block.attention.output.weight.data[:, columns(block.attention, int(head))]]
    return [block.mlp.down.weight.data] + ([] if mlp else [block.attention.output.weight.data])


def switch_off(model: GPT, name: str) -> None:
    """Have a part add nothing from now on, in every path that the model is run by: the weights by which it adds become
    zero, as they are in an untrained model."""
    for weight in part_weights(model, name):
        weight.zero_()


@contextmanager
def without(model: GPT, name: str) -> Iterator[None]:
    """Around a block in which a part is switched off."""
    kept = [weight.clone() for weight in part_weights(model, name)]
    switch_off(model, name)
    try:
        yield
    finally:
        for weight, before in zip(part_weights(model, name), kept, strict=True):
            weight.copy_(before)
