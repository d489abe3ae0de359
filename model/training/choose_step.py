"""The fastest way to take a training step here: as it stands, compiled, or recorded as a CUDA graph.

Which one it is depends on the machine and on how long the run will be, so it is found out by taking a few steps and
looking at the clock. They leave no trace: weights, the optimizer's memory and random numbers come out as they went in.
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

import torch

from model.device import wait_for
from model.training import distributed
from model.training.optimizer import Optimizer
from plumbing.errors import UserError
from plumbing.text import duration

# Seconds of steps from which compiling pays for itself, by device. On two cores it takes 15 to 40 s and saves about a
# fifth of each step; on a machine with an H200 it takes 25 to 45 s and saves about half (docs/experiments.md).
COMPILE_FROM = {"cpu": 200.0, "cuda": 80.0}
SAVES = {"cpu": "about a fifth", "cuda": "about half"}


def compiler_missing(device: torch.device) -> str | None:
    """What torch.compile would need on this device and does not find, or None where it can work."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton is not installed"
    compilers = ["cl"] if os.name == "nt" else [os.environ.get("CXX", "g++"), "clang++"]
    return None if any(map(shutil.which, compilers)) else f"there is no C++ compiler ({' or '.join(compilers)})"


class Recorded:
    """A function of tensors on a GPU, recorded once as a CUDA graph and replayed in one launch.

    A small model's step is hundreds of kernels of a few microseconds each, and Python takes longer to launch one than
    the GPU to run it. Call it as the function; its first calls run as they are, so that everything is compiled and
    allocated, and the one after them is the recording. The tensors that it returns are overwritten by the next call.
    Like the function, it needs inputs of the same shapes each time, and must not read a value back to Python.
    """

    def __init__(self, function, calls_before: int = 3):
        self.function, self.calls_before, self.graph = function, calls_before, None

    def __call__(self, *inputs: torch.Tensor):
        if self.calls_before > 0:
            self.calls_before -= 1
            side = torch.cuda.Stream()  # as recording will: https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                result = self.function(*inputs)
            torch.cuda.current_stream().wait_stream(side)
            return result
        if self.graph is None:
            self.inputs = [x.clone() for x in inputs]
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.result = self.function(*self.inputs)
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.result


@contextmanager
def leaving_no_trace(optimizer: Optimizer):
    """Around steps that are only timed: weights, the optimizer's memory and random numbers are put back."""
    before = [tensor.clone() for tensor in optimizer.tensors()]
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for tensor, was in zip(optimizer.tensors(), before, strict=True):
            tensor.copy_(was)


def seconds_a_step(
    step: Callable,
    optimizer: Optimizer,
    batches: Callable,
    at_most: float = 0.0,
    check: Callable = lambda: None,
    most: int = 30,
) -> float:
    """The median time of step(idx, targets, rate), at a rate of zero, on batches(0), batches(1), ... of a run: over
    two of them, or up to `most` if these take less than `at_most` seconds. check() is called before each.
    """
    device = optimizer.steps.device
    unlike = 1 if device.type == "cpu" else 5  # the first steps allocate and, on a GPU, compile and record
    times, begin, rate = [], time.perf_counter(), torch.zeros((), device=device)
    with leaving_no_trace(optimizer):
        while len(times) < unlike + 2 or (
            len(times) < unlike + most and distributed.broadcast(time.perf_counter() - begin < at_most)
        ):
            check()
            start = time.perf_counter()
            step(*batches(len(times)), rate)
            wait_for(device)
            times.append(time.perf_counter() - start)
    return distributed.broadcast(statistics.median(times[unlike:]))


def worth_compiling(device: torch.device, planned: float) -> bool:
    """Whether to compile a run whose steps take `planned` seconds without. Says what was decided and why."""
    if planned < COMPILE_FROM.get(device.type, math.inf):
        return False
    if missing := compiler_missing(device):
        print(f"Not compiling the model: {missing}. With one, a step would take {SAVES[device.type]} less time.")
        return False
    print(
        f"Compiling the model: its steps would take {duration(planned)} without. Compiling takes 15 to 45 s and saves "
        f"{SAVES[device.type]} of each. (--compile off goes without.)"
    )
    return True


def pick_step(
    make_step: Callable, loss_of: Callable, time_step: Callable, device: torch.device, compile: str, planned: Callable
) -> tuple[Callable, float, bool]:
    """The step to train with, the seconds that it takes, and whether it is compiled.

    make_step(loss_of)   gives a step that computes the loss with this function; loss_of is the plain one
    time_step(step)      takes a few steps and gives the seconds of one
    compile              "on", "off", or "auto": where planned(seconds), the seconds that all steps of the run take at
                         this speed, make it worth while, and the compiled step proves to be faster
    """

    def tried(loss_of: Callable) -> tuple[Callable, float]:
        step = make_step(loss_of)
        if device.type == "cuda" and distributed.world_size() == 1:  # what several send each other was never recorded
            try:
                recorded = Recorded(step)
                return recorded, time_step(recorded)
            except RuntimeError as error:
                print(f"The step cannot be recorded as a CUDA graph, so it is slower: {str(error).splitlines()[0]}")
        return step, time_step(step)

    step, seconds = tried(loss_of)
    if compile == "off" or (compile == "auto" and not distributed.broadcast(worth_compiling(device, planned(seconds)))):
        return step, seconds, False
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of a GPU that nobody asked for
    begin = time.perf_counter()
    try:
        compiled_step, compiled_seconds = tried(torch.compile(loss_of, dynamic=False))
    except (RuntimeError, OSError, ImportError) as error:  # what a compiler runs into must not end a training
        if distributed.world_size() > 1:  # but several processes do it alike, or not at all
            raise UserError(f"Compiling failed, so give --compile off: {str(error).splitlines()[0]}") from None
        print(f"Compiling failed, going on without: {(str(error).strip() or repr(error)).splitlines()[0]}")
        return step, seconds, False
    print(
        f"Compiled in {duration(time.perf_counter() - begin)}: a step takes {1000 * compiled_seconds:.1f} ms, "
        f"and {1000 * seconds:.1f} ms without."
    )
    if compile == "auto" and compiled_seconds >= seconds:
        print("So it goes on without.")
        return step, seconds, False
    return compiled_step, compiled_seconds, True
