"""What a benchmark of any subject needs: what the machine can do, the models that are measured, medians, a table."""

import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

from plumbing.errors import UserError

# --- what the machine can do ------------------------------------------------------------------------------------------


def machine() -> str:
    """One line: processor, cores, torch."""
    import torch

    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}"


def product_rate(dtype, size: int = 0) -> float:
    """Floating-point operations a second of a matrix product (size, size) in a precision. By default, the size is one
    at which a CPU or a GPU is at its best."""
    import torch

    from model.device import pick_device, wait_for

    device = pick_device("auto")
    size = size or (1024 if device.type == "cpu" else 8192)
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)

    def product():
        a @ b
        wait_for(device)

    return 2 * size**3 / seconds_of(product, 20)


def seconds_of(work, repeat: int = 5) -> float:
    """The median time of a call, after one that does not count."""
    work()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def bandwidth(megabytes: int = 0) -> float:
    """Bytes a second that the whole device reads from memory: the sum of an array far larger than its caches."""
    import torch

    from model.device import pick_device, wait_for

    device = pick_device("auto")
    data = torch.ones((megabytes or (256 if device.type == "cpu" else 8192)) << 18, device=device)

    def add_up():
        data.sum()
        wait_for(device)

    return data.nbytes / seconds_of(add_up)


def command_seconds(command: list, folder: Path, **variables: str) -> float:
    """Run a command to its end, out of sight. Returns its wall time, the start of Python included."""
    start = time.perf_counter()
    done = subprocess.run(  # noqa: S603
        list(map(str, command)), cwd=folder, env=os.environ | variables, capture_output=True, text=True,
        encoding="utf-8",
    )  # fmt: skip
    if done.returncode:
        raise UserError(
            f"{' '.join(map(str, command[:3]))} ... ended with exit code {done.returncode}: {done.stderr[-400:]}"
        )
    return time.perf_counter() - start


# --- the models that are measured -------------------------------------------------------------------------------------

# What nanoGPT's README trains on a CPU and on a GPU, the smallest of llama2.c, one between, and GPT-2.
MODELS = {
    "0.8M": {"vocab_size": 65, "block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128},
    "10.7M": {"vocab_size": 65, "block_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 384},
    "15M": {"vocab_size": 32000, "block_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 288},
    "30M": {"vocab_size": 4096, "block_size": 256, "n_layer": 8, "n_head": 8, "n_embd": 512},
    "124M": {"vocab_size": 50257, "block_size": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768},
}


# --- what comes out ---------------------------------------------------------------------------------------------------


def show_table(rows: list[dict]) -> None:
    """Print rows of the same keys as a Markdown table."""
    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    cells.insert(1, ["-" * width for width in widths])
    for line in cells:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")
