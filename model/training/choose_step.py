"""The fastest way to take a training step here: eager, compiled, or recorded as a CUDA graph.

Which one it is depends on the machine and on how long the run will be, so a few steps are timed. They leave no trace:
weights, the optimizer's state and random numbers come out as they went in. With --minutes, the same timing says how
many steps the run will have.
"""

import importlib.util
import logging
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from model.device import wait_for
from model.training import distributed
from model.training.cuda_graph import CudaGraph
from model.training.optimizer import Optimizer
from model.training.run import Run
from plumbing.errors import UserError
from plumbing.text import duration

# Seconds of steps from which compiling pays for itself, by device. On two cores it takes 15 to 40 s and saves about a
# fifth of each step; on a machine with an H200 it takes 25 to 45 s and saves about half (docs/experiments.md).
COMPILE_FROM = {"cpu": 200.0, "cuda": 80.0}
SAVES = {"cpu": "about a fifth", "cuda": "about half"}
RECORDS = 12  # of the training's progress that a run makes, about (model/monitoring/recorder.py)


def choose_step(run: Run, train_step: Callable) -> Callable:
    """step(inputs, targets, rate), the fastest form of train_step for this run. Sets run.compiled and, for a new run
    with --minutes, the number of steps."""
    settings, choice = run.settings, run.settings.compile
    if run.resumed_at is not None:
        choice = "on" if run.compiled else "off"
    if settings.shard_model:
        choice = "off"
    needed = (
        choice != "off" or run.timed or run.device.type != "cpu"
    )  # else a run starts at once, with nothing to decide
    step, seconds, run.compiled = pick_step(
        partial(averaged_step, run, train_step),
        run.model.loss,
        partial(time_step, run) if needed else lambda step: math.nan,
        run.device,
        choice,
        partial(planned_seconds, run),
    )
    if run.timed:
        run.settings = replace(settings, max_steps=steps_that_fit(run, seconds))
        print(f"{run.max_steps:,} steps fit into the {settings.minutes:g} minutes: max_steps = {run.max_steps}")
    return step


def averaged_step(run: Run, train_step: Callable, loss_of: Callable) -> Callable:
    """step(inputs, targets, rate) with a loss whose gradients are averaged over all processes."""
    return partial(train_step, run, *distributed.data_parallel(loss_of, run.model))


def seconds_left(run: Run) -> float:
    """Seconds of --minutes that are left, as the first process sees it."""
    return distributed.broadcast(60 * run.settings.minutes - (time.perf_counter() - run.started))


def time_step(run: Run, step: Callable) -> float:
    at_most = 0.02 * seconds_left(run) if run.timed else 0.0
    return seconds_per_step(step, run.optimizer, run.batches, at_most, run.stop.check)


def planned_seconds(run: Run, seconds: float) -> float:
    """How long the steps of the run will take, at `seconds` per step."""
    return seconds_left(run) if run.timed else seconds * (run.max_steps - run.step)


def steps_that_fit(run: Run, seconds: float) -> int:
    """The number of steps, at `seconds` per step, that --minutes leave room for: beside the evaluations, of which the
    last scores the whole file, and the records."""
    settings = run.settings
    per_token = seconds / (3 * run.tokens_per_step)  # a third of a step is its forward pass
    other = len(run.val_data) * per_token + RECORDS * run.record_seconds
    per_step = run.evaluation_seconds / settings.eval_every if settings.eval_every else 0.0
    return distributed.broadcast(max(1, int((seconds_left(run) - other) / (seconds + per_step))))


# === timing ===========================================================================================================


@contextmanager
def leaving_no_trace(optimizer: Optimizer):
    """Around steps that are only timed: weights, the optimizer's state and random numbers are put back."""
    before = [tensor.clone() for tensor in optimizer.tensors()]
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for tensor, was in zip(optimizer.tensors(), before, strict=True):
            tensor.copy_(was)


