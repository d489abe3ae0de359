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
from dataset import token_writer
from model.device import pick_device, pick_dtype
from model.tokenization.tokenizer import load_tokenizer, make_character_tokenizer, save_tokenizer
from scripts.benchmarks.common import command_seconds, medians
from scripts.benchmarks.models import MODELS, SCALING_STEPS


def measure_scaling(args) -> list[dict]:
    """Whole trainings with train.py on random tokens. On a CPU: one process with one thread; one process with several
    threads; several processes with one thread each. On a machine with GPUs: one process per GPU, from 1 to all of them.
    All use the same batch, because the loss must stay the same. The tokens per second are from train.py's log.
    """
    device = pick_device("auto")
    dtype = str(pick_dtype("auto", device)).removeprefix("torch.")
    steps = SCALING_STEPS[args.size]
    flags = ["--device", device.type, "--dtype", dtype, "--batch-size", args.batch_size, "--max-steps", steps]
    flags += ["--log-every", steps // 6, "--checkpoint-every", 10 * steps, "--compile", "off"]
    flags += ["--eval-every", 0, "--sample-tokens", 0]
    runs = configurations(args, device)
    with tempfile.TemporaryDirectory() as folder:
        flags += random_data(MODELS[args.size], Path(folder))
        rate = medians([
            {run: training_rate(run[0], run[1], [*flags, *run[2]], Path(folder)) for run in runs}
            for _ in range(args.rounds)
        ])  # fmt: skip
    rows = []
    for run in runs:
        processes, threads, own_flags = run
        speedup = rate[run] / rate[runs[0]]
        rows.append({
            "model": args.size,
            "processes": f"{processes}, sharded" if own_flags else str(processes),
            "threads each": threads,
            "tokens/s": f"{rate[run]:,.0f}",
            "speedup": f"{speedup:.2f}",
            "scaling loss": f"{1 - speedup / (processes * threads):.0%}",
        })  # fmt: skip
    return rows


def configurations(args, device: torch.device) -> list[tuple[int, int, tuple]]:
    """(processes, threads per process, flags of its own) of each run, the one to compare with first."""
    most = args.processes or torch.cuda.device_count() or os.cpu_count()
    if device.type == "cuda":
        runs = [(processes, 1, ()) for processes in range(1, most + 1) if args.batch_size % processes == 0]
    else:
        runs = [(1, 1, ()), (1, most, ()), (most, 1, ())]
    if args.shard_model:
        runs.append((most, 1, ("--shard-model",)))
    return runs


def random_data(shape: dict, folder: Path) -> list:
    """Write token files of random ids. Returns the flags with which train.py trains a model of this shape on them."""
    tokenizer_file, train_file, val_file = folder / "tokenizer.json", folder / "train.bin", folder / "val.bin"
    save_tokenizer(make_character_tokenizer(map(chr, range(32, 30 + shape["vocab_size"]))), tokenizer_file)
    tokenizer = load_tokenizer(tokenizer_file)
    facts = {"tokenizer_sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size, "end_of_text_id": 0}
    for path, tokens in ((train_file, 1_000_000), (val_file, 100)):
        with token_writer(path, facts) as writer:
            writer.add(np.random.default_rng(0).integers(tokenizer.vocab_size, size=tokens, dtype=np.uint16), tokens)
    flags = ["--tokenizer-file", tokenizer_file, "--train-file", train_file, "--val-file", val_file]
    for name in ("block_size", "n_layer", "n_head", "n_embd"):
        flags += [f"--{name.replace('_', '-')}", shape[name]]
    return flags


def training_rate(processes: int, threads: int, flags: list, folder: Path) -> float:
    """Train with this many processes. Returns the median of the logged tokens per second, without the first line."""
    run = Path(tempfile.mkdtemp(dir=folder))
    outputs = ["--checkpoint-dir", run / "run", "--model-file", run / "model.pt", "--fresh", "--quiet"]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command_seconds(
        [sys.executable, *launcher, ROOT / "train.py", *flags, *outputs], ROOT, OMP_NUM_THREADS=str(threads)
    )
    lines = map(json.loads, (run / "run" / "log.jsonl").read_text("utf-8").splitlines())
    return statistics.median([line["tokens_per_second"] for line in lines if "tokens_per_second" in line][1:])
