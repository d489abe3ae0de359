"""Which device to compute on and in which precision, and what to do when its memory runs out."""

import ctypes
import math
import os
import re
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from plumbing.errors import UsageError, UserError

CGROUP_V1 = "memory.limit_in_bytes", "memory.usage_in_bytes"


def pick_device(name: str) -> torch.device:
    """The device of that name. "auto" is CUDA if available, else Apple's MPS, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()  # item(): the device "meta" makes tensors, but they hold no numbers
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        if reason.startswith(("Expected one of", "Invalid device string", "Device string")):
            raise UsageError(f"--device is auto, cpu, cuda, cuda:1 (the second GPU) or mps, not {name!r}.") from None
        raise UsageError(f"The device {name!r} cannot be used here: {reason}. Try --device cpu.") from None
    device = torch.device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # streams and CUDA graphs belong to the current device
    return device


def compute_deterministically() -> None:
    """Use only operations that give the same bits each time (--deterministic). Call it before CUDA starts."""
    from torch._inductor import config as compiler

    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # of a fixed size, so that products repeat
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # every number here is written before it is read
    compiler.deterministic = True  # no choice of kernels by timing


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of matrix products in training. "auto" is bfloat16 on a GPU that supports it, else fp32.

    On a CPU, "auto" times both and takes bfloat16 if it is at least 1.3 times as fast. CPUs with bfloat16 instructions
    are two to five times as fast with it, the others many times slower. MPS trains in fp32.
    """
    if name != "auto":
        if name not in ("float32", "bfloat16"):
            raise UsageError(f"--dtype is auto, float32 or bfloat16, not {name!r}.")
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu" and product_seconds(torch.bfloat16) * 1.3 < product_seconds(torch.float32):
        return torch.bfloat16
    return torch.float32


def product_seconds(dtype: torch.dtype, size: int = 384) -> float:
    """Seconds a CPU needs to cast two fp32 matrices (size, size) to this precision and multiply them, best of five."""
    a = torch.ones(size, size)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        a.to(dtype) @ a.to(dtype)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished all its work. A GPU computes asynchronously, so timings need this."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A numpy array as a tensor on the device. The copy to a GPU runs in the background."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def keep_memory() -> None:
    """Make the C allocator keep freed memory for the next step. Saves a quarter of a small model's time on a CPU.

    By default glibc returns large blocks to the system at once, which then maps and zeroes each page again in the next
    step. Other C libraries have no such call; there this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: bytes of free memory to keep at the end of the heap
    mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: smaller blocks come from the heap; 32 MB is the largest value allowed


def free_memory() -> float:
    """Bytes of this machine's memory that a program can still take, within the limit of its container; infinite where
    the system does not say. Linux kills a program that takes more, without a word."""
    try:
        available = 1024 * int(re.search(r"^MemAvailable: +(\d+) kB", system_file("/proc/meminfo"), re.MULTILINE)[1])
    except (OSError, TypeError):
        return math.inf
    for folder, limit, used in (("", "memory.max", "memory.current"), ("memory/", *CGROUP_V1)):
        try:
            texts = [system_file(f"/sys/fs/cgroup/{folder}{name}") for name in (limit, used, "memory.stat")]
            # Given back on demand:
            cache = int(re.search(r"^(?:total_)?inactive_file (\d+)", texts[2], re.MULTILINE)[1])
            available = min(available, int(texts[0]) - int(texts[1]) + cache)
        except (OSError, ValueError, TypeError):  # no such cgroup, or "max"
            pass
    return max(0, available)


def require_memory(needed: float, what: str) -> None:
    """Raise UserError if `what`, such as "To read 5 tokens", needs more bytes than are free."""
    if needed > (free := free_memory()):
        raise UserError(
            f"{what} needs about {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free. Use a shorter "
            "text or a smaller model."
        )


def system_file(path: str) -> str:
    return Path(path).read_text("utf-8")


@contextmanager
def memory_advice(advice: str):
    """Turn an out-of-memory error on any device into a UserError with this advice. For `with`, or as a decorator."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # RuntimeError: torch's CPU allocator; MemoryError: numpy
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
            raise UserError(f"There is not enough memory for this. {advice}") from None
        raise
