"""The fastest way to take a training step here: eager, compiled, or recorded as a CUDA graph.

Which one it is depends on the machine and on how long the run will be, so a few steps are timed. They leave no trace:
weights, the optimizer's state and random numbers come out as they went in. With --minutes, the same timing says how
many steps the run will have.
"""

import logging
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from model.device import wait_for
from model.gpt import GPT
from model.training import distributed
from model.training.cuda_graph import CudaGraph
from model.training.optimizer import Optimizer
from model.training.run import Run
from model.training.schedule import EVALUATIONS
from plumbing.errors import UserError, reason
from plumbing.text import duration, plural

# Seconds of steps from which compiling pays for itself on a CPU: it takes 15 to 40 s and saves about a fifth of each.
COMPILE_FROM = 200.0
OTHER_RECORDS = 12  # that a run makes between evaluations, about (model/monitoring/recorder.py)
TIMED_STEPS = 20  # at most, after the warm-up
FEW_STEPS = 20  # a run of --minutes that comes to fewer steps than these gets a warning


def choose_step(run: Run, train_step: Callable) -> Callable:
    """step(inputs, targets, fraction): the fastest form of train_step for this run. Sets run.compiled and, for a new
    run with --minutes, the number of steps."""
    settings, choice = run.settings, run.settings.compile
    if run.resumed_at is not None:
        choice = "on" if run.compiled else "off"
        if run.compiled and run.device.type == "cuda":
            print("This run was compiled and stays so. On a GPU that is slower now than a run begun with --fresh.")
    if settings.shard_model:
        choice = "off"
    step, seconds, run.compiled = pick_step(run, train_step, choice)
    if run.timed:
        run.settings = replace(settings, max_steps=steps_that_fit(run, seconds))
        print(f"{plural(run.max_steps, 'step')} fit into --minutes {settings.minutes:g}: max_steps = {run.max_steps}")
        if run.max_steps < FEW_STEPS:
            print(
                "Warning: that is too few to learn from. Give more --minutes, or wait until the machine is less busy."
            )
    return step


def pick_step(run: Run, train_step: Callable, choice: str) -> tuple[Callable, float, bool]:
    """The step to train with, the seconds that it takes, and whether it is compiled. `choice` is "on", "off", or
    "auto": on a CPU without layers in C, if the run is long enough and the compiled step proves to be faster."""
    plain = partial(train_step, run, run.model.loss, run.optimizer.step)
    if choice == "auto" and (run.in_c or run.device.type != "cpu"):
        choice = "off"  # layers in C or Triton are faster than what torch.compile makes of the plain ones
    if choice == "off" and not run.timed and run.device.type == "cpu":  # nothing to decide, so the run starts at once
        return plain, math.nan, False
    at_most, seconds = 0.02 * seconds_left(run) if run.timed else 0.0, math.nan
    if choice != "on":
        step, seconds = graph_if_possible(run, plain, at_most)
        planned = seconds_left(run) if run.timed else seconds * (run.max_steps - run.step)
        if choice == "off" or not distributed.broadcast(worth_compiling(planned)):
            return step, seconds, False
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of a GPU that nobody asked for
    begin = time.perf_counter()
    try:
        step = partial(train_step, run, *compile_step(run.model, run.optimizer))
        compiled, compiled_seconds = graph_if_possible(run, step, at_most)
    except (RuntimeError, OSError, ImportError) as error:  # what a compiler runs into must not end a training
        if run.resumed_at is not None:
            raise UserError(
                f"This run was compiled, and here compiling fails: {reason(error)}. "
                "Uncompiled it would be another run. Resume it where compiling works, or start over with --fresh."
            ) from None
        if distributed.world_size() > 1:  # but several processes do it alike, or not at all
            raise UserError(f"Compiling failed, so give --compile off: {reason(error)}") from None
        print(f"Compiling failed, continuing without: {reason(error)}")
        return *graph_if_possible(run, plain, at_most), False
    before = "" if math.isnan(seconds) else f", uncompiled {1000 * seconds:.1f} ms"
    print(
        f"Compiled in {duration(time.perf_counter() - begin)}: a step takes {1000 * compiled_seconds:.1f} ms{before}."
    )
    if choice == "auto" and compiled_seconds >= seconds:
        print("Continuing uncompiled.")
        return plain, seconds, False
    return compiled, compiled_seconds, True


