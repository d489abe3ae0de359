"""Parts of a model switched off, to see what they are good for."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from model.gpt import GPT
from model.interpretation.forward_pass import columns


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
