"""The benchmark of generating: that its figures are those of what it says, at a shape that takes milliseconds."""

import argparse
import re
import stat
import struct
import sys

import pytest
import torch
from browser import BROWSER

from model.gpt import GPT
from scripts.benchmarks import generating, page

TINY = {"vocab_size": 65, "block_size": 12, "n_layer": 1, "n_head": 1, "n_embd": 8}


@pytest.fixture
def flags(monkeypatch):
    monkeypatch.setattr(generating, "MODELS", {"tiny": TINY, "15M": TINY | {"vocab_size": 2000}})
    monkeypatch.setattr(generating, "memory_bandwidth", lambda: 1e7)
    return argparse.Namespace(nanogpt=None, llama2c=None, llama2c_model=None, rounds=1)


def number(text: str) -> float:
    return float(text.replace(",", "").rstrip("%"))


def test_a_row_without_a_peer(flags, tmp_path):
    row = generating.generating_row("tiny", torch.float32, flags, tmp_path)
    weights = sum(p.numel() for n, p in GPT(**TINY).named_parameters() if n != "embedding.weight")
    assert number(row["limit"]) == pytest.approx(1e7 / (4 * weights), abs=1)
    assert number(row["fraction"]) / 100 == pytest.approx(
        number(row["with candidates"]) / number(row["limit"]), rel=0.01, abs=0.006
    )
    assert number(row["ours, tokens/s"]) > 0
    assert (row["peer"], row["ratio"]) == ("none", "")


def test_a_row_with_nanogpt(flags, tmp_path):
    """A peer of the same interface: it is asked for one token at each of eight lengths in the second half."""
    (tmp_path / "model.py").write_text(
        "import types\nasked = []\nGPTConfig = types.SimpleNamespace\n"
        "class GPT:\n    def __init__(self, config): self.config = config\n    def eval(self): return self\n"
        "    def to(self, device): return self\n"
        "    def generate(self, idx, n, temperature, top_k): asked.append((idx.size(1), n))\n"
    )
    flags.nanogpt = tmp_path
    row = generating.generating_row("tiny", torch.float32, flags, tmp_path)
    assert sys.modules["nanogpt_model"].asked == [(length, 1) for length in (6, 7, 7, 8, 9, 10, 10, 11)]
    assert row["peer"] == "nanoGPT"
    assert number(row["ratio"]) == pytest.approx(
        number(row["with candidates"]) / number(row["peer, tokens/s"]), rel=0.1, abs=0.1
    )


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
@pytest.mark.skipif(torch.cuda.is_available(), reason="llama2.c is measured against a CPU")
def test_a_row_with_llama2c(flags, tmp_path):
    binary = tmp_path / "run"
    binary.write_text('#!/bin/sh\n[ -s "$1" ] && echo "achieved tok/s: 4.5" >&2\n')
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    flags.llama2c = binary
    row = generating.generating_row("15M", torch.float32, flags, tmp_path)
    assert (row["peer"], row["peer, tokens/s"]) == ("llama2.c", "4.5")


def test_the_random_model_of_llama2c_has_the_size_of_its_format(tmp_path):
    model = GPT(**TINY, tie_embeddings=True)
    data = generating.random_llama2c_model(model, tmp_path).read_bytes()
    assert struct.unpack("7i", data[:28]) == (8, 32, 1, 1, 1, 65, 12)
    # embedding, two norms, four matrices of attention, three of the MLP, a norm, and two tables of half a head's angles
    numbers = 65 * 8 + 2 * 8 + 4 * 8 * 8 + 3 * 8 * 32 + 8 + 12 * 8
    assert len(data) == 28 + 4 * numbers
    weights = torch.frombuffer(bytearray(data[28:]), dtype=torch.float32)
    assert weights[65 * 8 : 65 * 8 + 8].tolist() == [1.0] * 8  # the first norm


def test_the_rows_of_pages(monkeypatch, tmp_path, capsys, torch_server):
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    pytest.importorskip("playwright")
    monkeypatch.setattr(page, "run_silently", torch_server.silently)
    monkeypatch.setattr(page, "PAGES", {"tiny": TINY})
    monkeypatch.setattr(page, "TOKENS", 5)
    rows = page.measure_pages(1, tmp_path)
    assert [row["shape"] for row in rows] == ["page, tiny, float16", "page, tiny, int8"]
    assert all(number(row["ours, tokens/s"]) > number(row["with candidates"]) / 3 > 0 for row in rows)
    assert re.match(r"page, tiny, float16: 0\.\d\d MB, \d+ ms to the first token\n", capsys.readouterr().out)
    monkeypatch.setattr(page.shutil, "which", lambda name: None)
    assert page.measure_pages(1, tmp_path) == []
    assert "not measured" in capsys.readouterr().out
