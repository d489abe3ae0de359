"""A checkpoint that was announced is never lost, wherever the process is killed, and the resumed run is the same run.

Each test has its control: the same check, on a version without the protection, must find something. The full numbers:
uv run pytest -m soak
"""

import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import lose
from faults import Faults, end_of, left_over, runs, start
from runs import same, steps_of
from stored_runs import script, write_in_place

import train
from model.storage import checkpoint
from model.storage.checkpoint import newest_checkpoint, only_training_in, save_checkpoint
from plumbing.files import whole_file

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks and kills processes")


def killed_saves(settings, finished_run, faults, until_wrong=False) -> list[str]:
    """Save the second checkpoint under each fault, in a process of its own, or only until something is wrong. Returns
    what was not as promised."""
    old, new = finished_run.first, finished_run.last
    folder, wrong = settings.checkpoint_dir, []
    for number, fault in enumerate(faults):

        def save(fault=fault):
            with fault():
                save_checkpoint(folder, 10, new, keep=2)

        code = end_of(start(save))
        assert code in (0, -signal.SIGKILL)
        path, content, problems = newest_checkpoint(folder)
        if problems or content is None or not same(content, old if path.stem.endswith("5") else new):
            wrong.append(f"{number}: {problems}")
        if code == 0 and (content is None or content["step"] != 10):
            wrong.append(f"{number}: announced and not there")
        if len(left_over(folder)) > 1:
            wrong.append(f"{number}: {left_over(folder)}")
        with only_training_in(folder):  # the next start
            if left_over(folder):
                wrong.append(f"{number}: still there: {left_over(folder)}")
        done = code == 0 and not fault.at_byte >= 0
        if not done:
            (folder / "step_00000010.pt").unlink(missing_ok=True)
        if done or (until_wrong and wrong):
            return wrong
    return wrong


def random_bytes(settings, number: int) -> list[Faults]:
    size = (settings.checkpoint_dir / "step_00000005.pt").stat().st_size
    rng = random.Random(number)
    return [Faults(at_byte=rng.randrange(size + 66)) for _ in range(number)]


@runs(30, 2000)
def test_a_kill_at_any_byte_of_a_checkpoint_loses_nothing(interrupted_run, finished_run, number):
    assert killed_saves(interrupted_run, finished_run, random_bytes(interrupted_run, number)) == []
    train.main(interrupted_run, fresh=False)
    assert same(newest_checkpoint(interrupted_run.checkpoint_dir)[1], finished_run.last)


def calls_of_a_save(folder, new) -> int:
    """The calls with which the second checkpoint is written into a folder where the first one lies."""
    with Faults(at_call=10**9)() as fault:
        save_checkpoint(folder, 10, new, keep=2)
    return fault.calls


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.soak)])
def test_a_kill_at_any_call_of_a_save_loses_nothing(interrupted_run, finished_run, tmp_path, every):
    """The calls at both ends, where files are made, renamed and removed, and of the many writes in between every Nth;
    then one that is not killed."""
    shutil.copytree(interrupted_run.checkpoint_dir, tmp_path / "counted")
    calls = calls_of_a_save(tmp_path / "counted", finished_run.last)
    assert calls > 17
    numbers = sorted({*range(1, 6), *range(6, calls - 11, every), *range(calls - 11, calls + 2)})
    assert killed_saves(interrupted_run, finished_run, [Faults(at_call=n) for n in numbers]) == []
    assert newest_checkpoint(interrupted_run.checkpoint_dir)[1]["step"] == 10  # the last one came through untouched


SYSTEM_CALLS = ["openat", "flock", "write", "lseek", "fsync", "rename", "close", "unlink"]


def traced_save(settings, new, call: str, n: int) -> int:
    """Save in a process that the kernel kills as it enters the Nth such system call. Returns how it ended."""
    reading, writing = os.pipe()

    def save():
        os.read(reading, 1)  # until strace holds this process
        save_checkpoint(settings.checkpoint_dir, 10, new, keep=2)

    pid = start(save)
    fault = f"inject={call}:signal=SIGKILL:when={n}"
    command = ["strace", "-qq", "-o", os.devnull, "-p", str(pid), "-e", f"trace={call}", "-e", fault]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as strace:
        while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text():
            if strace.poll() is not None:
                os.write(writing, b"x")
                end_of(pid)
                pytest.skip(f"strace may not be used here: {strace.stderr.read().decode()[:100]}")
            time.sleep(0.002)
        os.write(writing, b"x")
        code = end_of(pid)
    os.close(reading), os.close(writing)
    return code


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.soak)])
def test_a_kill_at_any_system_call_of_a_save_loses_nothing(interrupted_run, finished_run, every):
    """As above, by the kernel's count: strace kills at every Nth call of each kind until a save comes through."""
    old, new = finished_run.first, finished_run.last
    folder, killed = interrupted_run.checkpoint_dir, 0
    for call in SYSTEM_CALLS:
        n = 1
        while (code := traced_save(interrupted_run, new, call, n)) != 0:
            assert code == -signal.SIGKILL
            killed, n = killed + 1, n + every
            path, content, problems = newest_checkpoint(folder)
            assert problems == [] and same(content, old if path.stem.endswith("5") else new), (call, n)
            assert len(left_over(folder)) <= 1, (call, n)
            with only_training_in(folder):
                assert left_over(folder) == []
            (folder / "step_00000010.pt").unlink(missing_ok=True)
        assert same(newest_checkpoint(folder)[1], new)
        (folder / "step_00000010.pt").unlink()
    assert killed > 10


