"""Warnings: each planted fault raises its own within 50 steps, and a healthy run raises none in 100."""

import json
import re
import signal
import statistics
from dataclasses import replace

import conftest
import numpy as np
import pytest

import train
from config import BPE, CHAR
from model.gpt import GPT
from model.monitoring.diagnostics import Diagnostics
from model.training import run

RUN = {"max_steps": 50, "n_embd": 64, "dropout": 0.0, "batch_size": 8, "warmup_steps": 20, "eval_every": 25,
       "log_every": 5, "sample_tokens": 0, "checkpoint_every": 100, "debug": False}  # fmt: skip


def warnings(settings, capsys, kind="char", **changes):
    """The warnings of a run, as (step, text); not that of a text too short for its model, which all of these have."""
    train.main(replace(settings, **RUN | changes), fresh=True, kind=kind)
    found = re.findall(r"^Warning at step (\d+): (.*)$", capsys.readouterr().out, re.MULTILINE)
    return [(step, text) for step, text in found if "which it can memorise" not in text]


@pytest.fixture
def plant(monkeypatch):
    """plant(fault): from now on a new model has a fault, which fault(model) makes."""

    def plant(fault):
        def faulty(**architecture):
            model = GPT(**architecture)
            fault(model)
            return model

        monkeypatch.setattr(run, "GPT", faulty)

    return plant


@pytest.mark.parametrize(
    ("base", "kind", "other"),
    [
        (CHAR, "char", {"n_embd": 16, "dropout": 0.1, "tie_embeddings": True}),
        (BPE, "bpe", {"n_layer": 1, "muon_rate": 0.03, "learning_rate": 0.02}),
    ],
    ids=["char", "bpe"],
)
def test_a_healthy_run_raises_none(tmp_path, capsys, base, kind, other):
    settings = conftest.make_pipeline(tmp_path, base, kind)
    for changes in ({}, other):
        assert warnings(settings, capsys, kind, max_steps=80, **changes) == []  # with 100, BPE overfits


@pytest.mark.parametrize(("base", "kind"), [(CHAR, "char"), (BPE, "bpe")])
@pytest.mark.parametrize("rate", ["muon_rate", "learning_rate"])
def test_a_rate_ten_times_too_high(tmp_path, capsys, base, kind, rate):
    settings = conftest.make_pipeline(tmp_path, base, kind)
    ((step, text),) = warnings(settings, capsys, kind, **{rate: 10 * getattr(base, rate)})
    assert int(step) <= 32
    assert f"--{rate.replace('_', '-')}, with --fresh" in text


def test_dead_units(char, capsys, plant):
    def silence(model):
        gate, up = model.blocks[1].mlp.gate_up.weight.data.chunk(2)
        gate[:40], up[:40] = 0, 0  # of 192: nothing leads to them, and nothing from them

    plant(silence)
    ((step, text),) = warnings(char, capsys)
    assert step == "0" and "21% of layer 1" in text


def test_a_frozen_layer(char, capsys, plant):
    plant(lambda model: model.blocks[0].requires_grad_(False))
    ((step, text),) = warnings(char, capsys)
    assert step == "1" and "layer 0 does not learn" in text


def test_a_first_loss_that_is_not_that_of_guessing(char, capsys, plant):
    plant(lambda model: model.head.weight.data.mul_(40))
    ((step, text),) = warnings(char, capsys)
    assert step == "0" and "Check how the weights are initialised" in text


@pytest.mark.parametrize("log_every", [5, 1000])
def test_overfitting(tmp_path, capsys, monkeypatch, log_every):
    """A little noise, which nobody can predict, but which can be memorised. The training losses are means of all steps
    between two evaluations, whether or not any of them had a line."""
    rng = np.random.default_rng(0)
    noise = ["".join(map(chr, rng.integers(97, 123, 20))) for _ in range(30)]
    monkeypatch.setattr(conftest, "DOCUMENTS", noise)
    settings = conftest.make_pipeline(tmp_path, CHAR, "char")
    ((step, text),) = warnings(settings, capsys, batch_size=32, log_every=log_every, max_steps=100)
    assert step in ("25", "50", "75", "100") and "overfitting" in text
    log = list(map(json.loads, (settings.checkpoint_dir / "log.jsonl").read_text("utf-8").splitlines()))
    untrained = next(entry["val_loss"] for entry in log if "val_loss" in entry)
    losses = [loss for entry in log for loss in entry.get("losses", [])]
    means = [f"{statistics.fmean(losses[at : at + 25]):.3f}" for at in range(0, 100, 25)]
    before, now = re.search(r"training loss fell from ([\d.]+) to ([\d.]+):", text).groups()
    assert now == means[int(step) // 25 - 1] and before in [f"{untrained:.3f}", *means[: int(step) // 25 - 1]]


def test_a_text_that_is_short_for_its_model(tmp_path, capsys, monkeypatch):
    """In a run, not only in its plan: more parameters than tokens, and each token read more than four times. The runs
    are stopped in their first step."""
    choose = train.choose_step

    def stopping(*rest):
        step = choose(*rest)
        return lambda *batch: (signal.raise_signal(signal.SIGTERM), step(*batch))[1]

    monkeypatch.setattr(train, "choose_step", stopping)
    settings = conftest.make_pipeline(tmp_path, CHAR, "char")
    for steps, n_embd, expected in ((160, 64, 1), (60, 64, 0), (160, 8, 0)):
        settings = replace(settings, **RUN | {"max_steps": steps, "n_embd": n_embd})
        assert train.main(settings, fresh=True) == 128 + signal.SIGTERM
        text = "the model has .* parameters, and the training data only .* tokens, read . times, which it can memorise"
        assert len(re.findall(f"^Warning at step 0: {text}", capsys.readouterr().out, re.MULTILINE)) == expected


# --- the rules, on figures made up ------------------------------------------------------------------------------------


def test_overfitting_by_hand():
    check = Diagnostics()

    def evaluate(train_loss, val_loss, tokens=100):
        check.trained([train_loss + 0.1, train_loss - 0.1])
        return check.evaluated(500, val_loss, tokens, 50)

    assert evaluate(2.0, 2.1) == []
    assert evaluate(1.9, 2.11) == []  # by half a percent: chance
    assert evaluate(2.1, 2.5) == []  # the training loss rose as well: something else
    assert evaluate(1.0, 3.0, tokens=900) == []  # over more tokens: not comparable
    (said,) = evaluate(1.2, 2.3)
    assert "from 2.100 to 2.300" in said and "from 2.000 to 1.200" in said
    assert evaluate(1.0, 2.6) == []  # once


def test_an_evaluation_of_which_no_training_loss_is_known_is_not_judged():
    """Where a run resumes at an evaluation that was missing."""
    check = Diagnostics()
    assert check.evaluated(500, 1.0, 100, 50) == []
    check.trained([0.5])
    assert check.evaluated(550, 2.0, 100, 50) == []


def test_each_is_said_once_and_only_when_it_is_settled():
    check = Diagnostics()
    record = {"gradient_norm": {"embedding": 1.0, "layer 0": 1.0, "head": 1.0},
              "update_to_weight": {"embedding": 0.001, "layer 0": 0.2, "head": 2.0}}  # fmt: skip
    assert check.recorded(1, record) == []
    assert len(check.recorded(8, record)) == 1
    assert check.recorded(16, record) == []
    assert check.recorded(32, None) == []
    assert check.evaluated(0, 3.9, 100, 50) == []  # ln 50 = 3.912
    assert Diagnostics().evaluated(0, 4.0, 100, 50) != []
