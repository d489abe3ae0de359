"""What a run will take, in memory, arithmetic and time, and whether there is enough data: train.py --plan."""

import math
import time
from bisect import bisect
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from model.device import free_memory
from model.generation.writer import sample_text
from model.gpt import GPT
from model.monitoring.diagnostics import Diagnostics
from model.monitoring.summary import print_summary
from model.training import distributed
from model.training.choose_step import COMPILE_FROM, TIMED_STEPS, graph_if_possible
from model.training.optimizer import Optimizer
from model.training.run import Run
from model.training.schedule import evaluation_interval
from plumbing.errors import UsageError
from plumbing.text import bar, duration

COMPUTE_OPTIMAL = 20  # tokens per parameter: Hoffmann et al. 2022, Chinchilla (arXiv:2203.15556)
TEMPORARY = 1.5  # peak of a step over what it keeps for the backward pass: copies, and gradients of activations
SCORED_TOKENS, SAMPLED_TOKENS = 8192, 20  # what the estimate is taken from, beside TIMED_STEPS


def print_estimate(run: Run, train_step: Callable, evaluate: Callable) -> None:
    """Time some steps, a part of an evaluation and a few tokens of a sample, and print what the whole run would take.
    Nothing is written."""
    print_summary(run)
    settings = run.settings
    step = partial(train_step, run, run.model.loss, run.optimizer.step)
    _, seconds = graph_if_possible(run, step, at_most=math.inf)
    other, steps = partial(other_seconds, run, seconds, *time_the_rest(run, evaluate)), settings.max_steps
    if settings.minutes > 0:
        numbers = range(1, 1 + int(60 * settings.minutes / seconds))  # up to what fits if there is nothing else to do
        steps = max(1, bisect(numbers, 60 * settings.minutes, key=lambda n: n * seconds + other(n)))
    print("\n".join(estimate_lines(run, steps, seconds, other(steps))))
    layers_in_torch = run.device.type == "cpu" and not run.in_c
    if settings.compile == "auto" and layers_in_torch and seconds * steps >= COMPILE_FROM:
        print("A run as long as this is compiled first, if that is possible and proves to be faster.")


def time_the_rest(run: Run, evaluate: Callable) -> tuple[float, float]:
    """The seconds of an evaluation per token, and those of a sample."""
    settings = run.settings
    begin = time.perf_counter()
    _, scored = evaluate(run.model, run.val_data, run.stop.check, SCORED_TOKENS)
    per_token = (time.perf_counter() - begin) / scored
    if not settings.sample_tokens:
        return per_token, 0.0
    begin, tokens = time.perf_counter(), min(SAMPLED_TOKENS, settings.sample_tokens)
    sample_text(run.model, run.tokenizer, replace(settings, sample_tokens=tokens), run.stop.check)
    return per_token, (time.perf_counter() - begin) * settings.sample_tokens / tokens


def other_seconds(run: Run, per_step: float, per_token: float, per_sample: float, steps: int) -> float:
    """Seconds of evaluations, samples and records beside so many training steps."""
    settings, val_tokens = run.settings, len(run.val_data)
    evaluations = records = 0  # the last evaluation, of the whole file, counts by itself
    if every := evaluation_interval(settings.eval_every, steps):
        evaluations = 1 + (steps - 1) // every
        records = evaluations + steps.bit_length()  # each takes about as long as a step, and has a sample
    tokens = val_tokens + evaluations * min(settings.eval_tokens or val_tokens, val_tokens)
    return per_token * tokens + per_sample * (1 + records) + per_step * records


