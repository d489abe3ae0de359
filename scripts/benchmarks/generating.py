"""Generating against nanoGPT and llama2.c: tokens per second of one text, one token at a time."""

import contextlib
import functools
import importlib.util
import os
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from config import CHAR, ROOT, Model
from model.device import pick_device, wait_for
from model.generation.display import Output
from model.generation.one_token import fast_one_token
from model.generation.sampling import generate, read
from model.generation.step_display import StepTable, show_step
from model.gpt import GPT
from model.storage.model_file import save_model
from model.tokenization.tokenizer import Tokenizer, make_character_tokenizer
from plumbing.settings import values_of
from scripts.benchmarks.common import medians, memory_bandwidth, run_silently, seconds_of
from scripts.benchmarks.models import MODELS, is_tied
from scripts.benchmarks.page import measure_pages


def measure_generating(args) -> list[dict]:
    """The table: for each shape our rate without and with candidates, the peer's, and the limit, which is the memory
    bandwidth over the bytes of the weights that each token reads.

    Random weights, in fp32 and on a GPU also in bfloat16. The prompt is half a context, and tokens are generated until
    the block is full. llama2.c, which runs on CPUs, and the shape that it is compared at start with one token. Rates
    are of the tokens after the prompt. nanoGPT reads the whole context again for each token, so it is timed at lengths
    spread evenly over the second half; on a GPU in bfloat16, as in its sample.py. The last rows are those of page.py.
    """
    torch.manual_seed(0)
    precisions = [torch.float32] if pick_device("auto").type == "cpu" else [torch.float32, torch.bfloat16]
    with tempfile.TemporaryDirectory() as folder:
        print_first_token(Path(folder), args.rounds)
        shapes = [name for name in args.shapes if name != "page"]
        rows = [generating_row(name, dtype, args, Path(folder)) for name in shapes for dtype in precisions]
        return rows + (measure_pages(args.rounds, Path(folder)) if "page" in args.shapes else [])


