"""What a run will take: memory, arithmetic and time, by hand and against a run."""

import json
import math
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import train
from config import CHAR, ROOT
from model import device
from model.gpt import GPT
from model.monitoring import estimate
from model.training import choose_step
from model.training import run as run_module
from model.training.optimizer import Optimizer
from plumbing.errors import UsageError


def make(**shape):
    torch.manual_seed(0)
    model = GPT(50, block_size=16, **{"n_layer": 2, "n_head": 2, "n_embd": 32} | shape)
    return model, Optimizer(model, CHAR)


@pytest.fixture
def machine(monkeypatch):
    """machine({path: content}): the files in which a system says how much memory there is."""

    def set_up(files):
        def read(path):
            if path not in files:
                raise FileNotFoundError(path)
            return files[path]

        monkeypatch.setattr(device, "system_file", read)

    return set_up


MEMORY = {"/proc/meminfo": "MemTotal:  16000000 kB\nMemAvailable:    8000000 kB\n"}
GROUP = "/sys/fs/cgroup/"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, math.inf),
        (MEMORY, 8_192_000_000),
        (
            MEMORY | {f"{GROUP}memory.max": "2000000000", f"{GROUP}memory.current": "1500000000",
                      f"{GROUP}memory.stat": "anon 5\ninactive_file 250000000\n"},
            750_000_000,
        ),
        (
            MEMORY | {f"{GROUP}memory.max": "max\n", f"{GROUP}memory.current": "1",
                      f"{GROUP}memory.stat": "inactive_file 2"},
            8_192_000_000,
        ),
        (
            MEMORY | {f"{GROUP}memory/memory.limit_in_bytes": "3000000000\n",
                      f"{GROUP}memory/memory.usage_in_bytes": "2900000000\n",
                      f"{GROUP}memory/memory.stat": "cache 9\ntotal_inactive_file 100000000\n"},
            200_000_000,
        ),
        (
            MEMORY | {f"{GROUP}memory.max": "10", f"{GROUP}memory.current": "20",
                      f"{GROUP}memory.stat": "inactive_file 0"},
            0,
        ),
    ],
)  # fmt: skip
def test_free_memory_is_what_the_machine_and_the_container_leave(machine, files, expected):
    machine(files)
    assert device.free_memory() == expected


@pytest.mark.parametrize("plan", [False, True])
def test_a_step_that_does_not_fit_is_refused_with_what_would(char, monkeypatch, plan):
    """Before anything is computed or written; and what the message names is accepted."""
    monkeypatch.setattr(estimate, "free_memory", lambda: 20e6)
    monkeypatch.setattr(choose_step, "TIMED_STEPS", 2)  # of a plan: the seconds are not looked at here
    large = replace(char, batch_size=480, max_steps=1, sample_tokens=0, debug=False)
    with pytest.raises(UsageError, match="needs about .* GB of memory, and 0.0 GB are free") as error:
        train.main(large, fresh=False, plan=plan)
    assert not (char.checkpoint_dir / "step_00000001.pt").exists()
    found = re.search(r"--batch-size ([\d,]+) would fit; so would --accumulate (\d+),", str(error.value))
    batch_size, accumulate = (int(number.replace(",", "")) for number in found.groups())
    assert 1 <= batch_size < 480 and 480 % accumulate == 0
    assert train.main(replace(large, batch_size=batch_size), fresh=False, plan=plan) == 0
    assert train.main(replace(large, accumulate=accumulate), fresh=not plan, plan=plan) == 0
    monkeypatch.setattr(estimate, "free_memory", lambda: 1e5)
    with pytest.raises(UsageError, match="Even one sequence does not fit"):
        train.main(large, fresh=False, plan=plan)


def test_two_sequences_tell_what_many_keep():
    model, _ = make()
    batches = [torch.zeros(n, 16, dtype=torch.long) for n in (1, 2, 50)]
    one, two, many = (estimate.activation_bytes(model, batch, batch) for batch in batches)
    assert many == pytest.approx(one + 49 * (two - one), rel=0.1)


def test_weights_that_do_not_fit_are_refused_before_they_are_made(char, monkeypatch):
    monkeypatch.setattr(run_module, "free_memory", lambda: 1e6)
    monkeypatch.setattr(run_module, "build_model", pytest.fail)
    with pytest.raises(
        UsageError, match=r"A model of [\d,]+ parameters needs about .* Try a smaller --n-layer or --n-embd"
    ):
        train.main(replace(char, n_embd=400), fresh=False)


def test_arithmetic_by_hand():
    model, _ = make()
    matrices = 2 * (32 * 96 + 32 * 32 + 32 * 192 + 96 * 32) + 50 * 32
    assert estimate.flops_per_token(model) == 6 * matrices + 12 * 2 * 16 * 32
    tied, _ = make(tie_embeddings=True)
    assert estimate.flops_per_token(tied) == estimate.flops_per_token(model)  # the head is multiplied all the same


