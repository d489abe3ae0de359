"""A checkpoint that was announced is never lost, and a resumed run is the same run: kills, full disks, signals.

Every kind of fault is put in at many places, and each test has its control: the same check, on a version without the
protection, must find something. The full numbers: uv run pytest -m soak
"""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import lose, make_pipeline
from faults import Faults, end_of, left_over, runs, start
from runs import interrupt_after, log_of, same, steps_of

import dataset
import train
from config import CHAR
from model.storage import checkpoint, run_folder
from model.storage import safe_load as pt_file
from model.storage.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from model.storage.model_file import load_model
from model.storage.run_folder import only_training_in
from model.storage.safe_load import load
from plumbing.errors import UserError, run_script

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks and kills processes")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 10 steps with checkpoints at 5 and 10: its settings, and the content of both."""
    settings = make_pipeline(tmp_path_factory.mktemp("finished"), CHAR, "char")
    settings = replace(settings, debug=False, sample_tokens=0)
    train.main(settings, fresh=False)
    return (
        settings,
        load_checkpoint(settings.checkpoint_dir / "step_00000005.pt"),
        newest_checkpoint(settings.checkpoint_dir)[1],
    )


@pytest.fixture
def copy(finished, tmp_path):
    """The same run, but in another folder and with its first checkpoint alone."""
    settings, old, _ = finished
    settings = replace(settings, checkpoint_dir=tmp_path / "run", model_file=tmp_path / "model.pt")
    save_checkpoint(settings.checkpoint_dir, 5, old, keep=2)
    return settings


@contextmanager
def written_in_place(path):
    """What whole_file() protects from: a file that is written under its own name."""
    with getattr(dataset, "open", open)(path, "wb") as file:
        yield file


def unprotected(patch):
    patch.setattr(pt_file, "whole_file", written_in_place)


# --- kills while a checkpoint is written ------------------------------------------------------------------------------


def killed_saves(settings, finished, faults) -> list[str]:
    """Save the second checkpoint under each fault, in a process of its own. Returns what was not as promised."""
    _, old, new = finished
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
        if code == 0 and not fault.at_byte >= 0:
            return wrong
        (folder / "step_00000010.pt").unlink(missing_ok=True)
    return wrong


def random_bytes(settings, number: int) -> list[Faults]:
    size = (settings.checkpoint_dir / "step_00000005.pt").stat().st_size
    rng = random.Random(number)
    return [Faults(at_byte=rng.randrange(size + 66)) for _ in range(number)]


@runs(300, 2000)
def test_a_kill_at_any_byte_of_a_checkpoint_loses_nothing(copy, finished, number):
    assert killed_saves(copy, finished, random_bytes(copy, number)) == []
    train.main(copy, fresh=False)
    assert same(newest_checkpoint(copy.checkpoint_dir)[1], finished[2])


def test_a_kill_at_any_call_of_a_save_loses_nothing(copy, finished):
    faults = [Faults(at_call=n) for n in range(1, 400)]
    assert killed_saves(copy, finished, faults) == []
    assert newest_checkpoint(copy.checkpoint_dir)[1]["step"] == 10  # the last one came through untouched


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
def test_a_kill_at_any_system_call_of_a_save_loses_nothing(copy, finished, every):
    """As above, by the kernel's count: strace kills at every Nth call of each kind until a save comes through."""
    _, old, new = finished
    folder, killed = copy.checkpoint_dir, 0
    for call in SYSTEM_CALLS:
        n = 1
        while (code := traced_save(copy, new, call, n)) != 0:
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


def test_without_the_temporary_file_the_kills_are_noticed(copy, finished, monkeypatch):
    """The control of the two tests above."""
    unprotected(monkeypatch)
    assert killed_saves(copy, finished, random_bytes(copy, 20)) != []
    assert killed_saves(copy, finished, [Faults(at_call=n) for n in range(1, 20)]) != []


def test_a_temporary_file_whose_writer_lives_is_left_alone(tmp_path):
    """Two trainings that write one model file at the same time: each has its own, and neither removes the other's."""
    path = tmp_path / "model.pt"
    begun, go_on = os.pipe(), os.pipe()

    def other():
        with pt_file.whole_file(path) as file:
            file.write(b"theirs")
            os.write(begun[1], b"x")
            os.read(go_on[0], 1)

    pid = start(other)
    os.read(begun[0], 1)
    with pt_file.whole_file(path) as file:
        file.write(b"ours")
    assert path.read_bytes() == b"ours"
    os.write(go_on[1], b"x")
    assert end_of(pid) == 0
    assert path.read_bytes() == b"theirs"
    assert left_over(tmp_path) == []


