"""Components of a model ablated: switched off, to see what the model loses without them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dataset import TokenFile, blocks_in_order
from model.device import to_device
from model.gpt import GPT
from model.interpretation.forward_pass import head_columns

EvalBatches = list[tuple[Tensor, Tensor]]  # of (idx, targets), on the model's device


def output_weights(model: GPT, name: str) -> list[Tensor]:
    """The weights through which a component adds to the residual stream, as views. Names are L2H3, L2MLP or, for a
    whole layer, L2. Raises ValueError for a component that the model does not have."""
    found = re.fullmatch(r"L(\d+)(?:H(\d+)|(MLP))?", name.upper())
    if not found:
        raise ValueError(f"{name!r} is not a component: L2H3 is head 3 of layer 2, L2MLP its MLP, L2 the whole layer.")
    layer, head, mlp = found.groups()
    if int(layer) >= len(model.blocks):
        raise ValueError(f"There is no layer {layer}: this model has layers 0 to {len(model.blocks) - 1}.")
    block = model.blocks[int(layer)]
    if head is not None and int(head) >= block.attention.n_head:
        raise ValueError(f"There is no head {head}: each layer has heads 0 to {block.attention.n_head - 1}.")
    if head is not None:
        return [block.attention.output.weight.data[:, head_columns(block.attention, int(head))]]
    return [block.mlp.down.weight.data] + ([] if mlp else [block.attention.output.weight.data])


def switch_off(model: GPT, name: str) -> None:
    """Ablate a component for good: its output weights become zero, so it adds nothing however the model is run."""
    for weight in output_weights(model, name):
        weight.zero_()


@contextmanager
def ablated(model: GPT, name: str) -> Iterator[None]:
    """A context in which a component is switched off."""
    saved = [weight.clone() for weight in output_weights(model, name)]
    switch_off(model, name)
    try:
        yield
    finally:
        for weight, before in zip(output_weights(model, name), saved, strict=True):
            weight.copy_(before)


def validation_batches(val: TokenFile, model: GPT, at_most: int) -> EvalBatches:
    """About `at_most` tokens, spread over a token file (0: all of them)."""
    every = max(1, len(val) // at_most) if at_most else 1
    blocks = blocks_in_order(val, model.block_size, max(1, 4096 // model.block_size), every)
    return [tuple(to_device(np.ascontiguousarray(array), model.device) for array in pair) for pair in blocks]


@torch.inference_mode()
def mean_loss(model: GPT, batches: EvalBatches) -> float:
    """The mean loss in nats per token."""
    losses = [(model.loss(idx, targets).item(), idx.numel()) for idx, targets in batches]
    return sum(loss * n for loss, n in losses) / sum(n for _, n in losses)


def ablation_costs(model: GPT, batches: EvalBatches, names: list[str], baseline: float) -> dict[str, float]:
    """How far the loss rises above `baseline`, in nats per token, when each component is ablated alone."""
    costs = {}
    for name in tqdm(names, desc="ablating", unit="component", delay=2, leave=False):
        with ablated(model, name):
            costs[name] = mean_loss(model, batches) - baseline
    return costs
