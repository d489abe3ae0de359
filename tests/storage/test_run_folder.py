"""Only one training at a time works in the folder of a run."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from faults import end_of, start, unflushed_names
from runs import steps_of
from stored_runs import script

import train
from model.monitoring.reporter import Reporter
from model.storage.checkpoint import checkpoint_files, checkpoint_path, move_aside, only_training_in
from plumbing import files
from plumbing.errors import UserError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks and kills processes")


def test_two_trainings_do_not_work_in_one_folder(interrupted_run, tmp_path):
    with only_training_in(interrupted_run.checkpoint_dir):
        for fresh in (False, True):
            with pytest.raises(UserError, match=r"Another training is using .*run.*--checkpoint-dir"):
                train.main(interrupted_run, fresh=fresh)
        code = end_of(start(script(interrupted_run), errors=tmp_path / "errors"))  # and in another process
        assert code == 1 and "Another training" in (tmp_path / "errors").read_text()
    assert steps_of(interrupted_run) == ["step_00000005.pt"]
    train.main(interrupted_run, fresh=False)


def test_without_a_lock_two_trainings_would_work_in_one_folder(interrupted_run, monkeypatch):
    monkeypatch.setattr(files, "try_lock", lambda file: True)
    with only_training_in(interrupted_run.checkpoint_dir):
        assert train.main(interrupted_run, fresh=False) == 0


def test_only_a_trainings_own_leftovers_are_removed(interrupted_run):
    folder = interrupted_run.checkpoint_dir
    own = [folder / "step_00000010.pt.7.tmp", folder / "log.jsonl.7.tmp"]
    others = [folder / "notes.tmp", folder / "step_00000010.pt.tmp", folder / "step_00000011.pt.7.tmp"]
    for path in (*own, *others[:2]):
        path.touch()
    others[2].mkdir()
    with only_training_in(folder):
        assert not any(path.exists() for path in own) and all(path.exists() for path in others)


def test_a_killed_training_holds_no_lock(interrupted_run):
    def training():
        with only_training_in(interrupted_run.checkpoint_dir):
            time.sleep(60)

    pid = start(training)
    time.sleep(0.3)
    with pytest.raises(UserError, match="Another training"), only_training_in(interrupted_run.checkpoint_dir):
        pass
    os.kill(pid, signal.SIGKILL)
    end_of(pid)
    with only_training_in(interrupted_run.checkpoint_dir):
        pass


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks /proc which file was flushed")
@pytest.mark.parametrize("fresh", [False, True])
def test_a_power_failure_takes_no_announced_checkpoint(interrupted_run, tmp_path, monkeypatch, fresh):
    """Whenever a run announces a checkpoint, the names of all folders and files so far are on the disk: those of a
    folder that --fresh has moved, and of new folders."""
    if not fresh:
        interrupted_run = replace(interrupted_run, checkpoint_dir=tmp_path / "new" / "runs" / "one")
    announced, real = [], Reporter.saved
    with unflushed_names() as unflushed:

        def saved(self, path):
            real(self, path)
            announced.append(set(unflushed))

        monkeypatch.setattr(Reporter, "saved", saved)
        train.main(interrupted_run, fresh=fresh)
        announced.append(set(unflushed))
    assert announced == [set()] * 3  # two checkpoints, and the end
    assert fresh == (tmp_path / "run-1").exists()


@pytest.fixture
def linked(interrupted_run, tmp_path):
    """The interrupted run, its folder and its model file named by symbolic links elsewhere."""
    (tmp_path / "links").mkdir()
    names = {"checkpoint_dir": tmp_path / "links" / "to run", "model_file": tmp_path / "links" / "model.pt"}
    for name, link in names.items():
        link.symlink_to(getattr(interrupted_run, name))
    return replace(interrupted_run, **names)


def test_a_link_to_the_folder_leads_to_the_same_lock(interrupted_run, linked):
    for first, second in ((interrupted_run, linked), (linked, interrupted_run)):
        with only_training_in(first.checkpoint_dir), pytest.raises(UserError, match="Another training is using"):
            train.main(second, fresh=False)
    train.main(linked, fresh=False)


def test_training_and_fresh_leave_links_as_they_are(interrupted_run, linked, tmp_path):
    train.main(linked, fresh=True)
    assert linked.checkpoint_dir.is_symlink() and linked.model_file.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"links", "model.pt", "run", "run-1"}
    assert steps_of(interrupted_run) == ["step_00000005.pt", "step_00000010.pt"]
    assert interrupted_run.model_file.read_bytes() == (interrupted_run.checkpoint_dir / "gpt_model.pt").read_bytes()
    assert sorted(path.name for path in (tmp_path / "links").iterdir()) == ["model.pt", "to run"]


def test_nothing_is_written_beside_the_folder(interrupted_run, tmp_path):
    """So the folder above may be read-only, and a folder that is a disk of its own is locked on every path to it."""
    train.main(replace(interrupted_run, model_file=interrupted_run.checkpoint_dir / "gpt_model.pt"), fresh=False)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_fresh_says_why_it_cannot_rename_the_folder(interrupted_run, monkeypatch):
    """A folder that is a disk of its own."""
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(16, "Device or resource busy")))
    with pytest.raises(UserError, match="cannot rename .*run to run-1: device or resource busy.*--checkpoint-dir"):
        train.main(interrupted_run, fresh=True)
    monkeypatch.undo()
    assert steps_of(interrupted_run) == ["step_00000005.pt"]


def test_a_folder_that_is_moved_away_keeps_its_lock_and_the_new_one_has_another(interrupted_run, tmp_path):
    folder = interrupted_run.checkpoint_dir
    with only_training_in(folder) as lock:
        move_aside(folder, lock)
        for path in (folder, tmp_path / "run-1"):
            with pytest.raises(UserError, match="Another training"), only_training_in(path):
                pass


COPIES = ["step_00000005_best.pt", "step_00000005 copy.pt", "step_best.pt", "step_5.pt", "step_00000005.pt.bak"]


def test_copies_that_somebody_made_are_neither_deleted_nor_counted_nor_read(interrupted_run, capsys):
    folder = interrupted_run.checkpoint_dir
    for name in COPIES:
        (folder / name).write_bytes(b"my own")
    train.main(replace(interrupted_run, max_steps=20, keep_checkpoints=2), fresh=False)
    assert steps_of(interrupted_run) == sorted([*COPIES[:4], "step_00000015.pt", "step_00000020.pt"])
    assert all((folder / name).read_bytes() == b"my own" for name in COPIES)
    assert "cannot be used" not in capsys.readouterr().out
    with pytest.raises(UserError, match="which is not part of a run"):
        train.main(interrupted_run, fresh=True)


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    steps = [99_999_999, 100_000_000, 5, 1_000_000_000]
    for step in steps:
        checkpoint_path(tmp_path, step).touch()
    assert checkpoint_files(tmp_path) == [checkpoint_path(tmp_path, step) for step in sorted(steps, reverse=True)]
