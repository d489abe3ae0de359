"""A damaged checkpoint or model file is never used, nor one that is intact but lacks something.

Each test has its control: what a loader without the protection would have done. The full numbers: uv run pytest -m soak
"""

import random
import shutil
from pathlib import Path

import pytest
import torch
from faults import damaged, runs
from runs import same
from stored_runs import refusal, refused_checkpoint

from model.storage.checkpoint import load_checkpoint, newest_checkpoint
from model.storage.model_file import load_model, save_model
from model.storage.safe_load import save
from plumbing.errors import UserError


def accepted_damage(number: int, folder: Path, good: Path, other: Path, refuse) -> list[int]:
    """Damage a file `number` times. Returns which of the damaged files were accepted."""
    data, others, accepted = good.read_bytes(), other.read_bytes(), []
    rng = random.Random(number)
    for i in range(number):
        bad = damaged(data, others, rng)
        (folder / good.name).write_bytes(bad)
        if bad != data and refuse(folder / good.name) is None:
            accepted.append(i)
    return accepted


@runs(200, 5000)
def test_no_damaged_checkpoint_or_model_is_accepted(finished_run, tmp_path, number):
    old, new = sorted(finished_run.settings.checkpoint_dir.glob("step_*.pt"))
    assert accepted_damage(number // 2, tmp_path, new, old, refused_checkpoint) == []
    assert accepted_damage(number // 2, tmp_path, finished_run.settings.model_file, new, refusal) == []


def test_torch_alone_would_accept_damage(finished_run, tmp_path):
    """The control: what torch.load checks by itself is not enough."""
    old, new = sorted(finished_run.settings.checkpoint_dir.glob("step_*.pt"))

    def torch_refuses(path):
        try:
            torch.load(path, weights_only=True)
        except Exception as error:
            return str(error)

    assert len(accepted_damage(60, tmp_path, new, old, torch_refuses)) > 5


def test_a_changed_bit_anywhere_is_noticed(finished_run, tmp_path):
    """Headers and padding, which the archive's own checksums do not cover, included."""
    data = finished_run.settings.model_file.read_bytes()
    for at in [*range(300), *range(len(data) - 300, len(data)), *range(300, len(data) - 300, 997)]:
        changed = bytearray(data)
        changed[at] ^= 1
        (tmp_path / "m.pt").write_bytes(changed)
        assert refusal(tmp_path / "m.pt"), at


def test_intact_files_in_the_wrong_place_are_refused(finished_run, tmp_path):
    old, new = sorted(finished_run.settings.checkpoint_dir.glob("step_*.pt"))
    shutil.copy(old, tmp_path / new.name)
    assert refused_checkpoint(tmp_path / new.name) == "it is the checkpoint of step 5"
    shutil.copy(finished_run.settings.model_file, tmp_path / new.name)
    assert refused_checkpoint(tmp_path / new.name)
    shutil.copy(new, tmp_path / "model.pt")
    assert refusal(tmp_path / "model.pt") is None  # a checkpoint is a model too, whatever its name


CHANGES = {
    "a weight is missing": lambda c: c["model"].pop("norm.weight"),
    "a weight too many": lambda c: c["model"].update(extra=torch.zeros(1)),
    "another shape": lambda c: c["model"].update({"norm.weight": torch.ones(17)}),
    "another type": lambda c: c["model"].update({"norm.weight": torch.ones(16, dtype=torch.uint8)}),
    "rng that is no state": lambda c: c["rng"].fill_(255),
    "cuda_rng of another size": lambda c: c.update(cuda_rng=torch.zeros(8, dtype=torch.uint8)),
    "cuda_rng that is no state": lambda c: c.update(cuda_rng=torch.full((16,), 255, dtype=torch.uint8)),
    "not finite": lambda c: c["model"]["norm.weight"].fill_(float("nan")),
    "no tensor": lambda c: c["model"].update({"norm.weight": 3}),
    "no model": lambda c: c.pop("model"),
    "a memory not finite": lambda c: c["optimizer"]["mean"].fill_(float("inf")),
    "a memory of another size": lambda c: c["optimizer"].update(mean=torch.zeros(3)),
    "no optimizer": lambda c: c.pop("optimizer"),
    "random numbers missing": lambda c: c.pop("rng"),
    "random numbers of another size": lambda c: c.update(rng=torch.zeros(3, dtype=torch.uint8)),
    "another architecture": lambda c: c["settings"].update(n_embd=32),
    "a senseless architecture": lambda c: c["settings"].update(n_layer="many"),
    "no settings": lambda c: c.pop("settings"),
    "a setting that is none": lambda c: c["settings"].update(seed=[1]),
    "no max_steps": lambda c: c["settings"].pop("max_steps"),
    "no sources": lambda c: c.pop("sources"),
    "a source missing": lambda c: c["sources"].pop("tokenizer"),
    "no device": lambda c: c.pop("device"),
    "a step as text": lambda c: c.update(step="10"),
    "another version": lambda c: c.update(format_version=2),
    "compiled, perhaps": lambda c: c.update(compiled="perhaps"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_that_lacks_something_is_passed_over(finished_run, tmp_path, change):
    """tests/training/test_resume.py trains on from the one before."""
    old, new = sorted(finished_run.settings.checkpoint_dir.glob("step_*.pt"))
    shutil.copy(old, tmp_path)
    content = load_checkpoint(new)
    CHANGES[change](content)
    save(tmp_path / new.name, content)
    path, found, (problem,) = newest_checkpoint(tmp_path)
    assert path.name == old.name and same(found, finished_run.first)
    assert f"{new.name} cannot be used: " in problem


def test_a_model_that_cannot_be_read_back_replaces_nothing(finished_run, tmp_path):
    path = tmp_path / "model.pt"
    shutil.copy(finished_run.settings.model_file, path)
    before = path.read_bytes()
    model, tokenizer, training = load_model(path)
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="a number that is not finite"):
        save_model(path, model, tokenizer, training)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["model.pt"]
