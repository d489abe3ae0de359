"""A resumed run is the same run; what must not change, and what --fresh does."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import lose
from faults import change_sidecar
from runs import interrupt_after, log_of, same, steps_of

import train
from model import by_hand_c, device
from model.compile_c import c_compiler
from model.storage.checkpoint import newest_checkpoint
from model.storage.safe_load import load, save
from model.training.run import Run
from model.training.run_settings import MAY_CHANGE, recorded_settings
from plumbing.errors import UserError


def test_a_resumed_run_is_the_same_run(char):
    """10 steps, and 5 + resume + 5, with dropout: weights, optimizer and random numbers equal to the bit."""
    train.main(char, fresh=False)
    whole = newest_checkpoint(char.checkpoint_dir)[1]
    model, log = load(char.model_file), log_of(char)
    interrupt_after(char, 5)
    train.main(char, fresh=False)
    resumed = newest_checkpoint(char.checkpoint_dir)[1]
    assert whole["step"] == 10
    assert same(whole, resumed)
    assert same(model, load(char.model_file))
    without_speed = [{k: v for k, v in entry.items() if k != "tokens_per_second"} for entry in log]
    assert without_speed == [{k: v for k, v in entry.items() if k != "tokens_per_second"} for entry in log_of(char)]


def test_a_resumed_run_in_bfloat16_is_the_same_run(char):
    """Which a CPU without instructions for it computes too, slowly. Evaluation and sampling have their part in it."""
    char = replace(char, dtype="bfloat16", dropout=0.0)
    train.main(char, fresh=False)
    whole, log = newest_checkpoint(char.checkpoint_dir)[1], log_of(char)
    assert whole["dtype"] == "bfloat16"
    assert all(weight.dtype == torch.float32 for weight in whole["model"].values())
    interrupt_after(char, 5)
    train.main(replace(char, dtype="auto"), fresh=False)
    assert same(whole, newest_checkpoint(char.checkpoint_dir)[1])
    assert [entry.get("sample") for entry in log] == [entry.get("sample") for entry in log_of(char)]


@pytest.mark.parametrize("lost", ["rng", "optimizer"])
def test_a_checkpoint_without_a_part_would_not_resume_exactly(char, lost):
    """The control of the test above: it notices when dropout's random numbers or the optimizer are not restored."""
    train.main(char, fresh=False)
    whole = newest_checkpoint(char.checkpoint_dir)[1]
    interrupt_after(char, 5)
    lose(char.checkpoint_dir, lost)
    train.main(char, fresh=False)
    assert not same(whole["model"], newest_checkpoint(char.checkpoint_dir)[1]["model"])


def test_training_goes_on_from_the_newest_whole_checkpoint(char, capsys):
    train.main(char, fresh=False)
    whole = newest_checkpoint(char.checkpoint_dir)[1]
    newest = char.checkpoint_dir / "step_00000010.pt"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1  # one bit of a weight: torch alone would load it
    newest.write_bytes(data)
    capsys.readouterr()
    train.main(char, fresh=False)
    out = capsys.readouterr().out
    assert "step_00000010.pt cannot be used" in out
    assert "Resuming from" in out and "step_00000005.pt" in out
    assert same(whole, newest_checkpoint(char.checkpoint_dir)[1])


def test_damaged_checkpoints_alone_are_no_fresh_start(char):
    train.main(char, fresh=False)
    for path in char.checkpoint_dir.glob("step_*.pt"):
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is whole.*--fresh"):
        train.main(char, fresh=False)


def test_a_finished_run_says_so_and_how_to_go_on(char, capsys):
    train.main(char, fresh=False)
    model = load(char.model_file)
    char.model_file.unlink()
    capsys.readouterr()
    train.main(char, fresh=False)
    out = capsys.readouterr().out
    assert "finished: step 10 of 10" in out and "--max-steps" in out and "--fresh" in out
    assert same(model, load(char.model_file))  # and makes the model file again

    train.main(replace(char, max_steps=14), fresh=False)
    out = capsys.readouterr().out
    assert "max_steps was 10, is 14" in out
    # 4 of 14 steps are left, over the last 12.6 of which the rate falls from its peak
    assert "The learning rate follows the run's length: it goes from 0% to 32% of its peak here." in out
    assert newest_checkpoint(char.checkpoint_dir)[1]["step"] == 14


def test_fresh_moves_the_earlier_run_aside(char, capsys):
    train.main(char, fresh=False)
    before = newest_checkpoint(char.checkpoint_dir)[1]
    train.main(replace(char, seed=2), fresh=True)
    assert "char-1" in capsys.readouterr().out
    assert same(before, newest_checkpoint(char.checkpoint_dir.with_name("char-1"))[1])
    assert newest_checkpoint(char.checkpoint_dir)[1]["settings"]["seed"] == 2
    assert log_of(char)[0]["step"] == 0


def test_fresh_moves_a_run_and_nothing_else(char):
    train.main(char, fresh=False)
    run = sorted(char.checkpoint_dir.iterdir())
    with pytest.raises(UserError, match="n_embd / n_head"):
        train.main(replace(char, n_head=3), fresh=True)
    assert sorted(char.checkpoint_dir.iterdir()) == run
    (char.checkpoint_dir / "thesis.txt").touch()
    with pytest.raises(UserError, match=r"char contains thesis.txt, which is not part of a run.*--checkpoint-dir"):
        train.main(char, fresh=True)
    assert set(char.checkpoint_dir.iterdir()) > set(run)


