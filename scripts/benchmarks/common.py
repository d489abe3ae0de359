"""What all benchmarks use: the limits of the machine, medians, running and timing commands, a table."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from model.device import pick_device, wait_for
from plumbing.errors import UserError


def describe_machine() -> str:
    """One line: processor, cores, GPU, torch."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text("utf-8")
        name = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), name)
        kinds = ("amx_bf16", "with AMX"), ("avx512_bf16", "with bfloat16"), ("avx2", "with AVX2, no bfloat16")
        name += next((f" {kind}" for flag, kind in kinds if f" {flag} " in text), "")
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}"


def matmul_flops(dtype: torch.dtype, size: int = 0) -> float:
    """Floating-point operations per second of (size, size) matrix products, by default large enough for the best."""
    device = pick_device("auto")
    size = size or (1024 if device.type == "cpu" else 8192)
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / median_seconds(lambda: a @ b, device, 20)


def memory_bandwidth(megabytes: int = 0) -> float:
    """Bytes per second that the device reads from memory, by summing an array far larger than its caches."""
    device = pick_device("auto")
    data = torch.ones((megabytes or (256 if device.type == "cpu" else 8192)) << 18, device=device)
    return data.nbytes / median_seconds(data.sum, device, 5)


def median_seconds(work: Callable, device: torch.device, repeat: int) -> float:
    """The median time of work() on a device, after a first call that does not count."""
    times = []
    for _ in range(1 + repeat):
        start = time.perf_counter()
        work()
        wait_for(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def seconds_of(work: Callable) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def medians(rounds: list[dict]) -> dict:
    """The median of each figure over several rounds: [{"a": 1}, {"a": 5}, {"a": 2}] gives {"a": 2}."""
    return {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}


def run_silently(command: list, folder: Path | None = None, **variables: str) -> subprocess.CompletedProcess:
    """Run a command to its end, in a folder and with environment variables, and capture its output as text."""
    command, env = [str(part) for part in command], os.environ | variables
    done = subprocess.run(  # noqa: S603
        command, cwd=folder, env=env, capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        raise UserError(f"{' '.join(command[:3])} ... ended with exit code {done.returncode}: {done.stderr[-400:]}")
    return done


def print_table(rows: list[dict]) -> None:
    """Print rows of the same keys as a Markdown table."""
    if not rows:
        return
    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    cells.insert(1, ["-" * width for width in widths])
    for line in cells:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")