def seconds_per_step(
    step: Callable,
    optimizer: Optimizer,
    batches: Callable,
    at_most: float = 0.0,
    check: Callable = lambda: None,
    most: int = 30,
) -> float:
    """The median time of step(inputs, targets, rate), at a rate of zero, on batches(0), batches(1), ... of a run: over
    two steps, or up to `most` if these take less than `at_most` seconds. check() is called before each.
    """
    device = optimizer.steps.device
    warm_up = 1 if device.type == "cpu" else 5  # the first steps allocate and, on a GPU, compile and record
    times, begin, rate = [], time.perf_counter(), torch.zeros((), device=device)
    with leaving_no_trace(optimizer):
        while len(times) < warm_up + 2 or (
            len(times) < warm_up + most and distributed.broadcast(time.perf_counter() - begin < at_most)
        ):
            check()
            start = time.perf_counter()
            step(*batches(len(times)), rate)
            wait_for(device)
            times.append(time.perf_counter() - start)
    return distributed.broadcast(statistics.median(times[warm_up:]))


# === compiling ========================================================================================================


def compiler_missing(device: torch.device) -> str | None:
    """What torch.compile would need on this device and does not find, or None where it can work."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton is not installed"
    compilers = ["cl"] if os.name == "nt" else [os.environ.get("CXX", "g++"), "clang++"]
    return None if any(map(shutil.which, compilers)) else f"there is no C++ compiler ({' or '.join(compilers)})"


def worth_compiling(device: torch.device, planned: float) -> bool:
    """Whether to compile a run whose eager steps take `planned` seconds. Says what was decided and why."""
    if planned < COMPILE_FROM.get(device.type, math.inf):
        return False
    if missing := compiler_missing(device):
        print(f"Not compiling the model: {missing}. With one, a step would take {SAVES[device.type]} less time.")
        return False
    print(
        f"Compiling the model: uncompiled, its steps would take {duration(planned)}. Compiling takes 15 to 45 s and "
        f"saves {SAVES[device.type]} of each. (--compile off skips it.)"
    )
    return True


def pick_step(
    make_step: Callable, loss_of: Callable, time_step: Callable, device: torch.device, compile: str, planned: Callable
) -> tuple[Callable, float, bool]:
    """The step to train with, the seconds that it takes, and whether it is compiled.

    make_step(loss_of)   gives a step that computes the loss with this function; loss_of is the eager one
    time_step(step)      takes a few steps and gives the seconds of one
    compile              "on", "off", or "auto": if planned(seconds), the seconds that all steps of the run take at
                         this speed, make it worthwhile, and the compiled step proves to be faster
    """
    step, seconds = graph_if_possible(make_step(loss_of), time_step, device)
    if compile == "off" or (compile == "auto" and not distributed.broadcast(worth_compiling(device, planned(seconds)))):
        return step, seconds, False
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of a GPU that nobody asked for
    begin = time.perf_counter()
    try:
        compiled = graph_if_possible(make_step(torch.compile(loss_of, dynamic=False)), time_step, device)
    except (RuntimeError, OSError, ImportError) as error:  # what a compiler runs into must not end a training
        if distributed.world_size() > 1:  # but several processes do it alike, or not at all
            raise UserError(f"Compiling failed, so give --compile off: {str(error).splitlines()[0]}") from None
        print(f"Compiling failed, continuing without: {(str(error).strip() or repr(error)).splitlines()[0]}")
        return step, seconds, False
    print(
        f"Compiled in {duration(time.perf_counter() - begin)}: a step takes {1000 * compiled[1]:.1f} ms, "
        f"uncompiled {1000 * seconds:.1f} ms."
    )
    if compile == "auto" and compiled[1] >= seconds:
        print("Continuing uncompiled.")
        return step, seconds, False
    return *compiled, True


def graph_if_possible(step: Callable, time_step: Callable, device: torch.device) -> tuple[Callable, float]:
    """The step, on a GPU recorded as a CUDA graph if that works, and the seconds that it takes."""
    if device.type == "cuda" and distributed.world_size() == 1:  # messages between processes were never recorded
        try:
            graph = CudaGraph(step)
            return graph, time_step(graph)
        except RuntimeError as error:
            print(f"The step cannot be recorded as a CUDA graph, so it is slower: {str(error).splitlines()[0]}")
    return step, time_step(step)