def test_a_checkpoint_is_pruned_only_after_the_new_one_was_read_back(copy, finished, monkeypatch):
    """A disk that writes something else: the file is there, and the earlier ones stay."""
    _, old, new = finished
    for step in (6, 7):
        save_checkpoint(copy.checkpoint_dir, step, {**old, "step": step}, keep=9)
    real = torch.save

    def rotten(content, file):
        real(content, file)
        file.file.seek(1000)
        file.file.write(b"rot")
        file.file.seek(0, os.SEEK_END)

    monkeypatch.setattr(torch, "save", rotten)
    with pytest.raises(OSError, match=r"step_00000010.pt was written and cannot be read back: damaged"):
        save_checkpoint(copy.checkpoint_dir, 10, new, keep=2)
    names = [f"step_{step:08d}.pt" for step in (5, 6, 7, 10)]
    assert steps_of(copy) == names
    path, _, problems = newest_checkpoint(copy.checkpoint_dir)
    assert path.name == names[2] and len(problems) == 1
    monkeypatch.undo()
    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda path: {})  # the control: nobody looks
    monkeypatch.setattr(torch, "save", rotten)
    save_checkpoint(copy.checkpoint_dir, 10, new, keep=2)
    assert steps_of(copy) == names[2:]


def test_damaged_checkpoints_of_later_steps_are_not_counted_as_kept(copy, finished):
    _, old, _ = finished
    for step in (8, 9):
        (copy.checkpoint_dir / f"step_{step:08d}.pt").write_bytes(b"damaged")
    for step in (6, 7):
        save_checkpoint(copy.checkpoint_dir, step, old | {"step": step}, keep=2)
    assert steps_of(copy) == [f"step_{step:08d}.pt" for step in (6, 7, 8, 9)]


# --- disks that are full ----------------------------------------------------------------------------------------------


def failed_saves(settings, finished, code: int) -> int:
    """Save under an error at the Nth call, N = 1, 2, ... until one comes through. Returns how many failed."""
    _, old, new = finished
    folder = settings.checkpoint_dir
    for n in range(1, 1000):
        try:
            with Faults(at_call=n, error=code)():
                save_checkpoint(folder, 10, new, keep=2)
        except OSError as error:
            assert error.errno == code, n
            assert error.filename.endswith("step_00000010.pt")
            assert "MB free" in error.strerror
        else:
            assert same(newest_checkpoint(folder)[1], new)
            return n - 1
        if not (folder / "step_00000010.pt").exists():
            assert same(newest_checkpoint(folder)[1], old)
        assert newest_checkpoint(folder)[2] == []
        assert left_over(folder) == []
        save_checkpoint(folder, 10, new, keep=2)  # with room again
        (folder / "step_00000010.pt").unlink()
    raise AssertionError("no save came through")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EFBIG])
def test_a_full_or_broken_disk_at_any_call_of_a_save_loses_nothing(copy, finished, code):
    assert failed_saves(copy, finished, code) > 20


def test_without_the_temporary_file_a_full_disk_is_noticed(copy, finished, monkeypatch):
    unprotected(monkeypatch)
    with pytest.raises(OSError), Faults(at_call=10, error=errno.ENOSPC)():
        save_checkpoint(copy.checkpoint_dir, 10, finished[2], keep=2)
    assert newest_checkpoint(copy.checkpoint_dir)[2] != []


def script(settings):
    """What `python train.py` does with these settings."""
    return lambda: run_script(lambda: train.main(settings, fresh=False))


