"""The models that a run writes: its own at evaluations and when it stops, --model-file at its end; and checkpoints as
models."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import same, steps_of

import generate
import train
from config import CHAR, MODEL_NAME, ROOT
from model.generation.command_line import generation_flags
from model.storage import checkpoint
from model.storage.checkpoint import newest_checkpoint
from model.storage.model_file import load_model, save_model, show_training
from model.storage.safe_load import load, save
from plumbing.errors import UserError

OLD = ROOT / "tests/fixtures/before_rooms"


def at_step(monkeypatch, step, act):
    """Do something after this step of a training."""
    real = train.train_step

    def train_step(run, *rest):
        result = real(run, *rest)
        if run.optimizer.steps == step:
            act()
        return result

    monkeypatch.setattr(train, "train_step", train_step)


def test_a_stopped_run_leaves_its_model_and_says_how_to_use_it(char, monkeypatch, capfd):
    at_step(monkeypatch, 7, lambda: signal.raise_signal(signal.SIGINT))
    assert train.main(char) == 130
    own = char.checkpoint_dir / MODEL_NAME
    assert f"Next: python generate.py --prompt def --model {own}\n" in capfd.readouterr().out
    model, tokenizer, training = load_model(own)
    assert same(model.state_dict(), newest_checkpoint(char.checkpoint_dir)[1]["model"])
    assert (training["steps"], tokenizer.kind) == (7, "char")
    assert show_training(training) == "trained for 7 steps, not evaluated"
    assert not char.model_file.exists()  # which holds finished models
    flags = ["--model", str(own), "--prompt", "def", "--tokens", "9", "--device", "cpu"]
    assert generate.main(*generation_flags(CHAR, "", flags)) == 0
    assert capfd.readouterr().out.startswith("def")


def test_a_run_that_died_has_its_model_of_the_newest_evaluation(char, monkeypatch):
    def die():
        raise KeyError("power")

    at_step(monkeypatch, 8, die)
    with pytest.raises(KeyError):
        train.main(char)
    _, _, training = load_model(char.checkpoint_dir / MODEL_NAME)
    assert training["steps"] == 5 and training["val_loss"] > 0


@pytest.mark.parametrize("ids", [None, 300])
def test_a_checkpoint_is_a_model(char, monkeypatch, capfd, ids):
    if ids:
        for path in (char.train_file, char.val_file):
            np.arange(2000, dtype="<u2").__mod__(ids).tofile(path)
    train.main(char, ids=ids)
    char.tokenizer_file.unlink()  # a checkpoint holds its own
    path = char.checkpoint_dir / "step_00000005.pt"
    model, _, training = load_model(path)
    assert same(model.state_dict(), load(path)["model"]) and training["steps"] == 5
    prompt = "17 4" if ids else "def"
    flags = ["--model", str(path), "--prompt", prompt, "--tokens", "5", "--device", "cpu"]
    capfd.readouterr()
    assert generate.main(*generation_flags(CHAR, "", flags)) == 0
    done = capfd.readouterr()
    assert done.out.startswith(prompt) and "step_00000005.pt: trained for 5 steps, not evaluated" in done.err


def test_an_old_checkpoint_is_a_model_where_its_tokenizer_is(monkeypatch):
    path = next((OLD / "run").glob("step_*.pt"))
    with pytest.raises(UserError, match="a checkpoint without its tokenizer"):
        load_model(path)
    monkeypatch.setattr(checkpoint, "CHAR", replace(CHAR, tokenizer_file=OLD / "tokenizer_char.json"))
    assert load_model(path)[1].kind == "char"


def test_a_checkpoint_with_the_tokenizer_of_another_is_refused(char, tmp_path):
    train.main(char)
    _, content, _ = newest_checkpoint(char.checkpoint_dir)
    other = load(OLD / "gpt_model.pt")["tokenizer"]
    for changed in ({"tokenizer": other}, {"tokenizer": 7}, {"tokenizer": {}}, {"step": -1}, {"sources": {}}):
        save(tmp_path / "forged.pt", content | changed)
        with pytest.raises(UserError, match="forged.pt is not a model"):
            load_model(tmp_path / "forged.pt")


def test_the_model_of_another_run_is_named_before_it_is_replaced(char, tmp_path, capsys):
    note = "holds a char model of another run, trained for 10 steps, validation"
    train.main(char)
    train.main(replace(char, max_steps=12))  # the same run, longer
    assert note not in capsys.readouterr().out
    second = replace(char, checkpoint_dir=tmp_path / "second", seed=2)
    train.main(replace(second, model_file=tmp_path / "second.pt"))
    assert note not in capsys.readouterr().out
    train.main(replace(second, checkpoint_dir=tmp_path / "third"))
    out = capsys.readouterr().out
    assert note.replace("10", "12") in out and out.index("another run") < out.index("step  2/10")
    assert load_model(char.model_file)[2]["settings"]["seed"] == 2


def test_a_shorter_run_of_the_same_settings_is_another_run(char, capsys):
    train.main(char)
    train.main(replace(char, max_steps=4), fresh=True)
    assert "trained for 10 steps" in capsys.readouterr().out


def test_a_model_file_that_cannot_be_is_refused_before_training(char, tmp_path):
    train.main(replace(char, checkpoint_dir=tmp_path / "run", model_file=tmp_path / "model.pt"))
    (tmp_path / "run/step_00000010.pt").rename(tmp_path / "run/copied.pt")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    for name in ("folder", os.devnull, "file/model.pt", "run/step_00000005.pt", "run/log.jsonl", "run/copied.pt"):
        settings = replace(char, checkpoint_dir=tmp_path / "second", model_file=tmp_path / name)
        with pytest.raises((UserError, OSError), match=Path(name).name):
            train.main(settings)
        assert steps_of(settings) == []
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}


def test_reading_a_model_draws_no_random_number(char):
    train.main(char)
    before = torch.get_rng_state()
    model, tokenizer, training = load_model(char.model_file)
    save_model(char.model_file, model, tokenizer, training)
    assert torch.equal(before, torch.get_rng_state())