def test_without_the_temporary_file_the_kills_are_noticed(interrupted_run, finished_run, monkeypatch):
    """The control of the two tests above."""
    write_in_place(monkeypatch)
    assert killed_saves(interrupted_run, finished_run, random_bytes(interrupted_run, 20), until_wrong=True) != []
    calls = [Faults(at_call=n) for n in range(1, 20)]
    assert killed_saves(interrupted_run, finished_run, calls, until_wrong=True) != []


def test_a_temporary_file_whose_writer_lives_is_left_alone(tmp_path):
    """Two trainings that write one model file at the same time: each has its own, and neither removes the other's."""
    path = tmp_path / "model.pt"
    begun, go_on = os.pipe(), os.pipe()

    def other():
        with whole_file(path) as file:
            file.write(b"theirs")
            os.write(begun[1], b"x")
            os.read(go_on[0], 1)

    pid = start(other)
    os.close(begun[1])  # or a writer that fails early would leave us waiting
    assert os.read(begun[0], 1)
    with whole_file(path) as file:
        file.write(b"ours")
    assert path.read_bytes() == b"ours"
    os.write(go_on[1], b"x")
    assert end_of(pid) == 0
    assert path.read_bytes() == b"theirs"
    assert left_over(tmp_path) == []


def test_a_checkpoint_is_pruned_only_after_the_new_one_was_read_back(interrupted_run, finished_run, monkeypatch):
    """A disk that writes something else: the file is there, and the earlier ones stay."""
    old, new = finished_run.first, finished_run.last
    for step in (6, 7):
        save_checkpoint(interrupted_run.checkpoint_dir, step, {**old, "step": step}, keep=9)
    real = torch.save

    def rotten(content, file):
        real(content, file)
        file.file.seek(1000)
        file.file.write(b"rot")
        file.file.seek(0, os.SEEK_END)

    monkeypatch.setattr(torch, "save", rotten)
    with pytest.raises(OSError, match=r"step_00000010.pt was written but cannot be read back: it is damaged"):
        save_checkpoint(interrupted_run.checkpoint_dir, 10, new, keep=2)
    names = [f"step_{step:08d}.pt" for step in (5, 6, 7, 10)]
    assert steps_of(interrupted_run) == names
    path, _, problems = newest_checkpoint(interrupted_run.checkpoint_dir)
    assert path.name == names[2] and len(problems) == 1
    monkeypatch.undo()
    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda path: {})  # the control: nobody looks
    monkeypatch.setattr(torch, "save", rotten)
    save_checkpoint(interrupted_run.checkpoint_dir, 10, new, keep=2)
    assert steps_of(interrupted_run) == names[2:]


def test_damaged_checkpoints_of_later_steps_are_not_counted_as_kept(interrupted_run, finished_run):
    old = finished_run.first
    for step in (8, 9):
        (interrupted_run.checkpoint_dir / f"step_{step:08d}.pt").write_bytes(b"damaged")
    for step in (6, 7):
        save_checkpoint(interrupted_run.checkpoint_dir, step, old | {"step": step}, keep=2)
    assert steps_of(interrupted_run) == [f"step_{step:08d}.pt" for step in (6, 7, 8, 9)]


# --- whole runs -------------------------------------------------------------------------------------------------------


def until_done(settings, rng, longest: float, kills: int) -> int:
    """Start a training and kill it at a random moment, again and again, until one comes to its end or there were so
    many kills, after which it may. Returns the number of kills."""
    killed = 0
    while True:
        pid = start(script(settings))
        if killed < kills:
            time.sleep(rng.uniform(0, longest))
            os.kill(pid, signal.SIGKILL)
        code = end_of(pid)
        assert code in (0, -signal.SIGKILL)
        if code == 0:
            return killed
        killed += 1


@runs(4, 100)
def test_a_run_killed_at_random_moments_is_the_same_run(finished_run, tmp_path, number):
    settings = replace(finished_run.settings, max_steps=60, checkpoint_every=4, eval_every=20, log_every=1)
    whole = replace(settings, checkpoint_dir=tmp_path / "whole", model_file=tmp_path / "whole.pt")
    begin = time.perf_counter()
    assert end_of(start(script(whole))) == 0
    longest = time.perf_counter() - begin
    rng, killed, run = random.Random(number), 0, 0
    while killed < number:
        run += 1
        killed_run = replace(settings, checkpoint_dir=tmp_path / f"run{run}", model_file=tmp_path / f"run{run}.pt")
        killed += until_done(killed_run, rng, longest, min(8, number - killed))
        assert same(newest_checkpoint(killed_run.checkpoint_dir)[1], newest_checkpoint(whole.checkpoint_dir)[1])
        assert killed_run.model_file.read_bytes() == whole.model_file.read_bytes()
        assert left_over(tmp_path) == []


@pytest.mark.parametrize("lost", ["rng", "optimizer"])
def test_a_run_that_resumes_without_a_part_is_noticed(finished_run, interrupted_run, lost):
    """The control of the test above."""
    lose(interrupted_run.checkpoint_dir, lost)
    train.main(interrupted_run, fresh=False)
    assert not same(newest_checkpoint(interrupted_run.checkpoint_dir)[1]["model"], finished_run.last["model"])
