"""Training against nanoGPT: tokens a second by model size, and whole trainings to a loss or for a time."""

import itertools
import json
import math
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from config import BPE, CHAR, ROOT
from dataset import TokenFile, draw_batch, open_tokens
from model.metrics import bits_per_byte
from plumbing.errors import UsageError, UserError
from scripts.benchmarks.common import MODELS, command_seconds, product_rate

# --- tokens a second --------------------------------------------------------------------------------------------------

LEAST_SECONDS = 10.0  # small models take more rounds than asked for, until so much time is over
BATCH_SIZES = {"0.8M": 32, "10.7M": 64, "30M": 16, "124M": 2}  # sequences in a step, by model; 64 is nanoGPT's own
GPU_BATCH_SIZES = {"0.8M": 64, "10.7M": 64, "30M": 128, "124M": 32}
GPU_STEPS = 20  # that are timed at once, as a training waits for the GPU at log lines only

# What runs in a process of its own, in a checkout of nanoGPT: its model and optimizer as its train.py uses them on a
# CPU (fp32) or a GPU (bfloat16, compiled), on random tokens. For each line that it reads, a number of steps, it takes
# these and writes a line of their seconds.
NANOGPT_STEP = """
import contextlib, sys, time, torch
from model import GPT, GPTConfig
vocab_size, block_size, n_layer, n_head, n_embd, batch_size = map(int, sys.argv[1:])
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.backends.cuda.matmul.allow_tf32 = True
model = GPT(GPTConfig(block_size, vocab_size, n_layer, n_head, n_embd, dropout=0.0, bias=False)).to(device)
optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), device)
if device == "cuda": model = torch.compile(model)
context = torch.autocast("cuda", torch.bfloat16) if device == "cuda" else contextlib.nullcontext()
idx, targets = torch.randint(vocab_size, (2, batch_size, block_size), device=device)
for line in sys.stdin:
    start = time.perf_counter()
    for _ in range(int(line)):
        with context:
            _, loss = model(idx, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    loss.item()
    print("seconds", time.perf_counter() - start, flush=True)
"""


class Peer:
    """A process that takes some steps for each call and tells the seconds of one."""

    def __init__(self, script: str, folder: Path, *args):
        command = [sys.executable, "-c", script, *map(str, args)]
        self.process = subprocess.Popen(  # noqa: S603 (what the person who measures names)
            command,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )

    def __call__(self, steps: int = 1) -> float:
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1]) / steps
        raise UserError("nanoGPT's model did not run. Does --nanogpt name a checkout of it?")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure_step(name: str, nanogpt: Path | None, rounds: int, compile: bool) -> dict:
    """One shape: our step and the peer's in turn, the limit, and on a CPU where the time of ours goes: to the update,
    to drawing the batch, and to evaluations, as config.py has them by default. On a GPU a step is one CUDA graph.
    """
    import torch

    from model.device import keep_memory, pick_device, pick_dtype, wait_for
    from model.gpt import GPT
    from model.training.choose_step import Recorded
    from model.training.optimizer import Optimizer

    device = pick_device("auto")
    on_cpu = device.type == "cpu"
    shape, batch_size = MODELS[name], (BATCH_SIZES if on_cpu else GPU_BATCH_SIZES)[name]
    block_size = shape["block_size"]
    if on_cpu:
        keep_memory()
    dtype = pick_dtype("auto", device)
    tied = shape["vocab_size"] > 1000  # as the peer's are, which for few ids makes no difference
    model = GPT(**shape, tie_embeddings=tied).to(device).compute_in(dtype)
    optimizer = Optimizer(model, CHAR, dtype)
    loss_of = torch.compile(model.loss, dynamic=False) if compile else model.loss
    idx, targets = torch.randint(shape["vocab_size"], (2, batch_size, block_size), device=device)
    rate = torch.ones((), device=device)

    pieces, steps = pieces_of_a_step(model, loss_of, optimizer, idx, targets, rate), 1
    if not on_cpu:
        forward_backward, update = pieces[:2]
        recorded, steps = Recorded(lambda: (forward_backward(), update())), GPU_STEPS

        def train_on():
            for _ in range(steps):
                recorded()
            wait_for(device)

        pieces = [train_on]

    peer = nanogpt and Peer(NANOGPT_STEP, nanogpt, *shape.values(), batch_size)
    tokens = batch_size * block_size
    weights = sum(p.numel() for p in model.parameters()) - (0 if tied else model.embedding.weight.numel())
    # 6 N + 12 L C T a token: Chowdhery et al. 2022, PaLM (arXiv:2204.02311), appendix B
    operations = tokens * (6 * weights + 12 * shape["n_layer"] * shape["n_embd"] * block_size)
    times = []  # in turn, so that what slows down the machine slows down all of a round
    begin = time.perf_counter()
    for number in itertools.count():
        parts = [timed(piece) / steps for piece in pieces]
        theirs, limit = peer(steps) if peer else math.nan, product_rate(dtype)
        step = sum(parts[:3])
        if number > 0:  # the first one allocates and compiles
            times.append((step, theirs, theirs / step, limit, operations / step / limit, *parts))
        if number >= rounds and time.perf_counter() - begin > LEAST_SECONDS:
            break
    if peer:
        peer.close()
    step, theirs, ratio, limit, fraction, *parts = map(statistics.median, zip(*times, strict=True))
    row = {
        "model": name,
        "tokens a step": tokens,
        "ours, tokens/s": round(tokens / step),
        "nanoGPT, tokens/s": round(tokens / theirs) if peer else "",
        "ratio": f"{ratio:.2f}" if peer else "",
        "GFLOP/s": round(operations / step / 1e9),
        "limit": round(limit / 1e9),
        "of the limit": f"{fraction:.0%}",
    }
    if on_cpu:
        _, updating, drawing, evaluating = parts
        evaluating *= CHAR.eval_tokens / evaluated_at_once(block_size) / block_size / CHAR.eval_every  # a step's share
        row |= {
            "update": f"{updating / step:.0%}",
            "data": f"{drawing / step:.1%}",
            "evaluation": f"{evaluating / (step + evaluating):.1%}",
        }
    return row


def timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def evaluated_at_once(block_size: int) -> int:
    """Sequences, on a CPU (train.py: evaluate)."""
    return max(1, 4096 // block_size)


def pieces_of_a_step(model, loss_of, optimizer, idx, targets, rate) -> list:
    """What a step on a CPU consists of, as functions to be timed: forward and backward, update, data; and besides, a
    batch of an evaluation."""
    import numpy as np
    import torch

    text, (batch_size, block_size) = np.zeros(1 << 24, np.uint16), idx.shape

    def forward_backward():
        loss = loss_of(idx, targets)
        optimizer.zero_grad()
        loss.backward()

    def update():
        optimizer.clip(1.0)
        optimizer.step(rate)

    def draw():
        draw_batch(text, block_size, batch_size, 1, 0)

    @torch.inference_mode()
    def evaluate():
        sequences = evaluated_at_once(block_size)
        model.loss(idx[:1].expand(sequences, -1), targets[:1].expand(sequences, -1))

    return [forward_backward, update, draw, evaluate]


# --- time to a loss ---------------------------------------------------------------------------------------------------

SPRINT = """--block-size 64 --n-layer 2 --max-steps 190 --rotary-base 10 --momentum 0.8 --muon-rate 0.03
    --learning-rate 0.02 --decay-fraction 1"""
LONG = "--block-size 64 --batch-size 32 --n-layer 3 --n-embd 192 --n-head 6 --rotary-base 20"
PYTHON = ""
# Without tying, the two tables of 4,096 rows are two thirds of the weights: a narrower model has as many as nanoGPT's.
PYTHON_BPE = "--n-layer 3 --n-embd 112 --batch-size 8 --learning-rate 0.03"

# nanoGPT's README command for a CPU; the number of iterations and the data come behind it.
NANOGPT_TRAIN = """config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1
    --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --dropout=0.0"""

# Scores a checkpoint of nanoGPT as we score ours: the whole validation file, in non-overlapping blocks.
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


def race_ours(script: str, flags: str, files: dict, seed: int, minutes: float) -> tuple[float, float]:
    """A run of ours from the command to the saved model: (seconds, loss over the whole validation file)."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / script, *flags.split(), "--seed", seed]
        command += ["--eval-every", 0, "--sample-tokens", 0]
        command += ["--checkpoint-dir", folder, "--model-file", Path(folder, "model.pt")]
        command += [part for flag, path in files.items() for part in (flag, path)]
        seconds = command_seconds(command + ["--minutes", minutes] * (minutes > 0), ROOT)
        last = Path(folder, "log.jsonl").read_text("utf-8").splitlines()[-1]
        return seconds, json.loads(last)["val_loss"]


def race_nanogpt(nanogpt: Path, dataset: str, iterations: int) -> tuple[float, float]:
    """A run of nanoGPT, whose seed is fixed: (seconds, loss over the whole validation file)."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--dataset={dataset}", f"--max_iters={iterations}", f"--lr_decay_iters={iterations}"]
        flags += [f"--eval_interval={iterations // 8}", f"--out_dir={folder}"]
        seconds = command_seconds([sys.executable, "train.py", *NANOGPT_TRAIN.split(), *flags], nanogpt)
        command = [sys.executable, "-c", NANOGPT_SCORE, Path(folder, "ckpt.pt"), nanogpt / "data" / dataset / "val.bin"]
        done = subprocess.run(  # noqa: S603
            list(map(str, command)), cwd=nanogpt, capture_output=True, text=True, encoding="utf-8", check=True
        )
        return seconds, float(done.stdout.split()[-1])


