"""Several processes against one: tokens per second of whole trainings."""

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from config import ROOT
from model.device import pick_device, pick_dtype
from plumbing.command_line import flag_name
from scripts.benchmarks.common import medians, run_silently
from scripts.benchmarks.models import MODELS, SCALING_STEPS


def measure_scaling(args) -> list[dict]:
    """Whole trainings with train.py on random tokens. On a CPU: one process with one thread; one process with several
    threads; several processes with one thread each. On a machine with GPUs: one process per GPU, from 1 to all of them.
    All use the same batch, because the loss must stay the same. The tokens per second are from train.py's log."""
    device, steps = pick_device("auto"), SCALING_STEPS[args.size]
    dtype = str(pick_dtype("auto", device)).removeprefix("torch.")
    flags = ["--device", device.type, "--dtype", dtype, "--batch-size", args.batch_size, "--max-steps", steps]
    flags += ["--log-every", steps // 6, "--checkpoint-every", 10 * steps, "--compile", "off"]
    flags += ["--eval-every", 0, "--sample-tokens", 0]
    most = args.processes or torch.cuda.device_count() or os.cpu_count()
    # (processes, threads per process, flags of its own) of each run, the one to compare with first
    if device.type == "cuda":
        runs = [(processes, 1, ()) for processes in range(1, most + 1) if args.batch_size % processes == 0]
    else:
        runs = [(1, 1, ()), (1, most, ()), (most, 1, ())]
    if args.shard_model:
        runs.append((most, 1, ("--shard-model",)))
    with tempfile.TemporaryDirectory() as folder:
        flags += random_data(MODELS[args.size], Path(folder))
        rounds = []
        for _ in range(args.rounds):
            rounds.append({run: training_rate(*run[:2], [*flags, *run[2]], Path(folder)) for run in runs})
    rows, rate = [], medians(rounds)
    for processes, threads, own_flags in runs:
        tokens_per_second = rate[processes, threads, own_flags]
        speedup = tokens_per_second / rate[runs[0]]
        rows.append({
            "model": args.size,
            "processes": f"{processes}, sharded" if own_flags else str(processes),
            "threads each": threads,
            "tokens/s": f"{tokens_per_second:,.0f}",
            "speedup": f"{speedup:.2f}",
            "scaling loss": f"{1 - speedup / (processes * threads):.0%}",
        })  # fmt: skip
    return rows


def random_data(shape: dict, folder: Path) -> list:
    """Write token files of random ids. Returns the flags with which train.py trains a model of this shape on them."""
    flags = ["--tokenizer", "none", "--vocab-size", shape["vocab_size"]]
    for name, tokens in (("train", 1_000_000), ("val", 100)):
        flags += [f"--{name}-file", folder / f"{name}.bin"]
        ids = np.random.default_rng(0).integers(shape["vocab_size"], size=tokens, dtype=np.uint16)
        ids.tofile(folder / f"{name}.bin")
    for name in ("block_size", "n_layer", "n_head", "n_embd"):
        flags += [flag_name(name), shape[name]]
    return flags


def training_rate(processes: int, threads: int, flags: list, folder: Path) -> float:
    """Train with this many processes. Returns the median of the logged tokens per second, without the first line."""
    run = Path(tempfile.mkdtemp(dir=folder))
    outputs = ["--checkpoint-dir", run / "run", "--model-file", run / "model.pt", "--fresh", "--quiet"]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    run_silently([sys.executable, *launcher, ROOT / "train.py", *flags, *outputs], ROOT, OMP_NUM_THREADS=str(threads))
    lines = map(json.loads, (run / "run" / "log.jsonl").read_text("utf-8").splitlines())
    return statistics.median([line["tokens_per_second"] for line in lines if "tokens_per_second" in line][1:])
