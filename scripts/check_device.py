"""Ask whether a device computes what the CPU computes, before you trust a training to it.

    python scripts/check_device.py
    python scripts/check_device.py --device mps --n-layer 6 --n-embd 384

Reads   nothing: the weights are random, the text is this file
Writes  nothing: a table, and at its end "agrees" or "do not trust this device with this torch"
Next    python train.py; with --device cpu where the two disagree

A wrong operation raises no error. On Apple's MPS several versions of torch have trained models that learned nothing, or
less than they could. So the same model, from the same weights, is put to work on both, in fp32: the gradients of one
batch are compared, the losses of ten training steps, and the logits of a text written token by token. Two ways to
round differ in the sixth digit; a wrong operation shows in the first ones. Exit code 1 says that they disagree.
"""

import argparse
from pathlib import Path

import _root

from config import CHAR, Model
from plumbing.command_line import add_flags, parse_before_torch
from plumbing.errors import UsageError, run_script
from plumbing.settings import values_of


def command_line(argv: list[str] | None = None):
    """Returns (settings, arguments)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = "block_size n_layer n_head n_embd rotary_base tie_embeddings batch_size learning_rate muon_rate seed device"
    add_flags(parser, CHAR, f"{names} debug")
    return parse_before_torch(parser, CHAR, argv)


if __name__ == "__main__":
    settings, args = command_line()  # before torch, which takes seconds to import

import copy
import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dataset import draw_batch
from model.device import memory_advice, pick_device, to_device, wait_for
from model.gpt import GPT
from model.metrics import tokens_per_second
from model.storage.checks import check_architecture
from model.training.optimizer import Optimizer
from model.training.setup import check_settings

STEPS = 10  # of training
WRITTEN = 32  # tokens
# The largest relative differences that rounding in fp32 explains, with room: measured, they are a tenth of these. In
# training they grow from step to step, and where a text is written the logits pass through no more than one forward.
GRADIENT, LOSS, LOGIT = 1e-3, 1e-3, 1e-3
LARGEST_BATCH, LONGEST_STEP = 4096, 5.0  # sequences, seconds: where to stop looking for the batch that fits


@dataclass
class Work:
    """What a device made of the same weights and the same text."""

    gradients: dict[str, Tensor]  # of the first batch, by parameter
    losses: list[float]  # of STEPS steps, nats a token
    written: list[int]  # the likeliest token, one after the other
    logits: Tensor  # (WRITTEN, V) that they were chosen from
    tokens_per_second: float  # in training, the first steps aside


def first_model(settings) -> GPT:
    """A model on the CPU with no weight at zero: at the start of a training output projections are, and whatever lies
    behind them would neither be seen nor get a gradient."""
    torch.manual_seed(settings.seed)
    architecture = {"vocab_size": 256, **values_of(settings, Model)}
    try:
        check_architecture(architecture)
        model = GPT(**architecture)
    except ValueError as error:
        raise UsageError(str(error)) from None
    for weight in model.parameters():
        if weight.dim() == 1:
            nn.init.uniform_(weight, 0.5, 1.5)
        elif weight is not model.embedding.weight:
            nn.init.normal_(weight, std=weight.size(1) ** -0.5)
    return model


def text(settings) -> np.ndarray:
    """The bytes of this file as tokens, repeated until a block fits."""
    tokens = np.frombuffer(Path(__file__).read_bytes(), np.uint8).astype(np.uint16)
    return np.tile(tokens, 1 + settings.block_size // len(tokens))


def make_optimizer(model: GPT, settings) -> Optimizer:
    names = "learning_rate muon_rate weight_decay beta1 beta2 momentum".split()
    return Optimizer(model, **{name: getattr(settings, name) for name in names})


def one_step(model: GPT, optimizer: Optimizer, idx: Tensor, targets: Tensor, settings) -> Tensor:
    """A training step as train.py takes it, at a tenth of the peak rates, as in a warm-up. Returns the loss (0-dim)."""
    loss = model.loss(idx, targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.clip(settings.grad_clip)
    optimizer.step(torch.full((), 0.1, device=idx.device))
    return loss.detach()


@torch.inference_mode()
def write(model: GPT, start: int) -> tuple[list[int], Tensor]:
    """The likeliest token after `start`, and so on, from the cache of keys and values. Returns (ids, logits)."""
    model.eval()
    cache, ids, logits = model.new_cache(), [start], []
    for _ in range(min(WRITTEN, model.block_size)):
        logits.append(model(torch.tensor([ids[-1:]], device=model.device), cache)[0, -1].float().cpu())
        ids.append(int(logits[-1].argmax()))
    return ids[1:], torch.stack(logits)


def work_on(device: torch.device, model: GPT, settings) -> Work:
    """Put a copy of the model to work on a device."""
    model = copy.deepcopy(model).to(device)
    tokens = text(settings)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        idx, targets = draw_batch(tokens, settings.block_size, settings.batch_size, settings.seed, step)
        return to_device(idx, device), to_device(targets, device)

    written, logits = write(model, int(tokens[0]))
    model.train()
    model.loss(*batch(0)).backward()
    gradients = {name: weight.grad.float().cpu().clone() for name, weight in model.named_parameters()}
    optimizer = make_optimizer(model, settings)
    losses, seconds = [], []
    for step in range(STEPS):
        wait_for(device)
        start = time.perf_counter()
        losses.append(one_step(model, optimizer, *batch(step), settings).item())
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    rate = tokens_per_second(settings.batch_size * settings.block_size, sorted(seconds[3:])[len(seconds[3:]) // 2])
    return Work(gradients, losses, written, logits, rate)


# === the comparison ===================================================================================================


def difference(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|, by the norm of all numbers in them; infinite where one of them is not finite."""
    if not a.isfinite().all():
        return math.inf
    return (torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b).clamp(min=1e-30)).item()


