"""Several processes against one: tokens a second of whole trainings."""

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from config import ROOT
from dataset import token_writer
from scripts.benchmarks.common import MODELS, command_seconds

SCALING_STEPS = {"0.8M": 60, "10.7M": 6, "30M": 6, "124M": 6}  # of a run, by model


def measure_scaling(args) -> list[dict]:
    """Whole trainings with train.py, on random tokens: one process of one thread; one of as many threads as there are
    to be processes; so many processes of one thread each. On a machine with GPUs: one process for each, from 1 to all.
    The batch is the same for all, as the loss must be; the tokens a second are those that train.py writes to its log.
    """
    import torch

    from model.device import pick_device, pick_dtype

    most = args.processes or torch.cuda.device_count() or os.cpu_count()
    device = pick_device("auto").type
    flags = ["--device", device, "--dtype", str(pick_dtype("auto", pick_device("auto"))).removeprefix("torch.")]
    if device == "cuda":
        entrants = [(number, 1) for number in range(1, most + 1) if args.batch_size % number == 0]
    else:
        entrants = [(1, 1), (1, most), (most, 1)]
    entrants = [(*entrant, ()) for entrant in entrants] + [(most, 1, ("--shard-model",))] * args.shard_model
    with tempfile.TemporaryDirectory() as folder:
        flags += random_data(MODELS[args.size], Path(folder))
        steps = SCALING_STEPS[args.size]
        flags += ["--batch-size", args.batch_size, "--max-steps", steps, "--log-every", steps // 6, "--compile", "off"]
        flags += ["--eval-every", 0, "--sample-tokens", 0, "--checkpoint-every", 10 * steps]
        rates = {entrant: [] for entrant in entrants}
        for _ in range(args.rounds):
            for entrant in entrants:
                number, threads, own = entrant
                rates[entrant].append(training_rate(number, threads, [*flags, *own], Path(folder)))
    rate = {entrant: statistics.median(values) for entrant, values in rates.items()}
    alone = rate[entrants[0]]
    return [
        {
            "model": args.size,
            "processes": f"{number}{', weights in parts' if own else ''}",
            "threads each": threads,
            "tokens/s": f"{rate[number, threads, own]:,.0f}",
            "of the first row": f"{rate[number, threads, own] / alone:.2f}",
            "scaling loss": f"{1 - rate[number, threads, own] / alone / (number * threads):.0%}",
        }
        for number, threads, own in entrants
    ]


def random_data(shape: dict, folder: Path) -> list:
    """Write token files of random ids for a shape. Returns the flags with which train.py trains it on them."""
    import numpy as np

    from model.tokenization.tokenizer import load_tokenizer, make_character_tokenizer, save_tokenizer

    paths = {"--tokenizer-file": folder / "tokenizer.json"}
    paths |= {"--train-file": folder / "train.bin", "--val-file": folder / "val.bin"}
    characters = map(chr, range(32, 30 + shape["vocab_size"]))
    save_tokenizer(make_character_tokenizer(characters), paths["--tokenizer-file"])
    tokenizer = load_tokenizer(paths["--tokenizer-file"])
    facts = {"tokenizer_sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size, "end_of_text_id": 0}
    for name, tokens in (("--train-file", 1_000_000), ("--val-file", 100)):
        with token_writer(paths[name], facts) as writer:
            writer.add(np.random.default_rng(0).integers(tokenizer.vocab_size, size=tokens, dtype=np.uint16), tokens)
    architecture = {f"--{name.replace('_', '-')}": shape[name] for name in shape if name != "vocab_size"}
    return [part for flag in (paths | architecture).items() for part in flag]


def training_rate(number: int, threads: int, flags: list, folder: Path) -> float:
    """Train with so many processes: the median of the tokens a second of each sixth of the steps but the first."""
    run = Path(tempfile.mkdtemp(dir=folder))
    own = ["--checkpoint-dir", run / "run", "--model-file", run / "model.pt", "--fresh", "--quiet"]
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}"] if number > 1 else []
    command_seconds([sys.executable, *start, ROOT / "train.py", *flags, *own], ROOT, OMP_NUM_THREADS=str(threads))
    lines = map(json.loads, (run / "run" / "log.jsonl").read_text("utf-8").splitlines())
    return statistics.median([line["tokens_per_second"] for line in lines if "tokens_per_second" in line][1:])
