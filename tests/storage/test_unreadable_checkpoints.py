"""Checkpoints that may be sound but cannot be read now: the true reason is named, and nothing takes their place."""

import errno
import os
from pathlib import Path

import pytest

import train
from model.storage import checkpoint, safe_load
from model.storage.checkpoint import newest_checkpoint
from model.storage.model_file import load_model
from plumbing.errors import UserError


def fail_for(monkeypatch, name, error):
    """Opening a file of this name fails."""

    def opening(path, *mode):
        if Path(path).name == name:
            raise error
        return open(path, *mode)

    monkeypatch.setattr(safe_load, "open", opening, raising=False)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE])
@pytest.mark.parametrize("name", ["step_00000005.pt", "step_00000010.pt"])
def test_what_cannot_be_opened_is_not_called_damaged(finished_run, monkeypatch, tmp_path, number, name):
    """Neither an earlier checkpoint is taken instead, nor is it advised to start over."""
    folder = finished_run.settings.checkpoint_dir
    if name == "step_00000005.pt":  # the only one
        (tmp_path / name).write_bytes((folder / name).read_bytes())
        folder = tmp_path
    fail_for(monkeypatch, name, OSError(number, os.strerror(number), name))
    with pytest.raises(UserError, match=f"{name} cannot be read: {os.strerror(number)}. It may be sound") as refused:
        newest_checkpoint(folder)
    assert "--fresh" not in str(refused.value)


def test_a_folder_that_cannot_be_read_is_no_empty_one(interrupted_run, monkeypatch):
    def refusing(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(checkpoint.os, "scandir", refusing)
    with pytest.raises(UserError, match="run cannot be read: Permission denied"):
        newest_checkpoint(interrupted_run.checkpoint_dir)


def test_too_little_memory_to_read_a_checkpoint_or_model(interrupted_run, finished_run, monkeypatch):
    def full(self):
        raise MemoryError

    monkeypatch.setattr(safe_load.Archive, "content", full)
    with pytest.raises(UserError, match="There is not enough memory") as refused:
        train.main(interrupted_run)
    assert "--fresh" not in str(refused.value)
    with pytest.raises(UserError, match="There is not enough memory for this. Close other programs"):
        load_model(finished_run.settings.model_file)


def test_a_broken_disk_counts_as_damage(interrupted_run, finished_run, monkeypatch):
    """Its data is gone: the checkpoint before it is used, and the reason is named."""
    fail_for(monkeypatch, "step_00000010.pt", OSError(errno.EIO, "Input/output error"))
    path, _, problems = newest_checkpoint(finished_run.settings.checkpoint_dir)
    assert path.name == "step_00000005.pt" and "Input/output error" in problems[0]


@pytest.mark.skipif(os.name != "posix", reason="makes a pipe")
def test_a_pipe_among_the_checkpoints_does_not_hang(interrupted_run):
    os.mkfifo(interrupted_run.checkpoint_dir / "step_00000009.pt")
    path, _, problems = newest_checkpoint(interrupted_run.checkpoint_dir)
    assert path.name == "step_00000005.pt" and "step_00000009.pt cannot be used: it is not a file" in problems[0]