def estimate_lines(run: Run, steps: int, seconds: float, other: float) -> list[str]:
    """The estimate as lines, and a warning if there is one to give. `seconds` per step; `other` seconds in all."""
    micro_batch = [tensor.chunk(run.settings.accumulate)[0] for tensor in run.batches(0)]
    memory = memory_by_kind(run.model, run.optimizer, *micro_batch)
    whole = sum(memory.values())
    who = "The run" if distributed.world_size() == 1 else "Each process"
    lines = [f"{who} needs about {whole / 1e6:,.0f} MB of memory, besides Python and torch:"]
    for name, size in memory.items():
        lines.append(f"  {name:18} {size / 1e6:>10,.1f} MB {bar(size / whole)} {size / whole:6.1%}")
    parameters, train_tokens = sum(run.model.parameter_counts().values()), len(run.train_data)
    tokens, flops = steps * run.tokens_per_step, flops_per_token(run.model)
    speed = run.tokens_per_step / seconds
    lines += [
        "Data:",
        f"  {'tokens':18} {tokens:>12,} in {steps:,} steps: {tokens / train_tokens:.2f} epochs",
        f"  {'per parameter':18} {tokens / parameters:>12.1f} tokens (compute-optimal: about {COMPUTE_OPTIMAL})",
        "Compute:",
        f"  {'per token':18} {flops / 1e6:>12,.1f} MFLOP, {tokens * flops / 1e12:,.1f} TFLOP in all",
        f"  {'speed':18} {speed:>12,.0f} tokens/s, {flops * speed / 1e9:,.1f} GFLOP/s, from {TIMED_STEPS} steps",
        f"  {'time':18} {duration(steps * seconds + other):>12} in all: {duration(steps * seconds)} for steps of "
        f"{1000 * seconds:.1f} ms, {duration(other)} for evaluations and samples",
    ]
    lines += [f"Warning: {text}" for text in Diagnostics().planned(parameters, train_tokens)]
    return lines


def memory_by_kind(model: GPT, optimizer: Optimizer, inputs: Tensor, targets: Tensor) -> dict[str, int]:
    """Bytes of each kind of memory that training holds; temporary copies come on top."""
    return {
        "weights": bytes_of(optimizer.weights),
        "gradients": bytes_of(optimizer.grads),
        "optimizer": bytes_of(*optimizer.state_dict().values()),
        "activations": activation_bytes(model, inputs, targets),
    }


def check_memory(run: Run) -> None:
    """Raise UsageError, with what would fit, if a step of this run needs more memory than the machine has left: the
    system would kill it without a word. A GPU raises an error that says enough. What one and two sequences keep for the
    backward pass gives what any number keeps."""
    settings = run.settings
    if run.device.type != "cpu" or settings.shard_model:
        return
    free = free_memory()
    inputs = torch.zeros(2, settings.block_size, dtype=torch.long)
    one, two = (activation_bytes(run.model, inputs[:n], inputs[:n]) for n in (1, 2))
    two, one = TEMPORARY * two, TEMPORARY * one
    fixed = bytes_of(run.optimizer.grads, run.optimizer.mean, run.optimizer.square) + one - (two - one)
    processes, per_sequence = distributed.world_size(), two - one
    sequences = settings.batch_size // processes // settings.accumulate
    if (needed := fixed + sequences * per_sequence) <= free:
        return
    text = f"A step of this run needs about {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free. "
    if (fitting := int((0.9 * free - fixed) / per_sequence)) < 1:
        raise UsageError(f"{text}Even one sequence does not fit: try a smaller --block-size, --n-layer or --n-embd.")
    parts = range(-(-settings.batch_size // (processes * fitting)), settings.batch_size + 1)
    accumulate = next(n for n in parts if settings.batch_size % (processes * n) == 0)
    raise UsageError(
        f"{text}--batch-size {fitting * processes * settings.accumulate:,} would fit; so would --accumulate "
        f"{accumulate}, which computes the same step in parts."
    )


def bytes_of(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def activation_bytes(model: GPT, inputs: Tensor, targets: Tensor) -> int:
    """The bytes that the forward pass of a batch (B, T) keeps for the backward pass, weights aside. Counted, not
    estimated: autograd reports each tensor that it saves."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda _: None), torch.random.fork_rng():
        model.loss(inputs, targets)
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    return sum(size for address, size in sizes.items() if address not in weights)


def flops_per_token(model: GPT) -> int:
    """Floating-point operations of training on one token: 6 for each weight that is multiplied (a product and a sum, in
    the forward pass once, in the backward pass twice), and 12 L T C for attention, T being the block size. Chowdhery et
    al. 2022, PaLM (arXiv:2204.02311), appendix B. The embedding is looked up, not multiplied."""
    a = model.architecture
    multiplied = sum(weight.numel() for weight in model.parameters() if weight.dim() == 2)
    if not a["tie_embeddings"]:
        multiplied -= model.embedding.weight.numel()
    return 6 * multiplied + 12 * a["n_layer"] * a["block_size"] * a["n_embd"]
