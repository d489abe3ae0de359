"""Settings and files that no training can use."""

import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_pipeline

import train
from config import BPE, CHAR
from model.training.command_line import training_flags
from plumbing.errors import UserError
from plumbing.text import time_left


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_head": 3}, "n_embd / n_head"),
        ({"n_layer": 0}, "--n-layer must be above 0"),
        ({"batch_size": -1}, "--batch-size must be above 0"),
        ({"block_size": 100_000}, "too few for blocks"),
        ({"max_steps": 0}, "--max-steps or --minutes"),
        ({"seed": -1}, "--seed must be from 0"),
        ({"seed": 2**64}, "--seed must be from 0"),
        ({"beta1": 1.0}, "--beta1"),
        ({"momentum": 1.0}, "--momentum"),
        ({"muon_rate": 0.0}, "--muon-rate must be above 0"),
        ({"rotary_base": 0.0}, "--rotary-base must be above 0"),
        ({"eval_every": -1}, "--eval-every must be 0 or above"),
        ({"beta2": -1.0}, "--beta2"),
        ({"weight_decay": -1.0}, "--weight-decay"),
        ({"warmup_steps": -1}, "--warmup-steps"),
        ({"sample_tokens": -1}, "--sample-tokens"),
        ({"minutes": math.inf}, "--minutes must be a finite number"),
        ({"minutes": 1e308}, "--minutes must be at most 5,256,000"),
        ({"grad_clip": -1.0}, "--grad-clip must be 0 or above"),
        ({"decay_fraction": 1.5}, "--decay-fraction must be from 0 to 1"),
        ({"learning_rate": math.nan}, "--learning-rate must be a finite number"),
        ({"keep_checkpoints": 1}, "at least 2"),
        ({"dropout": 1.0}, "--dropout"),
        ({"device": "abacus"}, "'abacus' cannot be used"),
        ({"dtype": "float64"}, "not 'float64'"),
        ({"compile": "maybe"}, "--compile is auto, on or off, not 'maybe'"),
        ({"tokenizer_file": Path("nowhere.json")}, "no tokenizer nowhere.json"),
        ({"train_file": Path("nowhere.bin")}, "no token file nowhere.bin.*prepare_dataset"),
    ],
)
def test_settings_that_no_run_can_use(char, change, message):
    with pytest.raises(UserError, match=message):
        train.main(replace(char, **change), fresh=False)


def test_the_model_does_not_replace_what_it_learns_from(char):
    before = char.val_file.read_bytes()
    with pytest.raises(UserError, match=r"--model-file would replace .*val\.bin, which is read here"):
        train.main(replace(char, model_file=char.val_file), fresh=False)
    assert char.val_file.read_bytes() == before


def test_the_kinds_do_not_mix(tmp_path):
    char = make_pipeline(tmp_path / "a", CHAR, "char")
    bpe = make_pipeline(tmp_path / "b", BPE, "bpe")
    with pytest.raises(UserError, match="bpe tokenizer; trainv2.py trains on it"):
        train.main(bpe, fresh=False, kind="char")
    with pytest.raises(UserError, match="char tokenizer; train.py trains on it"):
        train.main(char, fresh=False, kind="bpe")
    with pytest.raises(UserError, match="made with a different tokenizer"):
        train.main(replace(char, train_file=bpe.train_file), fresh=False)


def test_flags_become_settings(capsys):
    settings, args = training_flags(CHAR, "", ["--n-layer", "7", "--tie-embeddings", "--quiet", "--fresh"])
    assert (settings.n_layer, settings.tie_embeddings, settings.debug, args.fresh) == (7, True, False, True)
    with pytest.raises(SystemExit) as error:
        training_flags(CHAR, "", ["--n-layers", "many"])
    assert error.value.code == 2


def test_planned_steps_fill_the_time(char, monkeypatch):
    """--minutes against the time that the run then takes, generously: machines are noisy."""
    monkeypatch.setattr(train, "STARTED", time.perf_counter())
    train.main(replace(char, minutes=0.05, eval_every=0, checkpoint_every=10_000), fresh=False)
    assert 1.0 < time.perf_counter() - train.STARTED < 6.0
    assert time_left(50, 100, 30) == 30