FILES = ("train_file", "val_file", "tokenizer_file")


def lend_data(files: dict, nanogpt: Path, name: str) -> TokenFile:
    """Put our token files where nanoGPT looks for a dataset of that name. Returns the validation file."""
    val = open_tokens(files["--val-file"])
    folder = nanogpt / "data" / name
    folder.mkdir(exist_ok=True)
    for part in ("train", "val"):
        shutil.copyfile(files[f"--{part}-file"], folder / f"{part}.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": val.facts["vocab_size"]}))
    return val


# Iterations of nanoGPT (its README's number; what takes it three minutes on Python source), and our runs against it.
RACES = {
    "shakespeare": (2000, [("train.py", SPRINT), ("train.py", LONG)]),
    "char": (3000, [("train.py", PYTHON)]),
    "bpe": (2100, [("trainv2.py", PYTHON_BPE)]),
}


def race(nanogpt: Path, name: str, folder: Path, rounds: int) -> list[dict]:
    """Whole runs in turn: one of nanoGPT, then ours. What names no --max-steps gets the time that nanoGPT's run took.
    Losses are per token of the whole validation file.
    """
    settings = BPE if name == "bpe" else CHAR
    files = {f"--{kind.replace('_', '-')}": folder / getattr(settings, kind).name for kind in FILES}
    val = lend_data(files, nanogpt, f"tinylittlegpt_{name}")
    iterations, entrants = RACES[name]
    rows = []
    for seed in range(1, rounds + 1):
        seconds, loss = race_nanogpt(nanogpt, f"tinylittlegpt_{name}", iterations)
        for script, flags in entrants:
            # The start of Python, before the clock of --minutes, and the saving behind it are part of the time.
            minutes = 0.0 if "--max-steps" in flags else (seconds - 2.0) / 60
            ours, our_loss = race_ours(script, flags, files, seed, minutes)
            figures = {
                "race": name + (", to the loss" if "--max-steps" in flags else ", same time"),
                "nanoGPT, s": round(seconds, 1),
                "ours, s": round(ours, 1),
                "ratio": f"{seconds / ours:.2f}",
                "nanoGPT, loss": f"{loss:.4f}",
                "ours, loss": f"{our_loss:.4f}",
                "nanoGPT, bits per byte": f"{bits_per_byte(loss, val.tokens_per_byte):.4f}",
                "ours, bits per byte": f"{bits_per_byte(our_loss, val.tokens_per_byte):.4f}",
                "less": f"{1 - our_loss / loss:.1%}",
            }
            print(" ".join(f"{key}: {value};" for key, value in figures.items()), file=sys.stderr)
            rows.append(figures)
    return rows


def measure_training(args) -> list[dict]:
    if not args.race:
        return [measure_step(name, args.nanogpt, args.rounds, args.compile) for name in args.sizes]
    if not args.nanogpt:
        raise UsageError("A race needs a second runner: name a checkout of nanoGPT with --nanogpt.")
    return race(args.nanogpt.resolve(), args.race, args.data.resolve(), args.rounds)