def generating_row(name: str, dtype: torch.dtype, args, folder: Path) -> dict:
    """One shape in one precision: in each round, every contender once."""
    device, model = pick_device("auto"), random_model(name, dtype)
    read_bytes = dtype.itemsize * sum(
        w.numel() for n, w in model.named_parameters() if n != "embedding.weight" or w.size(0) > 1000
    )
    prompt = [1] if name == "15M" else torch.randint(model.vocab_size, (model.block_size // 2,)).tolist()
    ours = OurGenerator(model, prompt)
    contenders = {"ours": ours.rate, "with candidates": functools.partial(ours.rate, record=5)}
    peer, peer_rate = find_peer(name, model, args, folder)
    if peer_rate:
        contenders[peer] = peer_rate
    contenders["limit"] = lambda: memory_bandwidth() / read_bytes
    rate = medians([{key: measure() for key, measure in contenders.items()} for _ in range(args.rounds)])
    with_candidates = rate["with candidates"]
    return {
        "shape": name if device.type == "cpu" else f"{name}, {str(dtype).removeprefix('torch.')}",
        "ours, tokens/s": f"{rate['ours']:,.0f}",
        "with candidates": f"{with_candidates:,.0f}",
        "peer": peer,
        "peer, tokens/s": f"{rate[peer]:,.1f}" if peer_rate else "",
        "ratio": f"{with_candidates / rate[peer]:.1f}" if peer_rate else "",
        "limit": f"{rate['limit']:,.0f}",
        "fraction": f"{with_candidates / rate['limit']:.0%}",
    }


def random_model(name: str, dtype: torch.dtype) -> GPT:
    shape = MODELS[name]
    model = GPT(**shape, tie_embeddings=is_tied(shape)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if not weight.any():  # zeros would take as long, but give a text of one token
                weight.normal_(std=0.02)
    return model.to(pick_device("auto")).compute_in(dtype)


def find_peer(name: str, model: GPT, args, folder: Path) -> tuple[str, Callable | None]:
    """(name, a function that measures its rate) of the peer for this shape."""
    if name == "15M" and args.llama2c and model.device.type == "cpu":
        weights = args.llama2c_model or random_llama2c_model(model, folder)
        return "llama2.c", functools.partial(llama2c_rate, args.llama2c, weights)
    if name != "15M" and args.nanogpt:
        return "nanoGPT", NanoGPTGenerator(args.nanogpt, MODELS[name], model.device).rate
    return "none", None


class OurGenerator:
    """Continues a prompt until the block is full, as generate.py does."""

    def __init__(self, model: GPT, prompt: list[int]):
        self.model, self.prompt, self.cache = model, prompt, model.new_cache()
        self.one_token = fast_one_token(model, self.cache)

    def rate(self, record: int = 0) -> float:
        """Tokens per second. With `record`, that many candidates per step are formatted as by generate.py."""
        self.cache.length = 0
        logits = read(self.model, self.prompt, self.cache)[-1]
        tokens = self.model.block_size - len(self.prompt)
        settings = replace(CHAR, tokens=tokens, temperature=0.8, top_k=50, show=record)
        steps = generate(self.model, self.prompt, logits, self.cache, settings, self.one_token)
        output, table = Output(), StepTable(settings, str)
        with open(os.devnull, "w", encoding="utf-8") as discard, contextlib.redirect_stderr(discard):
            start = time.perf_counter()
            for number, (step,) in enumerate(steps, 1):
                if record:
                    output.add("", functools.partial(show_step, f"step {number}", step, table))
            output.flush()
            return tokens / (time.perf_counter() - start)


class NanoGPTGenerator:
    """nanoGPT's generate(), asked for one token at eight lengths in the second half of its context."""

    def __init__(self, folder: Path, shape: dict, device: torch.device):
        spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
        module = sys.modules["nanogpt_model"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with contextlib.redirect_stdout(None):
            self.model = module.GPT(module.GPTConfig(**shape, dropout=0.0, bias=False)).eval().to(device)
        half = shape["block_size"] // 2
        lengths = [half + half * (2 * i + 1) // 16 for i in range(8)]
        self.texts = [torch.randint(shape["vocab_size"], (1, length), device=device) for length in lengths]
        self.device = device

    def rate(self) -> float:
        """Tokens per second."""
        on_gpu = self.device.type == "cuda"
        start = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16) if on_gpu else contextlib.nullcontext():
            for text in self.texts:
                self.model.generate(text, 1, temperature=0.8, top_k=50)
        wait_for(self.device)
        return len(self.texts) / (time.perf_counter() - start)


def llama2c_rate(binary: Path, model_file: Path) -> float:
    """The tokens per second that llama2.c reports for 256 tokens, greedy, which is its fastest."""
    done = run_silently([binary.resolve(), model_file, "-t", 0, "-n", 256], binary.parent)
    return float(done.stderr.split("achieved tok/s:")[1])


def random_llama2c_model(model: GPT, folder: Path) -> Path:
    """Write random weights of our model's shape in llama2.c's first format."""
    a, path = model.architecture, folder / "llama2c.bin"
    V, B, C, L, H = (a[name] for name in ("vocab_size", "block_size", "n_embd", "n_layer", "n_head"))
    hidden = model.blocks[0].mlp.down.weight.size(1)
    with open(path, "wb") as file:
        file.write(struct.pack("7i", C, hidden, L, H, H, V, B))
        # embedding, norms, attention, norms, MLPs, last norm, angles; norms are ones
        matrices, norms = (V * C, L * 4 * C * C, L * 3 * C * hidden, B * C // H), (L * C, L * C, C, 0)
        for random, ones in zip(matrices, norms, strict=True):
            file.write((torch.randn(random) * 0.02).numpy().tobytes())
            file.write(torch.ones(ones).numpy().tobytes())
    return path


def print_first_token(folder: Path, rounds: int) -> None:
    """Print the time from the start of the process to the first token, next to that of an import of torch alone."""
    tokenizer = Tokenizer(make_character_tokenizer(map(chr, range(32, 127))).to_str())
    model = GPT(tokenizer.vocab_size, **values_of(CHAR, Model))
    path = folder / "model.pt"
    save_model(path, model, tokenizer, {"steps": 0, "val_bits_per_byte": 0.0})
    generate_one = ["generate.py", "--model", path, "--prompt", "def ", "--tokens", 1, "--quiet"]
    arguments = {"import": ["-c", "import torch"], "generate": generate_one}
    run = {name: functools.partial(run_silently, [sys.executable, *given], ROOT) for name, given in arguments.items()}
    seconds = medians([{name: seconds_of(work) for name, work in run.items()} for _ in range(rounds)])
    print(
        f"First token of the default model, with the start of Python: {seconds['generate']:.2f} s; importing torch "
        f"alone: {seconds['import']:.2f} s; ratio {seconds['generate'] / seconds['import']:.2f}"
    )