def compare(work: Work, reference: Work) -> list[tuple[str, float, float]]:
    """(what, relative difference, what rounding explains) for all that was computed."""
    found = [(f"gradient of {name}", difference(work.gradients[name], gradient), GRADIENT)
             for name, gradient in reference.gradients.items()]  # fmt: skip
    for step, (loss, expected) in enumerate(zip(work.losses, reference.losses, strict=True)):
        found.append((f"loss of step {step}", difference(torch.tensor(loss), torch.tensor(expected)), LOSS))
    # From where one of two nearly equal logits has won, the texts go different ways: up to there they are compared.
    pairs = zip(work.written, reference.written, strict=True)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(work.written) - 1)
    for i in range(same + 1):
        found.append((f"logits of token {i}", difference(work.logits[i], reference.logits[i]), LOGIT))
    return found


def batch_that_fits(model: GPT, device: torch.device, settings) -> int:
    """The largest batch, in sequences by powers of two, that a training step of the device has memory for."""
    model = copy.deepcopy(model).to(device)
    optimizer = make_optimizer(model, settings)
    tokens, size, fits, seconds = text(settings), 1, 0, 0.0
    while size <= LARGEST_BATCH and seconds < LONGEST_STEP:
        idx, targets = (to_device(part, device) for part in draw_batch(tokens, settings.block_size, size, 0, 0))
        start = time.perf_counter()
        try:
            one_step(model, optimizer, idx, targets, settings)
            wait_for(device)
        except RuntimeError as error:  # MPS raises it bare
            if "memory" not in str(error):
                raise
            break
        seconds, fits, size = time.perf_counter() - start, size, 2 * size
    return fits


@memory_advice("Try a smaller --batch-size, --block-size, --n-layer or --n-embd.")
def main(settings, args) -> int:
    check_settings(settings)
    cpu, device = torch.device("cpu"), pick_device(settings.device)
    model = first_model(settings)
    total = sum(model.parameters_by_part().values())
    print(f"{total:,} random weights on the CPU and on {device}, in fp32, torch {torch.__version__}")
    if device.type == "cpu":
        print("  which compares the CPU with itself: torch finds no other device here, or none was named")
    reference = work_on(cpu, model, settings)
    numbers = [*reference.gradients.values(), torch.tensor(reference.losses), reference.logits]
    if not all(part.isfinite().all() for part in numbers):
        raise UsageError(
            "With these flags the CPU itself comes to numbers that are not finite, so there is nothing to compare "
            "with. Try a lower --learning-rate or --muon-rate."
        )
    work = work_on(device, model, settings)

    # === what was found ===============================================================================================
    found = compare(work, reference)
    if settings.debug:
        print(f"  {'step':>4}  {'loss, CPU':>12}  {'loss, ' + str(device):>12}")
        for step, (expected, loss) in enumerate(zip(reference.losses, work.losses, strict=True)):
            print(f"  {step:>4}  {expected:12.6f}  {loss:12.6f}")
        print(f"The largest differences, in parts of what the CPU computed, of {len(found)} compared:")
        for kind in ("gradient", "loss", "logits"):
            what, worst, allowed = max((row for row in found if row[0].startswith(kind)), key=lambda row: row[1])
            print(f"  {what:44} {worst:8.1e}  rounding explains {allowed:.0e}")
    wrong = [(what, by) for what, by, allowed in found if not by <= allowed]
    print(
        f"Training: {reference.tokens_per_second:,.0f} tokens/s on the CPU, {work.tokens_per_second:,.0f} on {device}"
    )
    if device.type != "cpu":  # which would begin to swap, or be killed, before it said no
        fits = batch_that_fits(model, device, settings)
        print(f"Memory: a batch of {fits:,} sequences of {settings.block_size} tokens fits (--batch-size)")
    if wrong:
        what, by = wrong[0]
        print(f"{len(wrong)} of {len(found)} are wrong, the first: {what}, by {by:.1e} of what the CPU computed")
        print(f"{device}: do not trust this device with this torch ({torch.__version__}). Train with --device cpu.")
        return 1
    print(f"{device}: agrees")
    return 0


if __name__ == "__main__":
    run_script(lambda: main(settings, args))
