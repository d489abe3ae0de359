"""The benchmark's own arithmetic and its way to measure a peer. What it measures is for the person who runs it."""

import argparse
import json
import re
import subprocess
import sys

import pytest
import torch

from config import CHAR, ROOT
from plumbing.errors import UserError
from scripts import benchmark
from scripts.benchmarks import common, data_path, races, scaling, training


def test_a_table_is_markdown(capsys):
    common.print_table([{"model": "a", "tokens/s": 12345}, {"model": "bcd", "tokens/s": ""}])
    assert capsys.readouterr().out.splitlines() == [
        "| model | tokens/s |",
        "| ----- | -------- |",
        "| a     | 12345    |",
        "| bcd   |          |",
    ]


def test_rates_are_work_over_time(monkeypatch):
    """With a clock that says what each piece of work takes."""
    monkeypatch.setattr(common, "median_seconds", lambda work, device, repeat: (work(), 0.5)[1])
    assert common.matmul_flops(torch.float32, size=100) == 2 * 100**3 / 0.5
    assert common.memory_bandwidth(megabytes=1) == 2**20 / 0.5


def test_the_first_call_and_the_outliers_do_not_count(monkeypatch):
    clock = iter([0, 50, 50, 51, 51, 53, 53, 62])  # 50 s, then 1, 2 and 9 s
    monkeypatch.setattr(common.time, "perf_counter", clock.__next__)
    assert common.median_seconds(lambda: None, torch.device("cpu"), repeat=3) == 2
    assert common.medians([{"a": 1, "b": 7}, {"a": 5, "b": 7}, {"a": 2, "b": 9}]) == {"a": 2, "b": 7}


def test_a_peer_takes_a_step_for_each_call(tmp_path):
    (tmp_path / "here.txt").write_text("0.25")
    peer = training.NanoGPTStep(
        "import sys\nfor line in sys.stdin: print('noise\\nseconds', open('here.txt').read(), flush=True)", tmp_path
    )
    assert [peer.seconds(), peer.seconds(), peer.seconds(2)] == [0.25, 0.25, 0.125]
    peer.close()
    assert peer.process.returncode == 0
    with pytest.raises(UserError, match="--nanogpt"):
        training.NanoGPTStep("import a_model_that_is_not_there", tmp_path).seconds()


# A stand-in for a checkout of nanoGPT, as far as the benchmark looks at one.
MODEL = """
import torch
class Optimizer:  # of its own, because those of torch import its compiler, for seconds
    def step(self): pass
    def zero_grad(self, set_to_none): pass
class GPTConfig:
    def __init__(self, block_size, vocab_size, n_layer, n_head, n_embd, dropout=0.0, bias=False):
        self.vocab_size, self.n_embd = vocab_size, n_embd
class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.table = torch.nn.Embedding(config.vocab_size, config.vocab_size)
    def configure_optimizers(self, decay, rate, betas, device):
        return Optimizer()
    def forward(self, idx, targets):
        logits = self.table(idx)
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
"""
TRAIN = """
import sys, torch
from model import GPT, GPTConfig
flags = dict(a[2:].split("=") for a in sys.argv[2:])
args = dict(block_size=24, vocab_size=%d, n_layer=1, n_head=1, n_embd=1)
model = GPT(GPTConfig(**args))
torch.nn.init.zeros_(model.table.weight)
torch.save({"model": model.state_dict(), "model_args": args}, flags["out_dir"] + "/ckpt.pt")
"""


# In place of NANOGPT_STEP, which would import torch: each step takes a millisecond.
AT_ONCE = """
import sys
open("arguments.txt", "w").write(" ".join(sys.argv[1:]))
for line in sys.stdin: print("seconds", int(line) / 1000, flush=True)
"""


def test_a_step_of_both_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "NANOGPT_STEP", AT_ONCE)
    shape = {"vocab_size": 11, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8}
    monkeypatch.setattr(training, "MODELS", {"tiny": shape})
    monkeypatch.setattr(training, "BATCH_SIZES", {"tiny": 3})
    monkeypatch.setattr(training, "matmul_flops", lambda dtype: 1e12)
    monkeypatch.setattr(training, "LEAST_SECONDS", 0)
    args = argparse.Namespace(nanogpt=tmp_path, rounds=1, compile=False, accumulate=2)
    row = training.measure_step("tiny", args)
    assert row["tokens per step"] == 2 * 3 * 8
    assert row["nanoGPT, tokens/s"] == 2 * 3 * 8 * 1000
    assert (tmp_path / "arguments.txt").read_text() == "11 8 1 2 8 3 2"
    assert float(row["ratio"]) == pytest.approx(row["ours, tokens/s"] / row["nanoGPT, tokens/s"], rel=0.01, abs=0.006)
    args.nanogpt = None
    assert training.measure_step("tiny", args)["ratio"] == ""


