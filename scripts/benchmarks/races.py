"""Whole trainings against nanoGPT on the same token files: to a loss, or for the same time."""

import json
import pickle
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

from config import BPE, CHAR, ROOT
from dataset import TokenFile, open_tokens
from model.metrics import bits_per_byte
from plumbing.command_line import flag_name
from plumbing.errors import UsageError
from scripts.benchmarks.common import run_silently, seconds_of

# The command for a CPU from nanoGPT's README; the number of iterations and the data are added to it.
NANOGPT_TRAIN = """config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1
    --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --dropout=0.0"""

# Scores a checkpoint of nanoGPT as ours are scored: the whole validation file, in non-overlapping blocks.
NANOGPT_SCORE = """
import sys, numpy as np, torch
from model import GPT, GPTConfig
saved = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
model = GPT(GPTConfig(**saved["model_args"]))
model.load_state_dict(saved["model"])
model.eval()
tokens, T = torch.from_numpy(np.fromfile(sys.argv[2], "<u2").astype(np.int64)), saved["model_args"]["block_size"]
whole, total = (len(tokens) - 1) // T, 0.0
with torch.no_grad():
    for first in range(0, whole, 64):
        end = min(first + 64, whole) * T
        idx, targets = (tokens[first * T + i : end + i].view(-1, T) for i in (0, 1))
        total += model(idx, targets)[1].item() * idx.numel()
    if rest := len(tokens) - 1 - whole * T:
        total += model(tokens[None, -rest - 1 : -1], tokens[None, -rest:])[1].item() * rest
print(total / (len(tokens) - 1))
"""

# Our runs. Without --max-steps, a run gets the time that nanoGPT's run took.
SPRINT = """--block-size 64 --n-layer 2 --max-steps 125 --rotary-base 10 --momentum 0.8 --muon-rate 0.03
    --learning-rate 0.02 --warmup-steps 10 --decay-fraction 1"""
LONG = "--block-size 64 --batch-size 32 --n-layer 3 --n-embd 192 --n-head 6 --rotary-base 20"
# With 4,096 ids and no tied embeddings, the two tables are two thirds of the weights. This width gives as many weights
# as nanoGPT's model has.
NARROW = "--n-embd 112"
# Characters begin with counted weights, too, which is not their default, because then there is less to watch.
# name: (iterations of nanoGPT, our runs). 2000 is from nanoGPT's README; the others take it three minutes.
RACES = {
    "shakespeare": (2000, [("train.py", SPRINT), ("train.py", LONG)]),
    "char": (3000, [("train.py", "--initial-weights bigram")]),
    "bpe": (2100, [("trainv2.py", NARROW)]),
}


def train_nanogpt(nanogpt: Path, dataset: str, iterations: int) -> tuple[float, float]:
    """Train nanoGPT (its seed is fixed). Returns (seconds, loss over the whole validation file)."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--dataset={dataset}", f"--max_iters={iterations}", f"--lr_decay_iters={iterations}"]
        flags += [f"--eval_interval={iterations // 8}", f"--out_dir={folder}"]
        command = [sys.executable, "train.py", *NANOGPT_TRAIN.split(), *flags]
        seconds = seconds_of(partial(run_silently, command, nanogpt))
        command = [sys.executable, "-c", NANOGPT_SCORE, Path(folder, "ckpt.pt"), nanogpt / "data" / dataset / "val.bin"]
        return seconds, float(run_silently(command, nanogpt).stdout.split()[-1])


def train_ours(script: str, flags: str, files: dict[str, Path], seed: int, minutes: float) -> tuple[float, float]:
    """Train our model, from the command to the saved model. Returns (seconds, loss over the whole validation file)."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / script, *flags.split(), "--seed", seed, "--eval-every", 0]
        command += ["--sample-tokens", 0, "--checkpoint-dir", folder, "--model-file", Path(folder, "model.pt")]
        for flag, path in files.items():
            command += [flag, path]
        if minutes > 0:
            command += ["--minutes", minutes]
        seconds = seconds_of(partial(run_silently, command, ROOT))
        last = Path(folder, "log.jsonl").read_text("utf-8").splitlines()[-1]
        return seconds, json.loads(last)["val_loss"]


def lend_data(files: dict[str, Path], nanogpt: Path, dataset: str) -> TokenFile:
    """Copy our token files to where nanoGPT looks for a dataset of this name. Returns the validation file."""
    val = open_tokens(files["--val-file"])
    folder = nanogpt / "data" / dataset
    folder.mkdir(exist_ok=True)
    shutil.copyfile(files["--train-file"], folder / "train.bin")
    shutil.copyfile(files["--val-file"], folder / "val.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": val.facts["vocab_size"]}))
    return val


def measure_races(args) -> list[dict]:
    """Whole runs in turn: one of nanoGPT, then ours. Losses are per token of the whole validation file."""
    if not args.nanogpt:
        raise UsageError("A race needs a second runner: name a checkout of nanoGPT with --nanogpt.")
    race, nanogpt, dataset = args.race, args.nanogpt.resolve(), f"tinylittlegpt_{args.race}"
    settings = BPE if race == "bpe" else CHAR
    names = "train_file", "val_file", "tokenizer_file"
    files = {flag_name(name): args.data.resolve() / getattr(settings, name).name for name in names}
    val = lend_data(files, nanogpt, dataset)
    iterations, our_runs = RACES[race]
    rows = []
    for seed in range(1, args.rounds + 1):
        seconds, loss = train_nanogpt(nanogpt, dataset, iterations)
        for script, flags in our_runs:
            to_a_loss = "--max-steps" in flags
            # The time includes the start of Python, before the clock of --minutes starts, and saving the model.
            minutes = 0.0 if to_a_loss else (seconds - 2.0) / 60
            our_seconds, our_loss = train_ours(script, flags, files, seed, minutes)
            row = {
                "race": f"{race}, {'to the loss' if to_a_loss else 'same time'}",
                "nanoGPT, s": round(seconds, 1),
                "ours, s": round(our_seconds, 1),
                "ratio": f"{seconds / our_seconds:.2f}",
                "nanoGPT, loss": f"{loss:.4f}",
                "ours, loss": f"{our_loss:.4f}",
                "nanoGPT, bits per byte": f"{bits_per_byte(loss, val.tokens_per_byte):.4f}",
                "ours, bits per byte": f"{bits_per_byte(our_loss, val.tokens_per_byte):.4f}",
                "lower by": f"{1 - our_loss / loss:.1%}",
            }
            print("; ".join(f"{key}: {value}" for key, value in row.items()), file=sys.stderr)
            rows.append(row)
    return rows
