"""What a device computes from the same weights and tokens as the CPU, and how far the two differ
(scripts/check_device.py prints it). Everything is computed in fp32.
"""

import copy
import math
import statistics
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from config import Settings
from dataset import draw_batch
from model.device import to_device, wait_for
from model.gpt import GPT
from model.metrics import tokens_per_second
from model.training.optimizer import Optimizer
from model.training.run import build_model

STEPS = 10  # training steps
GENERATED = 32  # tokens
# The largest relative difference that rounding in fp32 explains, with a margin: the measured ones are a tenth of it. A
# training step amplifies the differences of the steps before it; the logits pass through a single forward.
TOLERANCE = 1e-3


@dataclass
class DeviceRun:
    """What one device computed."""

    gradients: dict[str, Tensor]  # of the first batch, by parameter
    losses: list[float]  # of STEPS training steps, in nats per token
    ids: list[int]  # GENERATED tokens, each the most likely one
    logits: Tensor  # (GENERATED, V) that they were chosen from
    tokens_per_second: float  # in training, without the first steps

    def is_finite(self) -> bool:
        numbers = [*self.gradients.values(), torch.tensor(self.losses), self.logits]
        return all(tensor.isfinite().all() for tensor in numbers)


def model_to_check(settings: Settings) -> GPT:
    """A model on the CPU with random weights, none of them zero. A model that is to be trained starts with output
    projections of zero, and these would hide every wrong number and block every gradient behind them."""
    model = build_model(settings, vocab_size=256)
    for weight in model.parameters():
        if weight.dim() == 1:
            nn.init.uniform_(weight, 0.5, 1.5)
        elif weight is not model.embedding.weight:
            nn.init.normal_(weight, std=weight.size(1) ** -0.5)
    return model


def tokens_to_check(block_size: int) -> np.ndarray:
    """The bytes of this file as tokens, repeated until a block fits."""
    tokens = np.frombuffer(Path(__file__).read_bytes(), np.uint8).astype(np.uint16)
    return np.tile(tokens, 1 + block_size // len(tokens))


def run_on(device: torch.device, model: GPT, settings: Settings) -> DeviceRun:
    """Generate, compute gradients and train with a copy of the model on a device."""
    model = copy.deepcopy(model).to(device)
    tokens = tokens_to_check(settings.block_size)
    ids, logits = generate_greedily(model, int(tokens[0]))
    draw_step = partial(draw_batch, tokens, settings.block_size, settings.batch_size, settings.seed)
    batches = [[to_device(array, device) for array in draw_step(step)] for step in range(STEPS)]
    model.train()
    model.loss(*batches[0]).backward()
    gradients = {name: weight.grad.float().cpu().clone() for name, weight in model.named_parameters()}
    optimizer = Optimizer(model, settings)
    losses, seconds = [], []
    for idx, targets in batches:
        wait_for(device)
        start = time.perf_counter()
        losses.append(one_step(model, optimizer, idx, targets, settings).item())
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    speed = tokens_per_second(settings.batch_size * settings.block_size, statistics.median(seconds[3:]))
    return DeviceRun(gradients, losses, ids, logits, speed)


@torch.inference_mode()
def generate_greedily(model: GPT, start: int) -> tuple[list[int], Tensor]:
    """Generate from the token `start` with the KV cache, always the most likely token. Returns (ids, logits)."""
    model.eval()
    cache, ids, logits = model.new_cache(), [start], []
    for _ in range(min(GENERATED, model.block_size)):
        logits.append(model(torch.tensor([ids[-1:]], device=model.device), cache)[0, -1].float().cpu())
        ids.append(int(logits[-1].argmax()))
    return ids[1:], torch.stack(logits)


def one_step(model: GPT, optimizer: Optimizer, idx: Tensor, targets: Tensor, settings: Settings) -> Tensor:
    """A training step as train.py takes it, at a tenth of the peak learning rates. Returns the loss (0-dim)."""
    loss = model.loss(idx, targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.clip(settings.grad_clip)
    optimizer.step(torch.full((), 0.1, device=idx.device))
    return loss.detach()


def differences(run: DeviceRun, reference: DeviceRun) -> dict[str, float]:
    """The relative difference of everything that was computed, such as {"loss of step 0": 2e-7, ...}."""
    found = {f"gradient of {n}": relative_difference(run.gradients[n], g) for n, g in reference.gradients.items()}
    for step, (loss, expected) in enumerate(zip(run.losses, reference.losses, strict=True)):
        found[f"loss of step {step}"] = relative_difference(torch.tensor(loss), torch.tensor(expected))
    for i, (logits, expected) in enumerate(zip(run.logits, reference.logits, strict=True)):
        found[f"logits of token {i}"] = relative_difference(logits, expected)
        if run.ids[i] != reference.ids[i]:  # of two nearly equal logits, another one won: from here the texts differ
            break
    return found


def relative_difference(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|, with the norm over all elements; infinite if `a` is not finite."""
    if not a.isfinite().all():
        return math.inf
    return (torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b).clamp(min=1e-30)).item()
