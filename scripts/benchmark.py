"""How fast is it, against a peer and against what the machine can do?

    python scripts/benchmark.py train --nanogpt ../nanoGPT --json bench.json
    python scripts/benchmark.py generate --nanogpt ../nanoGPT --llama2c ../llama2.c/run
    python scripts/benchmark.py data
    python scripts/benchmark.py scale

Reads   nothing; a peer is measured where an unmodified checkout of it is named
Writes  a table to the terminal, with --json the same figures to a file

Every row is a median of runs taken in turn with the peer's, so that what disturbs the machine disturbs both. Figures of
two machines, or of two days, do not compare; the ratios do.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import math
import os
import pickle
import platform
import re
import shutil
import statistics
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import BPE, CHAR, DATA, ROOT, UsageError, UserError, run, shown_path
from dataset import TokenFile, draw_batch, open_tokens, token_writer, whole_file
from model.insight import bits_per_byte

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


def product_rate(dtype, size: int = 1024) -> float:
    """Floating-point operations a second of a matrix product (size, size) in a precision."""
    import torch

    from model.device import pick_device, wait_for

    device = pick_device("auto")
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


def bandwidth(megabytes: int = 256) -> float:
    """Bytes a second that all cores together read from memory: the sum of an array far larger than the caches."""
    import torch

    data = torch.ones(megabytes << 18)
    return data.nbytes / seconds_of(data.sum)


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


# === the models that are measured =====================================================================================

# What nanoGPT's README trains on a CPU and on a GPU, the smallest of llama2.c, one between, and GPT-2.
MODELS = {
    "0.8M": {"vocab_size": 65, "block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128},
    "10.7M": {"vocab_size": 65, "block_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 384},
    "15M": {"vocab_size": 32000, "block_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 288},
    "30M": {"vocab_size": 4096, "block_size": 256, "n_layer": 8, "n_head": 8, "n_embd": 512},
    "124M": {"vocab_size": 50257, "block_size": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768},
}

# === training: tokens a second ========================================================================================

LEAST_SECONDS = 10.0  # small models take more rounds than asked for, until so much time is over
BATCH_SIZES = {"0.8M": 32, "10.7M": 64, "30M": 16, "124M": 2}  # sequences in a step, by model; 64 is nanoGPT's own

# What runs in a process of its own, in a checkout of nanoGPT: its model and optimizer as its train.py uses them on a
# CPU (fp32) or a GPU (bfloat16, compiled), on random tokens, one line of seconds for each line that it reads.
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
    """A process that takes one step for each call and tells the seconds."""

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

    def __call__(self) -> float:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise UserError("nanoGPT's model did not run. Does --nanogpt name a checkout of it?")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure_step(name: str, nanogpt: Path | None, rounds: int, compile: bool) -> dict:
    """One shape: our step and the peer's in turn, the limit, and where the time of ours goes: to the update, to drawing
    the batch, and to evaluations, as config.py has them by default.
    """
    import numpy as np
    import torch

    from model.device import keep_memory, pick_device, pick_dtype, to_device, wait_for
    from model.gpt import GPT
    from model.optimizer import Optimizer

    shape, batch_size = MODELS[name], BATCH_SIZES[name]
    vocab_size, block_size = shape["vocab_size"], shape["block_size"]
    device = pick_device("auto")
    if device.type == "cpu":
        keep_memory()
    dtype = pick_dtype("auto", device)
    model = GPT(**shape).to(device).compute_in(dtype)
    optimizer = Optimizer(model, 0.01, 0.02, 0.1, 0.9, 0.95, 0.9, dtype)
    loss_of = torch.compile(model.loss, dynamic=False) if compile else model.loss
    idx, targets = torch.randint(vocab_size, (2, batch_size, block_size), device=device)
    rate = torch.ones((), device=device)

    def forward_backward():
        loss = loss_of(idx, targets)
        optimizer.zero_grad()
        loss.backward()
        wait_for(device)

    def update():
        optimizer.clip(1.0)
        optimizer.step(rate)
        wait_for(device)

    text = np.zeros(1 << 24, np.uint16)
    sequences = max(1, 4096 // block_size)  # that train.py evaluates at once

    def draw():
        for part in draw_batch(text, block_size, batch_size, 1, 0):
            to_device(part, device)
        wait_for(device)

    @torch.inference_mode()
    def evaluate():
        model.loss(idx[:1].expand(sequences, -1), targets[:1].expand(sequences, -1))
        wait_for(device)

    def timed(work) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    peer = nanogpt and Peer(NANOGPT_STEP, nanogpt, *shape.values(), batch_size)
    tokens = batch_size * block_size
    weights = sum(p.numel() for p in model.parameters()) - model.embedding.weight.numel()
    # 6 N + 12 L C T a token: Chowdhery et al. 2022, PaLM (arXiv:2204.02311), appendix B
    operations = tokens * (6 * weights + 12 * shape["n_layer"] * shape["n_embd"] * block_size)
    times = []  # in turn, so that what slows down the machine slows down all of a round
    begin = time.perf_counter()
    for number in itertools.count():
        parts = list(map(timed, (forward_backward, update, draw, evaluate)))
        theirs, limit = peer() if peer else math.nan, product_rate(dtype)
        step = sum(parts[:3])
        parts[3] *= CHAR.eval_tokens / (sequences * block_size) / CHAR.eval_every  # a step's share of it
        if number > 0:  # the first one allocates and compiles
            times.append((*parts, step, theirs, theirs / step, limit, operations / step / limit))
        if number >= rounds and time.perf_counter() - begin > LEAST_SECONDS:
            break
    if peer:
        peer.close()
    _, updating, drawing, evaluating, step, theirs, ratio, limit, fraction = map(
        statistics.median, zip(*times, strict=True)
    )
    return {
        "model": name,
        "tokens a step": tokens,
        "ours, tokens/s": round(tokens / step),
        "nanoGPT, tokens/s": round(tokens / theirs) if peer else "",
        "ratio": f"{ratio:.2f}" if peer else "",
        "GFLOP/s": round(operations / step / 1e9),
        "limit": round(limit / 1e9),
        "of the limit": f"{fraction:.0%}",
        "update": f"{updating / step:.0%}",
        "data": f"{drawing / step:.1%}",
        "evaluation": f"{evaluating / (step + evaluating):.1%}",
    }


# === training: time to a loss =========================================================================================

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


def train(args) -> list[dict]:
    if not args.race:
        return [measure_step(name, args.nanogpt, args.rounds, args.compile) for name in args.sizes]
    if not args.nanogpt:
        raise UsageError("A race needs a second runner: name a checkout of nanoGPT with --nanogpt.")
    return race(args.nanogpt.resolve(), args.race, args.data.resolve(), args.rounds)


# === generating: tokens a second, one at a time =======================================================================

GENERATING = ["0.8M", "10.7M", "124M", "15M"]


def measure_generating(args) -> list[dict]:
    """The table: for each shape ours without and with candidates, the peer, and what reading the weights allows.

    Random weights, fp32. Half a context of prompt, then tokens until the block is full; llama2.c and the shape it is
    compared at begin with one token. Rates are those of the tokens after the prompt. nanoGPT reads the whole context
    anew for each token, so it is timed at lengths spread evenly over the second half.
    """
    import torch

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        first_token(Path(folder), args.rounds)
        return [generating_row(name, args, Path(folder)) for name in args.shapes]


def generating_row(name: str, args, folder: Path) -> dict:
    """One shape: every contender once a round, in turn; medians."""
    import torch

    from model.gpt import GPT

    shape = MODELS[name]
    model = GPT(**shape, tie_embeddings=shape["vocab_size"] > 1000).eval()  # tied as the peers' are
    with torch.no_grad():
        for weight in model.parameters():
            if not weight.any():  # zeros would be multiplied as fast, but the text would be of one token
                weight.normal_(std=0.02)
    read_bytes = 4 * sum(w.numel() for n, w in model.named_parameters() if n != "embedding.weight" or w.size(0) > 1000)
    prompt = [1] if name == "15M" else torch.randint(shape["vocab_size"], (shape["block_size"] // 2,)).tolist()
    contenders = {"ours": our_rate(model, prompt, False), "with candidates": our_rate(model, prompt, True)}
    peer = "none"
    if name == "15M" and args.llama2c:
        peer = "llama2.c"
        contenders[peer] = llama2c_rate(args.llama2c, args.llama2c_model or random_llama2c_model(model, folder))
    elif name != "15M" and args.nanogpt:
        peer = "nanoGPT"
        contenders[peer] = nanogpt_rate(args.nanogpt, shape)
    contenders["limit"] = lambda: bandwidth() / read_bytes
    rates = {key: [] for key in contenders}
    for _ in range(args.rounds):
        for key, measure in contenders.items():
            rates[key].append(measure())
    rate = {key: statistics.median(values) for key, values in rates.items()}
    ours = rate["with candidates"]
    return {
        "shape": name,
        "ours, tokens/s": f"{rate['ours']:,.0f}",
        "with candidates": f"{ours:,.0f}",
        "peer": peer,
        "peer, tokens/s": f"{rate[peer]:,.1f}" if peer in rate else "",
        "ratio": f"{ours / rate[peer]:.1f}" if peer in rate else "",
        "limit": f"{rate['limit']:,.0f}",
        "fraction": f"{ours / rate['limit']:.0%}",
    }


def our_rate(model, prompt: list[int], candidates: bool):
    """A function that writes on from the prompt until the block is full, and gives the tokens a second.

    With candidates, five a step are recorded, and written as generate.py writes them, to nowhere.
    """
    from model.one_token import OneToken
    from model.sampling import generate, read
    from model.steps import show_step

    cache = model.new_cache()
    one_token = OneToken(model, cache)
    tokens, record = model.block_size - len(prompt), 5 * candidates

    def measure() -> float:
        cache.length = 0
        logits = read(model, prompt, cache)[-1]
        steps = generate(
            model, prompt, logits, cache, tokens, one_token=one_token, record=record, temperature=0.8, top_k=50
        )
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            start = time.perf_counter()
            for number, step in enumerate(steps, 1):
                if candidates:
                    nowhere.write(show_step(f"step {number}", step, 5, str) + "\n")
            return tokens / (time.perf_counter() - start)

    return measure


def nanogpt_rate(folder: Path, shape: dict):
    """A function that gives the tokens a second of nanoGPT's generate() over the second half of its context."""
    import torch

    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    module = sys.modules["nanogpt_model"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with contextlib.redirect_stdout(None):
        peer = module.GPT(module.GPTConfig(**shape, dropout=0.0, bias=False)).eval()
    half = shape["block_size"] // 2
    lengths = [half + half * (2 * i + 1) // 16 for i in range(8)]
    texts = [torch.randint(shape["vocab_size"], (1, length)) for length in lengths]

    def measure() -> float:
        start = time.perf_counter()
        for text in texts:
            peer.generate(text, 1, temperature=0.8, top_k=50)
        return len(texts) / (time.perf_counter() - start)

    return measure


def llama2c_rate(binary: Path, model_file: Path):
    """A function that gives the tokens a second that llama2.c reports: greedy, which is its fastest, 256 tokens."""

    def measure() -> float:
        command = [str(binary.resolve()), str(model_file), "-t", "0", "-n", "256"]
        done = subprocess.run(command, cwd=binary.parent, capture_output=True, check=True)  # noqa: S603
        return float(done.stderr.decode().split("achieved tok/s:")[1])

    return measure


def random_llama2c_model(model, folder: Path) -> Path:
    """A file of random weights in llama2.c's first format, of the same shape as our model."""
    import torch

    a, path = model.architecture, folder / "llama2c.bin"
    C, hidden, n_layer = a["n_embd"], model.blocks[0].mlp.down.weight.size(1), a["n_layer"]
    header = (C, hidden, n_layer, a["n_head"], a["n_head"], a["vocab_size"], a["block_size"])
    matrices = 4 * C * C + 3 * C * hidden
    with open(path, "wb") as file:
        file.write(struct.pack("7i", *header))
        for numbers, std in (
            (a["vocab_size"] * C, 0.02), (n_layer * C, 0), (n_layer * 4 * C * C, 0.02), (n_layer * C, 0),
            (n_layer * (matrices - 4 * C * C), 0.02), (C, 0), (a["block_size"] * C // a["n_head"], 0.02),
        ):  # fmt: skip
            file.write((torch.randn(numbers) * std if std else torch.ones(numbers)).numpy().tobytes())
    return path


def first_token(folder: Path, rounds: int) -> None:
    """Print how long one token takes from the start of the process, beside an import of torch that does nothing."""
    from model.checkpoint import save_model
    from model.gpt import GPT
    from model.tokenizer import Tokenizer, make_character_tokenizer

    tokenizer = Tokenizer(make_character_tokenizer(map(chr, range(32, 127))).to_str())
    names = "block_size n_layer n_head n_embd rotary_base".split()
    model = GPT(tokenizer.vocab_size, **{name: getattr(CHAR, name) for name in names})
    path = folder / "model.pt"
    save_model(path, model, tokenizer, {"steps": 0, "val_bits_per_byte": 0.0})
    flags = ["--model", path, "--prompt", "def ", "--tokens", 1, "--quiet"]
    commands = {
        "bare": [sys.executable, "-c", "import torch"],
        "generate": [sys.executable, ROOT / "generate.py", *flags],
    }
    seconds = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            seconds[name].append(command_seconds(command, ROOT))
    torch_alone, first = (statistics.median(seconds[name]) for name in ("bare", "generate"))
    print(
        f"First token of the default model, process and all: {first:.2f} s; a bare import of torch: "
        f"{torch_alone:.2f} s; ratio {first / torch_alone:.2f}"
    )


# === the data path ====================================================================================================

# What a first script would do: rows as Python strings, one write each. Prints the seconds.
TO_PYLIST = """
import sys, time
import pyarrow.parquet as pq
start = time.perf_counter()
with pq.ParquetFile(sys.argv[1]) as parquet, open(sys.argv[2], "w", encoding="utf-8", newline="") as file:
    for batch in parquet.iter_batches(256, columns=["content"]):
        for text in batch.column(0).to_pylist():
            file.write(text.replace("\\r\\n", "\\n").replace("\\r", "\\n") + "\\n<|endoftext|>\\n")
    file.flush()
print(time.perf_counter() - start)
"""
# The limit: decode the column, in batches as large as ours, and do nothing with it.
ITER_BATCHES = """
import sys, time
import pyarrow.parquet as pq
start = time.perf_counter()
with pq.ParquetFile(sys.argv[1]) as parquet:
    for batch in parquet.iter_batches(256, columns=["content"], use_threads=True):
        pass
print(time.perf_counter() - start)
"""


def gather_python(folders: list[Path], megabytes: float) -> list[bytes]:
    """Python files of these folders, each text once, then all of them again until there is enough."""
    found: dict[bytes, None] = {}
    size = 0
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            data = path.read_bytes().replace(b"\r\n", b"\n") if path.is_file() else b""
            with contextlib.suppress(UnicodeDecodeError):
                data.decode("utf-8")
                if data and data not in found and b"<|endoftext|>" not in data and size < megabytes * 1e6:
                    found[data] = None
                    size += len(data)
    print(f"{size / 1e6:,.0f} MB of different Python files", file=sys.stderr)
    documents = list(found)
    return documents * max(1, round(megabytes * 1e6 / size))


# Runs a script in its process, and says at the end how much memory it had at most. (What the system tells the parent
# of its child's memory includes the parent's own.)
WITH_PEAK = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0], "kB at most")
"""


def script_run(script: str, *flags) -> tuple[float, float]:
    """Run a step. Returns (the MB/s that it prints, its peak memory in MB)."""
    command = [sys.executable, "-c", WITH_PEAK, ROOT / "scripts" / script, *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, encoding="utf-8")  # noqa: S603
    if done.returncode:
        raise UserError(f"{script} ended with exit code {done.returncode}: {done.stderr[-400:]}")
    rates, peak = re.findall(r"([\d.]+) MB/s", done.stdout), re.findall(r"(\d+) kB at most", done.stdout)
    return float(rates[-1]), float(peak[-1]) * 1024 / 1e6


def snippet_seconds(code: str, *args) -> float:
    """Run a few lines in a process of their own. Returns the seconds that they print."""
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)  # noqa: S603
    return float(done.stdout)


def encoding_rate(tokenizer, texts: list[bytes], workers: int) -> float:
    """MB/s of our encoder, text in memory to ids in memory, on so many threads. At the start it knows no word."""
    from model.words import END, CharacterEncoder, WordEncoder
    from pieces import in_order

    words = WordEncoder(tokenizer) if tokenizer.kind == "bpe" else None

    def work(piece: list[bytes]):
        for _ in (words or CharacterEncoder(tokenizer)).encode(bytes([END]).join([*piece, b""])):
            pass
        yield None

    start = time.perf_counter()
    for _, results in in_order(work, texts_in_pieces(texts), workers):
        list(results)
    return sum(map(len, texts)) / 1e6 / (time.perf_counter() - start)


def texts_in_pieces(texts: list[bytes], size: int = 1 << 23):
    piece, bytes_in_it = [], 0
    for text in texts:
        piece.append(text)
        bytes_in_it += len(text)
        if bytes_in_it >= size:
            yield piece
            piece, bytes_in_it = [], 0
    if piece:
        yield piece


def tiktoken_of(tokenizer):
    """The same vocabulary and pattern as a tiktoken encoding, where that is installed; else None."""
    try:
        import tiktoken
    except ImportError:
        return None
    ranks = {tokenizer.token_bytes(token): token for token in range(1, tokenizer.vocab_size)}
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
    return tiktoken.Encoding("ours", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def rate_of(work, megabytes: float) -> float:
    start = time.perf_counter()
    work()
    return megabytes / (time.perf_counter() - start)


def measure_data(args) -> list[dict]:
    """The table: each step of the data path on all cores, the peer's rate, and the limit where there is one.

    Slow peers get 20 MB of the data: their rates do not depend on its length.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from tokenizers import trainers

    from model.bpe import train_bpe_tokenizer
    from model.tokenizer import (
        byte_pairs,
        load_tokenizer,
        make_character_tokenizer,
        save_tokenizer,
    )  # fmt: skip
    from pieces import cores

    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    documents = gather_python(args.folders, args.megabytes)
    total = sum(map(len, documents)) / 1e6
    rows: dict[str, dict[str, list]] = {}

    def note(step: str, **figures: float) -> None:
        for name, figure in figures.items():
            rows.setdefault(step, {}).setdefault(name, []).append(figure)

    with tempfile.TemporaryDirectory(dir=args.scratch) as name:
        folder = Path(name)
        schema = pa.schema([("content", pa.string())])
        with pq.ParquetWriter(folder / "p.parquet", schema, compression="zstd") as writer:
            for piece in texts_in_pieces(documents, 16_000_000):
                writer.write_table(pa.table({"content": pa.array([t.decode() for t in piece], pa.string())}, schema))
        texts = [text.decode() for text in documents[: max(1, len(documents) * 20 // round(max(total, 20)))]]
        part = sum(len(text.encode()) for text in texts) / 1e6
        char = make_character_tokenizer("".join(text.decode() for text in dict.fromkeys(documents)))
        save_tokenizer(char, folder / "char.json")
        save_tokenizer(train_bpe_tokenizer(texts, 8192), folder / "bpe.json")
        char, bpe = (load_tokenizer(folder / f"{kind}.json") for kind in ("char", "bpe"))
        ids = {character: i for character, i in char.library.get_vocab().items() if len(character) == 1}
        peer = tiktoken_of(bpe)
        outputs = ["--train-file", folder / "t.bin", "--val-file", folder / "v.bin"]
        flags = {
            kind: ["--corpus", folder / "c.txt", "--tokenizer-file", folder / f"{kind}.json", "--quiet"]
            for kind in ("char", "bpe")
        }
        for _ in range(args.rounds):
            rate, peak = script_run("extract_parquets_to_text.py", folder / "p.parquet", "--corpus", folder / "c.txt")
            seconds = snippet_seconds(TO_PYLIST, folder / "p.parquet", folder / "d.txt")
            limit = total / snippet_seconds(ITER_BATCHES, folder / "p.parquet")
            note("parquet to text", ours=rate, peak=peak, to_pylist=total / seconds, limit=limit)

            rate, peak = script_run("sample_corpus_subset.py", "--corpus", folder / "c.txt", "--fraction", 0.2,
                                    "--output", folder / "s.txt", "--quiet")  # fmt: skip
            note("sample a fifth", ours=rate, peak=peak)

            ours = encoding_rate(char, documents, cores())
            text = texts[0] if len(texts) == 1 else "".join(texts)
            note("characters to ids", ours=ours, nanoGPT=rate_of(lambda: [ids[c] for c in text], part))  # noqa: B023
            rate, peak = script_run("prepare_dataset.py", *flags["char"], *outputs)
            note("characters to ids, the script", ours=rate, peak=peak)

            ours = encoding_rate(bpe, documents, cores())
            theirs = rate_of(lambda: bpe.library.encode_batch_fast(texts, add_special_tokens=False), part)
            note("BPE to ids", ours=ours, tokenizers=theirs)
            if peer:
                theirs = rate_of(lambda: peer.encode_ordinary_batch(texts, num_threads=2), part)
                note("BPE to ids", tiktoken=theirs)
            rate, peak = script_run("prepare_dataset_bpe.py", *flags["bpe"], *outputs)
            note("BPE to ids, the script", ours=rate, peak=peak)

        learn = documents[: max(1, round(len(documents) * min(1, args.train_megabytes / total)))]
        learn = [document.decode() for document in learn]
        size = sum(len(document.encode()) for document in learn) / 1e6
        library, trainer = byte_pairs(), trainers.BpeTrainer(vocab_size=8192, show_progress=False)
        note(
            f"train BPE, 8,192 ids, {size:.0f} MB",
            ours=rate_of(lambda: train_bpe_tokenizer(learn, 8192), size),
            tokenizers=rate_of(lambda: library.train_from_iterator(learn, trainer), size),
        )

    table = []
    for step, figures in rows.items():
        median = {name: statistics.median(values) for name, values in figures.items()}
        ours, peak, limit = median.pop("ours"), median.pop("peak", None), median.pop("limit", None)
        table.append({
            "step": step,
            "ours, MB/s": f"{ours:,.1f}",
            "peers, MB/s": ", ".join(f"{name} {rate:,.1f}" for name, rate in median.items()),
            "ratio": ", ".join(f"{ours / rate:.1f}" for rate in median.values()),
            "limit": f"{limit:,.0f}" if limit else "",
            "fraction": f"{ours / limit:.0%}" if limit else "",
            "peak, MB": f"{peak:,.0f}" if peak else "",
        })  # fmt: skip
    return table


# === several processes: tokens a second ===============================================================================


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

    from model.tokenizer import load_tokenizer, make_character_tokenizer, save_tokenizer

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
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", type=Path, help="write the figures to this file as well")
    common.add_argument("--nanogpt", type=Path, metavar="DIR", help="an unmodified checkout of nanoGPT to measure too")
    common.add_argument("--rounds", type=int, default=5, help="runs of each, in turn [%(default)s]")
    subjects = parser.add_subparsers(dest="subject")

    subject = subjects.add_parser("train", parents=[common], help="tokens/s by model size, or races to a loss")
    subject.add_argument("--sizes", nargs="+", choices=BATCH_SIZES, default=["0.8M", "10.7M"], help="[0.8M 10.7M]")
    subject.add_argument("--compile", action="store_true", help="compile our model first, as long runs do")
    subject.add_argument("--race", choices=RACES, help="whole trainings instead, on the token files in --data")
    subject.add_argument("--data", type=Path, default=DATA, help="folder of token files and tokenizer [data]")
    subject.set_defaults(measure=train)

    subject = subjects.add_parser("generate", parents=[common], help="tokens/s of one text, with its candidates")
    subject.add_argument("--llama2c", type=Path, metavar="BINARY", help="run of karpathy/llama2.c, built with runomp")
    subject.add_argument("--llama2c-model", type=Path, metavar="FILE", help="its weights; default: random, of 15M")
    subject.add_argument("--shapes", nargs="+", choices=GENERATING, default=GENERATING, help="only these")
    subject.set_defaults(measure=measure_generating)

    subject = subjects.add_parser(
        "data", parents=[common], help="MB/s of extraction, sampling, tokenizers, preparation"
    )
    subject.add_argument(
        "folders", nargs="*", type=Path, default=[Path(sysconfig.get_path("stdlib"))], metavar="FOLDER"
    )
    subject.add_argument("--megabytes", type=float, default=500, help="of Python, repeated if need be [%(default)s]")
    subject.add_argument("--train-megabytes", type=float, default=200, help="to train BPE on [%(default)s]")
    subject.add_argument("--scratch", type=Path, help="folder for temporary files [the system's]")
    subject.set_defaults(measure=measure_data)

    subject = subjects.add_parser("scale", parents=[common], help="tokens/s of several processes")
    subject.add_argument("--size", choices=SCALING_STEPS, default="10.7M", help="of the model [%(default)s]")
    subject.add_argument("--batch-size", type=int, default=16, help="sequences in a step, of all [%(default)s]")
    subject.add_argument("--processes", type=int, help="at most [as many as GPUs, or else as processor cores]")
    subject.add_argument("--shard-model", action="store_true", help="and once with a part of the weights in each")
    subject.set_defaults(measure=measure_scaling)

    args = parser.parse_args()
    if args.subject is None:
        parser.error("name what to measure: train, generate, data or scale")
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