@pytest.mark.skipif(os.name != "posix", reason="Windows moves no folder that one stands in")
def test_a_training_where_one_stands(char, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for fresh in (False, True):
        train.main(replace(char, checkpoint_dir=Path(), max_steps=1), fresh=fresh)
    for folder in ("here", "here-1"):
        assert newest_checkpoint(tmp_path / folder)[1]["step"] == 1


CHANGES = {
    "block_size": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_embd": 32,
    "rotary_base": 50.0,
    "dropout": 0.2,
    "tie_embeddings": True,
    "batch_size": 5,
    "learning_rate": 1e-3,
    "muon_rate": 1e-3,
    "warmup_steps": 3,
    "decay_fraction": 0.5,
    "weight_decay": 0.2,
    "momentum": 0.5,
    "beta1": 0.8,
    "beta2": 0.9,
    "grad_clip": 2.0,
    "seed": 7,
}


def test_what_the_result_depends_on_must_not_change(char):
    train.main(char, fresh=False)
    assert CHANGES.keys() == recorded_settings(char).keys() - MAY_CHANGE - {"initial_weights"}  # a run keeps its own
    for name, value in CHANGES.items():
        with pytest.raises(UserError, match=f"{name} was {getattr(char, name)}, is {value}"):
            train.main(replace(char, **{name: value}), fresh=False)
    with pytest.raises(UserError, match="n_layer was 2, is 3; .*seed was 1337, is 7"):
        train.main(replace(char, n_layer=3, seed=7), fresh=False)


def test_a_run_can_leave_a_processor_with_bfloat16(char, capsys, monkeypatch):
    """Where it is slow, the run says so and takes another precision, which it keeps from then on."""
    char = replace(char, dtype="bfloat16")
    train.main(char, fresh=False)
    interrupt_after(char, 5)
    slow, fast = {torch.bfloat16: 8.0, torch.float32: 1.0}, {torch.bfloat16: 1.0, torch.float32: 8.0}
    advice, changed = "--dtype float32 is faster here", "dtype was bfloat16, is float32: the last digits will differ"
    for seconds, dtype, said in ((fast, "auto", False), (slow, "auto", True), (slow, "float32", False)):
        interrupt_after(char, 5)
        capsys.readouterr()
        monkeypatch.setattr(device, "product_seconds", seconds.get)
        train.main(replace(char, dtype=dtype), fresh=False)
        out = capsys.readouterr().out
        assert (advice in out, changed in out) == (said, dtype == "float32")
    assert newest_checkpoint(char.checkpoint_dir)[1]["dtype"] == "float32"
    train.main(replace(char, dtype="auto", max_steps=12), fresh=False)
    assert newest_checkpoint(char.checkpoint_dir)[1]["dtype"] == "float32"


@pytest.mark.skipif(c_compiler() is None, reason="needs a C compiler")
def test_a_run_keeps_its_layers_in_c_or_in_torch(char, capsys, monkeypatch):
    """Without dropout, so that attention is in C as well."""
    char, ends = replace(char, dropout=0.0), []
    for in_c in (True, False):
        with monkeypatch.context() as patch:
            if not in_c:
                patch.setattr(by_hand_c, "compiled_library", lambda *arguments: None)
            train.main(char, fresh=True)
        whole = newest_checkpoint(char.checkpoint_dir)[1]
        assert whole["in_c"] is in_c
        interrupt_after(char, 5)
        if not in_c:
            path, content, _ = newest_checkpoint(char.checkpoint_dir)
            del content["in_c"]  # as in files from before there was C
            save(path, content)
        train.main(char, fresh=False)
        ends.append(newest_checkpoint(char.checkpoint_dir)[1])
        assert same(ends[-1], whole)
    assert not same(ends[0]["model"], ends[1]["model"])  # else this shows nothing
    assert "its layers were computed in C" not in capsys.readouterr().out


def test_a_run_in_c_goes_on_where_there_is_no_compiler(char, capsys, monkeypatch):
    train.main(char, fresh=False)
    if not newest_checkpoint(char.checkpoint_dir)[1]["in_c"]:
        pytest.skip("needs a C compiler")
    interrupt_after(char, 5)
    monkeypatch.setattr(by_hand_c, "compiled_library", lambda *arguments: None)
    train.main(char, fresh=False)
    assert newest_checkpoint(char.checkpoint_dir)[1]["in_c"] is False
    assert "changed: its layers were computed in C" in capsys.readouterr().out


def test_other_data_is_not_the_same_run(char):
    train.main(char, fresh=False)
    data = char.val_file.read_bytes()
    tokens = np.frombuffer(data, "<u2").copy()
    tokens[0] = 2
    char.val_file.write_bytes(tokens.tobytes())
    was, now = (hashlib.sha256(content).hexdigest() for content in (data, tokens.tobytes()))
    change_sidecar(char.val_file, sha256=now)
    with pytest.raises(UserError, match=f"the validation data has changed .*was {was[:8]}.*is {now[:8]}"):
        train.main(char, fresh=False)


def test_data_that_is_changed_while_training_reads_it_is_not_saved(char, monkeypatch):
    """Another program writes into the open file."""
    real = Run.save_checkpoint

    def save_checkpoint(run):
        if run.step == 10:
            data = char.train_file.read_bytes()
            with open(char.train_file, "r+b") as file:
                file.write(bytes([data[0] ^ 1]))
        return real(run)

    monkeypatch.setattr(Run, "save_checkpoint", save_checkpoint)
    with pytest.raises(
        UserError, match=r"train\.bin was changed while .*after the last checkpoint .*step_00000005\.pt"
    ):
        train.main(char, fresh=False)
    assert steps_of(char) == ["step_00000005.pt"]
