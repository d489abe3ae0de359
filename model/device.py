"""Where to compute, and in which precision."""

import time
from contextlib import contextmanager

import torch

from config import UsageError, UserError


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA if there is one, else Apple's MPS, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"The device {name!r} cannot be used here: {reason} Try --device cpu.") from None
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of matrix products in training; "auto" is bfloat16 where it is at least 1.3 times as fast.

    On a CPU that takes a timing: bfloat16 is three times as fast as fp32 on those with instructions for it, and many
    times slower on the others. MPS trains in fp32.
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
    """Seconds that the CPU takes for a matrix product of size x size in a precision, the best of a few."""
    a = torch.ones(size, size, dtype=dtype)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@contextmanager
def memory_advice(advice: str):
    """Turn "out of memory", on any device, into a UserError that says what to do. Around a block, or on a function."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one, and the CPU's allocator raises it bare
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise UserError(f"There is not enough memory for this. {advice}") from None
        raise