def compile_step(model: GPT, optimizer: Optimizer) -> tuple[Callable, Callable]:
    """The loss and the update of train_step, compiled at their first calls."""
    return torch.compile(model.loss, dynamic=False), torch.compile(optimizer.step, dynamic=False)


def graph_if_possible(run: Run, step: Callable, at_most: float) -> tuple[Callable, float]:
    """The step, on a GPU recorded as a CUDA graph if that works, and its seconds_per_step()."""
    if run.device.type == "cuda" and not run.settings.shard_model:
        try:
            graph = CudaGraph(step)
            return graph, seconds_per_step(run, graph, at_most)
        except RuntimeError as error:
            print(f"The step cannot be recorded as a CUDA graph, so it is slower: {reason(error)}")
    return step, seconds_per_step(run, step, at_most)


# === timing ===========================================================================================================


def seconds_per_step(run: Run, step: Callable, at_most: float) -> float:
    """The median time of a step on the run's first batches: over two steps, or up to TIMED_STEPS if these take less
    than `at_most` seconds. Their learning rate is zero; afterwards weights, the optimizer's state and random numbers
    are put back."""
    warm_up = 1 if run.device.type == "cpu" else 5  # the first steps allocate and, on a GPU, compile and record
    times, begin, zero = [], time.perf_counter(), torch.zeros((), device=run.device)
    before = [tensor.clone() for tensor in run.optimizer.tensors()]
    try:
        with torch.random.fork_rng([run.device] if run.device.type == "cuda" else []):
            while len(times) < warm_up + 2 or (
                len(times) < warm_up + TIMED_STEPS and distributed.broadcast(time.perf_counter() - begin < at_most)
            ):
                run.stop.check()
                start = time.perf_counter()
                step(*run.batches(len(times)), zero)
                wait_for(run.device)
                times.append(time.perf_counter() - start)
    finally:
        for tensor, was in zip(run.optimizer.tensors(), before, strict=True):
            tensor.copy_(was)
    return distributed.broadcast(statistics.median(times[warm_up:]))


def seconds_left(run: Run) -> float:
    """Seconds of --minutes that are left, as the first process sees it."""
    return distributed.broadcast(60 * run.settings.minutes - (time.perf_counter() - run.started))


def steps_that_fit(run: Run, seconds: float) -> int:
    """The number of steps, at `seconds` per step, that --minutes leave room for: beside the evaluations, each with a
    record, of which the last scores the whole file, and the other records."""
    settings = run.settings
    per_token = seconds / (3 * run.tokens_per_step)  # a third of a step is its forward pass
    other = len(run.val_data) * per_token + OTHER_RECORDS * run.record_seconds
    per_evaluation = run.evaluation_seconds + run.record_seconds
    if settings.eval_every < 0:
        other += EVALUATIONS * per_evaluation
    per_step = seconds + (per_evaluation / settings.eval_every if settings.eval_every > 0 else 0)
    return distributed.broadcast(max(1, int((seconds_left(run) - other) / per_step)))


# === compiling ========================================================================================================


def compiler_missing() -> str | None:
    """What torch.compile would need on a CPU and does not find, or None where it can work."""
    compilers = ["cl"] if os.name == "nt" else [os.environ.get("CXX", "g++"), "clang++"]
    return None if any(map(shutil.which, compilers)) else f"there is no C++ compiler ({' or '.join(compilers)})"


def worth_compiling(planned: float) -> bool:
    """Whether to compile a run whose steps on a CPU would take `planned` seconds. Says what was decided and why."""
    if planned < COMPILE_FROM:
        return False
    if missing := compiler_missing():
        print(f"Not compiling the model: {missing}. With one, a step would take about a fifth less time.")
        return False
    print(
        f"Compiling the model: uncompiled, its steps would take {duration(planned)}. Compiling takes 15 to 40 s and "
        "saves about a fifth of each. (--compile off skips it.)"
    )
    return True