@runs(12, 10_000)
def test_training_on_a_full_disk_stops_with_one_sentence_and_goes_on_later(finished, tmp_path, number):
    """The whole run, its log and its model file included, under an error at the Nth call."""
    settings, _, new = finished
    n, failed = 1, 0
    while True:
        folder = tmp_path / str(n)
        copy = replace(settings, checkpoint_dir=folder / "run", model_file=folder / "model.pt")

        def full(copy=copy, n=n):
            with Faults(at_call=n, error=errno.ENOSPC)():
                script(copy)()

        code = end_of(start(full, errors=tmp_path / "errors"))
        said = (tmp_path / "errors").read_text()
        if code == 0:
            break
        failed += 1
        assert code == 1, said
        assert said.startswith("error: No space left on device") and said.count("\n") == 1 and "MB free" in said, said
        assert str(folder) in said
        assert left_over(folder) == []
        assert newest_checkpoint(copy.checkpoint_dir)[2] == []
        assert end_of(start(script(copy))) == 0
        assert same(newest_checkpoint(copy.checkpoint_dir)[1], new)
        n += max(1, 300 // number)
    assert failed > 5


def test_a_limit_on_the_size_of_files_is_named(copy, finished, tmp_path):
    size = (copy.checkpoint_dir / "step_00000005.pt").stat().st_size
    for limit in (1000, size // 2, size - 10):

        def limited(limit=limit):
            import resource  # which Windows has not

            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            script(copy)()

        assert end_of(start(limited, errors=tmp_path / "errors")) == 1
        said = (tmp_path / "errors").read_text()
        assert said.startswith("error: File too large, with ") and said.count("\n") == 1, said
        assert newest_checkpoint(copy.checkpoint_dir)[0].name == "step_00000005.pt"
        assert left_over(tmp_path) == []
    assert end_of(start(script(copy))) == 0
    assert same(newest_checkpoint(copy.checkpoint_dir)[1], finished[2])


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


@runs(10, 100)
def test_a_run_killed_at_random_moments_is_the_same_run(finished, tmp_path, number):
    settings = replace(finished[0], max_steps=60, checkpoint_every=4, eval_every=20, log_every=1)
    whole = replace(settings, checkpoint_dir=tmp_path / "whole", model_file=tmp_path / "whole.pt")
    begin = time.perf_counter()
    assert end_of(start(script(whole))) == 0
    longest = time.perf_counter() - begin
    rng, killed, run = random.Random(number), 0, 0
    while killed < number:
        run += 1
        copy = replace(settings, checkpoint_dir=tmp_path / f"run{run}", model_file=tmp_path / f"run{run}.pt")
        killed += until_done(copy, rng, longest, min(8, number - killed))
        assert same(newest_checkpoint(copy.checkpoint_dir)[1], newest_checkpoint(whole.checkpoint_dir)[1])
        assert copy.model_file.read_bytes() == whole.model_file.read_bytes()
        assert left_over(tmp_path) == []


@pytest.mark.parametrize("lost", ["rng", "optimizer"])
def test_a_run_that_resumes_without_a_part_is_noticed(finished, copy, lost):
    """The control of the test above."""
    lose(copy.checkpoint_dir, lost)
    train.main(copy, fresh=False)
    assert not same(newest_checkpoint(copy.checkpoint_dir)[1]["model"], finished[2]["model"])


# --- two at once ------------------------------------------------------------------------------------------------------


def test_two_trainings_do_not_work_in_one_folder(copy, tmp_path):
    with only_training_in(copy.checkpoint_dir):
        for fresh in (False, True):
            with pytest.raises(UserError, match=r"Another training is at work in .*run.*--checkpoint-dir"):
                train.main(copy, fresh=fresh)
        code = end_of(start(script(copy), errors=tmp_path / "errors"))  # and in another process
        assert code == 1 and "Another training" in (tmp_path / "errors").read_text()
    assert steps_of(copy) == ["step_00000005.pt"]
    train.main(copy, fresh=False)


def test_without_a_lock_two_trainings_would_work_in_one_folder(copy, monkeypatch):
    monkeypatch.setattr(run_folder, "try_lock", lambda file: True)
    with only_training_in(copy.checkpoint_dir):
        assert train.main(copy, fresh=False) == 0


def test_only_a_trainings_own_leftovers_are_removed(copy):
    folder = copy.checkpoint_dir
    own = [folder / "step_00000010.pt.7.tmp", folder / "log.jsonl.7.tmp"]
    others = [folder / "notes.tmp", folder / "step_00000010.pt.tmp", folder / "step_00000011.pt.7.tmp"]
    for path in (*own, *others[:2]):
        path.touch()
    others[2].mkdir()
    with only_training_in(folder):
        assert not any(path.exists() for path in own) and all(path.exists() for path in others)


def test_a_killed_training_holds_no_lock(copy):
    def training():
        with only_training_in(copy.checkpoint_dir):
            time.sleep(60)

    pid = start(training)
    time.sleep(0.3)
    with pytest.raises(UserError, match="Another training"), only_training_in(copy.checkpoint_dir):
        pass
    os.kill(pid, signal.SIGKILL)
    end_of(pid)
    with only_training_in(copy.checkpoint_dir):
        pass


# --- signals ----------------------------------------------------------------------------------------------------------


def signalled(settings, place: str, number: int, errors, twice: bool = False) -> tuple[int, float]:
    """A training that gets a signal in its evaluation, sampling, save or step. Returns its exit code and the seconds
    until then."""
    reached = os.pipe()

    def training():
        with pytest.MonkeyPatch.context() as patch:
            module, name = {
                "evaluation": (train, "evaluate"),
                "sampling": (train, "sample_text"),
                "save": (torch, "save"),
                "step": (train, "train_step"),
            }[place]
            real, calls = getattr(module, name), []

            def waiting(*args, **kwargs):
                calls.append(1)
                # Three steps are timed before the first; six texts are written for records and the first evaluation.
                if len(calls) == {"step": 5, "sampling": 7}.get(place, 2):
                    os.write(reached[1], b"x")
                    time.sleep(0.3)
                return real(*args, **kwargs)

            patch.setattr(module, name, waiting)
            script(settings)()

    pid = start(training, errors=errors)
    os.read(reached[0], 1)
    begin = time.perf_counter()
    os.kill(pid, number)
    if twice:
        time.sleep(0.1)
        os.kill(pid, number)
    code = end_of(pid)
    return code, time.perf_counter() - begin


@pytest.mark.parametrize("place", ["evaluation", "sampling", "save", "step"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_anywhere_saves_the_current_step(finished, tmp_path, place, number):
    settings = replace(finished[0], sample_tokens=6, checkpoint_dir=tmp_path / "run", model_file=tmp_path / "model.pt")
    code, seconds = signalled(settings, place, number, tmp_path / "errors")
    assert code == 128 + number
    assert seconds < 2.3
    said = (tmp_path / "errors").read_text()
    assert "Traceback" not in said and "stopping after this step" in said
    step = newest_checkpoint(settings.checkpoint_dir)[1]["step"]
    assert step == {"evaluation": 5, "sampling": 5, "save": 10, "step": 2}[place]
    train.main(settings, fresh=False)
    ours, whole = newest_checkpoint(settings.checkpoint_dir)[1], finished[2]
    assert same(ours["model"], whole["model"]) and same(ours["optimizer"], whole["optimizer"])


def test_a_training_that_does_not_look_for_signals_is_noticed(finished, tmp_path, monkeypatch):
    """The control: it goes on to its end."""
    settings = replace(finished[0], checkpoint_dir=tmp_path / "run", model_file=tmp_path / "model.pt")
    monkeypatch.setattr(train.StopFlag, "check", lambda self: None)
    assert signalled(settings, "step", signal.SIGTERM, tmp_path / "errors")[0] == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_second_signal_ends_at_once_and_loses_nothing(finished, tmp_path, number, code):
    settings = replace(finished[0], checkpoint_dir=tmp_path / "run", model_file=tmp_path / "model.pt")
    ended, seconds = signalled(settings, "save", number, tmp_path / "errors", twice=True)
    assert ended == code
    assert seconds < 2.3
    assert "Traceback" not in (tmp_path / "errors").read_text()
    assert steps_of(settings) == ["step_00000005.pt"]
    train.main(settings, fresh=False)
    assert left_over(tmp_path) == []
    assert same(newest_checkpoint(settings.checkpoint_dir)[1], finished[2])


# --- the log ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [b"{", b"[]", b"5", b'{"step": "5"}', b"\xff\xfe", b"[" * 100_000, b'{"loss": 3}'])
def test_a_damaged_line_of_the_log_is_left_out_and_named(finished, tmp_path, capsys, line):
    settings = replace(finished[0], checkpoint_dir=tmp_path / "run", model_file=tmp_path / "model.pt")
    train.main(settings, fresh=False)
    whole = log_of(settings)
    interrupt_after(settings, 5)
    with open(settings.checkpoint_dir / "log.jsonl", "ab") as log:
        log.write(line + b"\n")
    capsys.readouterr()
    train.main(settings, fresh=False)
    assert "log.jsonl: left out 1 line not whole" in capsys.readouterr().out
    assert [entry["step"] for entry in log_of(settings)] == [entry["step"] for entry in whole]


def test_an_evaluation_whose_line_was_changed_is_not_believed(finished, tmp_path):
    settings = replace(finished[0], checkpoint_dir=tmp_path / "run", model_file=tmp_path / "model.pt")
    train.main(settings, fresh=False)
    truth = load_model(settings.model_file)[2]["val_loss"]
    path = settings.checkpoint_dir / "log.jsonl"
    path.write_text(path.read_text().replace(json.dumps(truth), json.dumps(truth / 2)))
    train.main(settings, fresh=False)
    assert load_model(settings.model_file)[2]["val_loss"] == truth
    assert load(settings.model_file)["training"]["val_loss"] == truth
