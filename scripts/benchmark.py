"""How fast is it, against a peer and against what the machine can do?

    python scripts/benchmark.py train --nanogpt ../nanoGPT --json bench.json
    python scripts/benchmark.py generate --nanogpt ../nanoGPT --llama2c ../llama2.c/run

Reads   nothing; a peer is measured where an unmodified checkout of it is named
Writes  a table to the terminal, with --json the same figures to a file

Every row is a median of runs taken in turn with the peer's, so that what disturbs the machine disturbs both. Figures of
two machines, or of two days, do not compare; the ratios do.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
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


# === generating: tokens a second, one at a time =======================================================================

# What nanoGPT's README trains on a CPU, on a GPU, and GPT-2; and the smallest of llama2.c.
GENERATING = {
    "0.8M": {"vocab_size": 65, "block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128},
    "10.7M": {"vocab_size": 65, "block_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 384},
    "124M": {"vocab_size": 50257, "block_size": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768},
    "15M": {"vocab_size": 32000, "block_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 288},
}


def generating_flags(subjects) -> None:
    parser = subjects.add_parser("generate", help="tokens a second on a CPU, one text, each token with its candidates")
    parser.add_argument("--nanogpt", type=Path, metavar="DIR", help="an unmodified checkout of karpathy/nanoGPT")
    parser.add_argument("--llama2c", type=Path, metavar="BINARY", help="run of karpathy/llama2.c, built with runomp")
    parser.add_argument("--llama2c-model", type=Path, metavar="FILE", help="its weights; default: random, of 15M")
    parser.add_argument("--shapes", nargs="+", default=list(GENERATING), choices=list(GENERATING), help="only these")
    parser.add_argument("--rounds", type=int, default=5, help="how often each one is measured, in turn [5]")
    parser.add_argument("--json", type=Path, default=argparse.SUPPRESS, help="write the figures to this file as well")
    parser.set_defaults(measure=measure_generating)


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

    shape = GENERATING[name]
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
    from config import CHAR
    from model.checkpoint import save_model
    from model.gpt import GPT
    from model.tokenizer import Tokenizer, make_character_tokenizer

    tokenizer = Tokenizer(make_character_tokenizer(map(chr, range(32, 127))).to_str())
    names = "block_size n_layer n_head n_embd rotary_base".split()
    model = GPT(tokenizer.vocab_size, **{name: getattr(CHAR, name) for name in names})
    path = folder / "model.pt"
    save_model(path, model, tokenizer, {"steps": 0, "val_bits_per_byte": 0.0})
    script = str(Path(__file__).resolve().parents[1] / "generate.py")
    generate = [sys.executable, script, "--model", str(path), "--prompt", "def ", "--tokens", "1", "--quiet"]
    bare = [sys.executable, "-c", "import torch"]
    seconds = {"bare": [], "generate": []}
    for _ in range(rounds):
        for name, command in (("bare", bare), ("generate", generate)):
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)  # noqa: S603
            seconds[name].append(time.perf_counter() - start)
    torch_alone, first = (statistics.median(seconds[name]) for name in ("bare", "generate"))
    print(
        f"First token of the default model, process and all: {first:.2f} s; a bare import of torch: "
        f"{torch_alone:.2f} s; ratio {first / torch_alone:.2f}"
    )


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
    generating_flags(subjects)
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