def test_nanogpts_step_runs(tmp_path, torch_server):
    """With the arguments of the test above, for one step and for two."""
    (tmp_path / "model.py").write_text(MODEL)
    script = "import io, sys\nsys.stdin = io.StringIO('1\\n2\\n')\n" + training.NANOGPT_STEP
    out = torch_server.silently([sys.executable, "-c", script, 11, 8, 1, 2, 8, 3, 2], tmp_path).stdout
    assert re.fullmatch(r"(seconds [\d.e-]+\n){2}", out)


def test_a_race_scores_both_over_the_whole_file(char, tmp_path, monkeypatch, torch_server):
    """The stand-in finds all ids equally likely, so its loss is ln(vocabulary)."""
    vocab_size = json.loads(char.val_file.with_name("val.bin.json").read_text())["vocab_size"]
    nanogpt = tmp_path / "nanogpt"
    (nanogpt / "data").mkdir(parents=True)
    (nanogpt / "model.py").write_text(MODEL)
    (nanogpt / "train.py").write_text(TRAIN % vocab_size)
    flags = "--block-size 24 --n-layer 1 --n-embd 16 --n-head 2 --max-steps 3 --device cpu --dtype float32"
    clock = iter([8.0, 2.5])
    monkeypatch.setattr(races, "seconds_of", lambda work: (work(), next(clock))[1])
    monkeypatch.setattr(races, "run_silently", torch_server.silently)
    monkeypatch.setattr(races, "RACES", {"char": (2000, [("train.py", flags)])})
    args = argparse.Namespace(nanogpt=nanogpt, race="char", data=char.train_file.parent, rounds=1)
    (row,) = races.measure_races(args)
    assert row["race"] == "char, to the loss"
    assert float(row["nanoGPT, loss"]) == pytest.approx(torch.tensor(vocab_size).log().item(), abs=1e-4)
    assert 0 < float(row["ours, loss"]) < float(row["nanoGPT, loss"])
    assert (row["nanoGPT, s"], row["ours, s"], row["ratio"]) == (8.0, 2.5, "3.20")
    assert (nanogpt / "data" / "tinylittlegpt_char" / "val.bin").read_bytes() == char.val_file.read_bytes()
    assert CHAR.train_file.name == char.train_file.name


def test_too_little_for_the_data_path_is_told_of(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("no Python")
    with pytest.raises(UserError, match=r"There is no Python file in .*\. Name other folders"):
        data_path.gather_python([tmp_path], 1)
    done = subprocess.CompletedProcess([], 0, "3 documents, 10 bytes\n", "")
    monkeypatch.setattr(data_path, "run_silently", lambda *command: done)
    with pytest.raises(UserError, match="Give more --megabytes"):
        data_path.script_figures("prepare_dataset.py")
    done.stdout = "10 MB, 2.5 MB/s\n"  # without /proc, there is no peak
    assert data_path.script_figures("prepare_dataset.py") == {"ours": 2.5}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_every_step_of_the_data_path_is_measured(tmp_path, capsys, monkeypatch):
    """On a megabyte, with the scripts themselves."""
    flags = ["--megabytes", "1", "--train-megabytes", "0.1", "--rounds", "1", "--scratch", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["benchmark.py", "data", str(ROOT / "model"), *flags])
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    benchmark.main()
    table = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    rows = {line[1].strip(): [cell.strip() for cell in line[2:-1]] for line in table}
    assert len(rows) == 7 and all(float(row[0].replace(",", "")) > 0 for row in rows.values())
    assert rows["parquet to text"][1].startswith("to_pylist ") and rows["parquet to text"][4].endswith("%")
    assert [step for step, row in rows.items() if row[5]] == [
        "parquet to text",
        "sample a fifth",
        "characters to ids, the script",
        "BPE to ids, the script",
    ]


def test_a_race_needs_a_peer(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmark.py", "train", "--race", "char"])
    with pytest.raises(UserError, match="--nanogpt"):
        benchmark.main()


def test_scaling_is_measured_on_whole_trainings(monkeypatch, capsys):
    """With rates that are known: the losses are those of the threads, not of the processes."""
    monkeypatch.setattr(scaling, "training_rate", lambda number, threads, flags, folder: 100.0 * number + 10 * threads)
    monkeypatch.setattr("sys.argv", ["benchmark.py", "scale", "--size", "0.8M", "--rounds", "1", "--processes", "2"])
    benchmark.main()
    table = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    rows = [[cell.strip() for cell in line[2:-1]] for line in table]
    assert rows[0][:3] == ["1", "1", "110"]
    if len(rows) == 3:  # a machine without GPUs
        assert rows[1] == ["1", "2", "120", "1.09", "45%"]
        assert rows[2] == ["2", "1", "210", "1.91", "5%"]


def test_a_training_on_random_tokens_gives_a_rate(tmp_path, monkeypatch, torch_server):
    monkeypatch.setattr(scaling, "run_silently", torch_server.silently)
    shape = {"vocab_size": 65, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8}
    flags = [*scaling.random_data(shape, tmp_path), "--max-steps", 6, "--log-every", 1, "--device", "cpu"]
    assert scaling.training_rate(1, 1, [*flags, "--sample-tokens", 0], tmp_path) > 0
