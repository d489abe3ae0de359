"""Where to compute, and in which precision."""

import ctypes
import time
from contextlib import contextmanager

import numpy as np
import torch

from plumbing.errors import UsageError, UserError


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA if there is one, else Apple's MPS, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()  # back again: the device meta has shapes, but no numbers
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        raise UsageError(f"The device {name!r} cannot be used here: {reason}. Try --device cpu.") from None
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of matrix products in training; "auto" is bfloat16 where it is at least 1.3 times as fast.

    On a CPU that takes a timing: bfloat16 is two to five times as fast as fp32 on those with instructions for it, and
    many times slower on the others. MPS trains in fp32.
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
    """Seconds that the CPU takes to round two fp32 matrices (size, size) to a precision and multiply them, the best of
    a few."""
    a = torch.ones(size, size)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        a.to(dtype) @ a.to(dtype)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def wait_for(device: torch.device) -> None:
    """Return when the device has done all that was asked of it: a GPU works behind Python's back."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A numpy array as a tensor on the device; a GPU fetches it while Python goes on."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def keep_memory() -> None:
    """Have the allocator keep what is freed, for the next step to use: a quarter of a small model's time on a CPU.

    By default glibc hands large blocks back to the system at once, and the next step pays to have every page of them
    mapped and zeroed again. Other C libraries have no such call, and nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: free memory at the end of the heap that is kept, in bytes
    mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: blocks below this size come from the heap; the largest value it takes


@contextmanager
def memory_advice(advice: str):
    """Turn "out of memory", on any device, into a UserError that says what to do. Around a block, or on a function."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # of torch, whose allocator for the CPU raises it bare, and of numpy
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
            raise UserError(f"There is not enough memory for this. {advice}") from None
        raise
