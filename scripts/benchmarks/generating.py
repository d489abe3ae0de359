"""Generating against nanoGPT and llama2.c: tokens a second of one text, one at a time."""

import contextlib
import functools
import importlib.util
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from config import CHAR, ROOT
from scripts.benchmarks.common import MODELS, bandwidth, command_seconds

GENERATING = ["0.8M", "10.7M", "124M", "15M"]


def measure_generating(args) -> list[dict]:
    """The table: for each shape ours without and with candidates, the peer, and what reading the weights allows.

    Random weights, fp32, on a GPU also bfloat16. Half a context of prompt, then tokens until the block is full;
    llama2.c, which is for CPUs, and the shape it is compared at begin with one token. Rates are those of the tokens
    after the prompt. nanoGPT reads the whole context anew for each token, so it is timed at lengths spread evenly over
    the second half; on a GPU in bfloat16, as its sample.py has it.
    """
    import torch

    from model.device import pick_device

    torch.manual_seed(0)
    precisions = [torch.float32] if pick_device("auto").type == "cpu" else [torch.float32, torch.bfloat16]
    with tempfile.TemporaryDirectory() as folder:
        first_token(Path(folder), args.rounds)
        return [generating_row(name, dtype, args, Path(folder)) for name in args.shapes for dtype in precisions]


def generating_row(name: str, dtype, args, folder: Path) -> dict:
    """One shape in one precision: every contender once a round, in turn; medians."""
    import torch

    from model.device import pick_device
    from model.gpt import GPT

    shape, device = MODELS[name], pick_device("auto")
    model = GPT(**shape, tie_embeddings=shape["vocab_size"] > 1000).eval()  # tied as the peers' are
    with torch.no_grad():
        for weight in model.parameters():
            if not weight.any():  # zeros would be multiplied as fast, but the text would be of one token
                weight.normal_(std=0.02)
    model.to(device).compute_in(dtype)
    read_bytes = dtype.itemsize * sum(
        w.numel() for n, w in model.named_parameters() if n != "embedding.weight" or w.size(0) > 1000
    )
    prompt = [1] if name == "15M" else torch.randint(shape["vocab_size"], (shape["block_size"] // 2,)).tolist()
    contenders = {"ours": our_rate(model, prompt, False), "with candidates": our_rate(model, prompt, True)}
    peer = "none"
    if name == "15M" and args.llama2c and device.type == "cpu":
        peer = "llama2.c"
        contenders[peer] = llama2c_rate(args.llama2c, args.llama2c_model or random_llama2c_model(model, folder))
    elif name != "15M" and args.nanogpt:
        peer = "nanoGPT"
        contenders[peer] = nanogpt_rate(args.nanogpt, shape, device)
    contenders["limit"] = lambda: bandwidth() / read_bytes
    rates = {key: [] for key in contenders}
    for _ in range(args.rounds):
        for key, measure in contenders.items():
            rates[key].append(measure())
    rate = {key: statistics.median(values) for key, values in rates.items()}
    ours = rate["with candidates"]
    return {
        "shape": name if device.type == "cpu" else f"{name}, {str(dtype).removeprefix('torch.')}",
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

    With candidates, five a step are recorded, and written as generate.py writes them, but to nowhere.
    """
    from model.generation.display import Output
    from model.generation.one_token import fast_one_token
    from model.generation.sampling import generate, read
    from model.generation.step_display import show_step

    cache = model.new_cache()
    one_token = fast_one_token(model, cache)
    tokens = model.block_size - len(prompt)
    settings = replace(CHAR, tokens=tokens, temperature=0.8, top_k=50, show=5 if candidates else 0)

    def measure() -> float:
        cache.length = 0
        logits = read(model, prompt, cache)[-1]
        steps = generate(model, prompt, logits, cache, settings, one_token)
        output = Output()
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
            start = time.perf_counter()
            for number, (step,) in enumerate(steps, 1):
                if candidates:
                    output.add("", functools.partial(show_step, f"step {number}", step, 5, str))
            output.flush()
            return tokens / (time.perf_counter() - start)

    return measure


def nanogpt_rate(folder: Path, shape: dict, device):
    """A function that gives the tokens a second of nanoGPT's generate() over the second half of its context."""
    import torch

    from model.device import wait_for

    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    module = sys.modules["nanogpt_model"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with contextlib.redirect_stdout(None):
        peer = module.GPT(module.GPTConfig(**shape, dropout=0.0, bias=False)).eval().to(device)
    half = shape["block_size"] // 2
    lengths = [half + half * (2 * i + 1) // 16 for i in range(8)]
    texts = [torch.randint(shape["vocab_size"], (1, length), device=device) for length in lengths]
    context = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()

    def measure() -> float:
        start = time.perf_counter()
        with context:
            for text in texts:
                peer.generate(text, 1, temperature=0.8, top_k=50)
        wait_for(device)
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
    from model.gpt import GPT
    from model.storage.model_file import save_model
    from model.tokenization.tokenizer import Tokenizer, make_character_tokenizer

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