def test_memory_by_hand():
    model, optimizer = make()
    total = sum(weight.numel() for weight in model.parameters())
    idx = torch.randint(50, (3, 16))
    memory = estimate.memory_by_kind(model, optimizer, idx, idx)
    assert memory["weights"] == memory["gradients"] == 4 * total
    hidden = 2 * (32 * 96 + 32 * 32 + 32 * 192 + 96 * 32)
    assert memory["optimizer"] == 4 * (total + (total - hidden) + 1)
    twice = estimate.memory_by_kind(model, optimizer, idx.repeat(2, 1), idx.repeat(2, 1))["activations"]
    fixed = 4 * 50 * 32 + 10_000  # the head's gradient is there once (HeadLossByHand)
    assert 2 * memory["activations"] - fixed <= twice <= 2 * memory["activations"]
    # At least what any backward pass needs: the inputs of all products, in each layer and at the head.
    assert memory["activations"] > 3 * 16 * 4 * (2 * (32 + 32 + 32 + 96) + 32)


def test_counting_activations_changes_nothing():
    model, _ = make(dropout=0.2)
    idx, state = torch.randint(50, (3, 16)), torch.get_rng_state()
    assert estimate.activation_bytes(model, idx, idx) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None or not weight.grad.any() for weight in model.parameters())


def test_the_lines_by_hand():
    model, optimizer = make()
    total = sum(model.parameter_counts().values())
    idx = torch.randint(50, (3, 16))
    run = SimpleNamespace(
        model=model, optimizer=optimizer, batches=lambda step: (idx, idx), settings=CHAR, tokens_per_step=48
    )
    run.train_data = range(total - 1)
    text = "\n".join(estimate.estimate_lines(run, 1000, 0.024, 6.0))
    assert "48,000 in 1,000 steps" in text
    assert f"{48_000 / total:.1f} tokens" in text
    assert "2,000 tokens/s" in text
    assert "30.0 s in all: 24.0 s for steps of 24.0 ms, 6.0 s for" in text
    assert "Warning: the model has" in text
    run.train_data = range(total)
    assert "Warning" not in "\n".join(estimate.estimate_lines(run, 1000, 0.024, 6.0))


def test_a_plan_writes_nothing_and_leaves_a_run_alone(char, capsys, monkeypatch):
    train.main(char, fresh=False)
    before = {path: path.read_bytes() for path in char.checkpoint_dir.parent.rglob("*") if path.is_file()}
    monkeypatch.setattr(choose_step, "seconds_per_step", lambda *rest: 0.5)
    capsys.readouterr()
    assert train.main(replace(char, max_steps=100, eval_every=0), fresh=True, plan=True) == 0
    after = {path: path.read_bytes() for path in char.checkpoint_dir.parent.rglob("*") if path.is_file()}
    assert after == before
    out = capsys.readouterr().out
    assert "50.0 s for steps of 500.0 ms" in out
    assert "MB of memory" in out and "The model has" in out
    train.main(replace(char, minutes=2.0, eval_every=40, sample_tokens=0), fresh=False, plan=True)
    steps = int(re.search(r"in (\d+) steps", capsys.readouterr().out)[1])
    assert 220 < steps <= 225  # and 14 records, each as long as a step
    train.main(replace(char, minutes=2.0, eval_every=1, sample_tokens=0), fresh=False, plan=True)
    assert 100 < int(re.search(r"in (\d+) steps", capsys.readouterr().out)[1]) <= 116  # and a record for each
    train.main(replace(char, minutes=0.0001), fresh=False, plan=True)
    assert "in 1 steps" in capsys.readouterr().out


def test_a_plan_takes_the_steps_of_the_run(char, capsys):
    """In micro-batches, whose activations exist one after another."""
    size = {}
    for micro_batches in (1, 4):
        train.main(replace(char, accumulate=micro_batches), fresh=False, plan=True)
        out = capsys.readouterr().out
        assert f"{10 * 4 * 24} in 10 steps" in out
        size[micro_batches] = float(re.search(r"activations +([\d.]+) MB", out)[1])
    assert size[4] < 0.5 * size[1]


def test_a_plan_can_be_stopped(char, monkeypatch):
    """Between two of its steps; nothing is written."""
    monkeypatch.setattr(
        train, "print_estimate", lambda run, *rest: (signal.raise_signal(signal.SIGINT), run.stop.check())
    )
    assert train.main(char, plan=True) == 130
    assert not char.checkpoint_dir.exists()


@pytest.mark.slow
def test_the_expected_time_is_near_the_true_one(char):
    """As processes, half a minute of steps: within a fifth. On a machine that does nothing else."""
    flags = {"max_steps": 250, "block_size": 128, "batch_size": 16, "n_layer": 4, "n_head": 4, "n_embd": 128}
    flags |= {name: getattr(char, name) for name in ("train_file", "val_file", "tokenizer_file", "checkpoint_dir")}
    argv = [sys.executable, ROOT / "train.py", "--quiet", "--eval-every", 100, "--compile", "off"]
    argv += [part for name, value in flags.items() for part in ("--" + name.replace("_", "-"), value)]
    argv += ["--model-file", char.model_file]
    out = subprocess.run([*map(str, argv), "--plan"], capture_output=True, text=True, check=True).stdout
    expected = float(re.search(r"time +([\d.]+) s in all", out)[1])
    begin = time.perf_counter()
    out = subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=True).stdout
    whole = time.perf_counter() - begin
    assert json.loads((char.checkpoint_dir / "log.jsonl").read_text("utf-8").splitlines()[-1])["step"] == 250
    assert expected == pytest.approx(whole - 4, rel=0.2)  # four seconds of start: imports, checks and the like
