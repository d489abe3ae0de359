"""What tests of the generators share: two trained models, and a command line to run on them."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_pipeline
from filelock import FileLock
from runs import folder_of_all_workers

import generate
from config import BPE, CHAR, Model
from dataset import open_tokens
from model.generation.command_line import generation_flags
from model.gpt import GPT
from model.storage.model_file import save_model
from model.tokenization.tokenizer import load_tokenizer
from plumbing.settings import values_of

PIPELINES = {"char": CHAR, "bpe": BPE}
SETTINGS = {"--temperature": 0.7, "--top-k": 9, "--top-p": 0.95, "--min-p": 0.02, "--repetition-penalty": 1.3}
FLAGS = [part for pair in SETTINGS.items() for part in pair]


def train_model(folder: Path, kind: str) -> Path:
    """Train a small model with Adam, so that its documents begin and end like those of the corpus. By hand, because
    importing torch.optim takes longer."""
    settings = make_pipeline(folder, PIPELINES[kind], kind)
    settings = replace(settings, n_embd=32, dropout=0.0)
    tokenizer = load_tokenizer(settings.tokenizer_file)
    torch.manual_seed(1)
    model = GPT(tokenizer.vocab_size, **values_of(settings, Model))
    weights = [(weight, torch.zeros_like(weight), torch.zeros_like(weight)) for weight in model.parameters()]
    tokens = torch.from_numpy(open_tokens(settings.train_file).tokens.astype("int64"))
    for step in range(1, 151):
        starts = torch.randint(len(tokens) - settings.block_size - 1, (4, 1))
        window = tokens[starts + torch.arange(settings.block_size + 1)]
        model.loss(window[:, :-1], window[:, 1:]).backward()
        with torch.no_grad():
            for weight, mean, square in weights:
                mean.lerp_(weight.grad, 0.1)
                square.lerp_(weight.grad.square(), 0.05)
                change = mean / (1 - 0.9**step) / ((square / (1 - 0.95**step)).sqrt() + 1e-8)
                weight.sub_(change, alpha=0.01 * (1 - step / 151))
                weight.grad = None
    save_model(settings.model_file, model, tokenizer, {"steps": 150, "val_bits_per_byte": 1.0})
    return settings.model_file


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> dict[str, Path]:
    """A trained model of each kind for all workers: {"char": path, "bpe": path}. The first worker to ask trains them,
    while the others wait."""
    shared = folder_of_all_workers(tmp_path_factory, "generators")
    with FileLock(shared / "lock"):
        return {kind: trained_once(shared / kind, kind) for kind in PIPELINES}


def trained_once(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.pt"  # which is there only when it is whole
    return path if path.exists() else train_model(folder, kind)


@pytest.fixture
def write(trained, capfdbinary):
    """Run a generator with a command line. Returns (stdout as bytes, stderr as text)."""

    def run(*flags, kind="char", model=None):
        argv = ["--model", str(model or trained[kind]), "--device", "cpu", *map(str, flags)]
        settings, args = generation_flags(PIPELINES[kind], "", argv)
        capfdbinary.readouterr()
        generate.main(settings, args, kind)
        out, err = capfdbinary.readouterr()
        return out, err.decode()

    return run


def interrupt_once(monkeypatch, owner, name: str, call: int) -> None:
    """Ctrl-C at the given call of a function."""
    real, calls = getattr(owner, name), []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(owner, name, interrupted)


def rows(err):
    """The printed steps: [{"chosen": id, "rank": int, "bits": float, "entropy": float, "removed": {name: part of the
    model's probability}, "so_far": text, "candidates": [(mark, id, text, drawn, p)]}]."""
    steps = []
    for line in err.splitlines():
        head = r"step \d+: chose (.*), rank (\d+), surprise ([\d.]+|inf) bits, entropy ([\d.]+) bits"
        if found := re.fullmatch(head, line):
            figures = {"rank": int(found[2]), "bits": float(found[3]), "entropy": float(found[4]), "removed": {}}
            steps.append({**figures, "candidates": []})
        elif found := re.match(r" ([> ]) +(\d+)  (.+?) +([\d.]+)% +([\d.]+)%", line):
            row = (found[1], int(found[2]), found[3], float(found[5]) / 100, float(found[4]) / 100)
            steps[-1]["candidates"].append(row)
            if found[1] == ">":
                steps[-1]["chosen"] = int(found[2])
        elif line.startswith("   text  "):
            steps[-1]["so_far"] = line.removeprefix("   text  ")
        elif line.startswith("   removed, of the model's probability: "):
            steps[-1]["removed"] = {name: float(p) / 100 for name, p in re.findall(r"(\S+) ([\d.]+)%", line)}
    return steps
