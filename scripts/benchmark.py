"""How fast is it, against a peer and against what the machine can do?

    python scripts/benchmark.py train --nanogpt ../nanoGPT --json bench.json

Reads   nothing; a peer is measured where an unmodified checkout of it is named
Writes  a table to the terminal, with --json the same figures to a file

Every row is a median of runs taken in turn with the peer's, so that what disturbs the machine disturbs both. Figures of
two machines, or of two days, do not compare; the ratios do.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import run, shown_path
from dataset import whole_file

# === what the machine can do ==========================================================================================


def machine() -> str:
    """One line: processor, cores, torch."""
    import torch

    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}"


def seconds_of(work, repeat: int = 5) -> float:
    """The median time of a call, after one that does not count."""
    work()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def bandwidth(megabytes: int = 256) -> float:
    """Bytes a second that all cores together read from memory: the sum of an array far larger than the caches."""
    import torch

    data = torch.ones(megabytes << 18)
    return data.nbytes / seconds_of(data.sum)


# === what comes out ===================================================================================================


def show_table(rows: list[dict]) -> None:
    """Print rows of the same keys as a Markdown table."""
    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    cells.insert(1, ["-" * width for width in widths])
    for line in cells:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subjects = parser.add_subparsers(dest="subject", required=True)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    args = parser.parse_args()
    print(machine())
    rows = args.measure(args)
    show_table(rows)
    if args.json:
        with whole_file(args.json) as file:
            file.write(json.dumps({"machine": machine(), "rows": rows}, indent=2).encode() + b"\n")
        print(f"The figures are in {shown_path(args.json)}.")
    return 0


if __name__ == "__main__":
    run(main)
