"""Ctrl-C, SIGTERM and a closed terminal: training saves the current step and ends, wherever it is, whoever can read
what it prints; a second signal ends it at once."""

import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from faults import end_of, left_over, start
from runs import flags, log_of, same, steps_of
from stored_runs import script

import train
from config import ROOT
from model.monitoring import reporter
from model.storage.checkpoint import newest_checkpoint
from model.training.stop import StopFlag

if os.name == "posix":
    import pty
pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks and kills processes")


def signalled(settings, place: str, number: int, errors, twice: bool = False) -> tuple[int, float]:
    """A training that gets a signal in its evaluation, sampling, save or step. Returns its exit code and the seconds
    until then."""
    reached = os.pipe()

    def training():
        with pytest.MonkeyPatch.context() as patch:
            module, name = {
                "evaluation": (train, "evaluate"),
                "sampling": (reporter, "sample_text"),
                "save": (torch, "save"),
                "step": (train, "train_step"),
            }[place]
            real, calls = getattr(module, name), []

            def waiting(*args, **kwargs):
                calls.append(1)
                # The fifth sample is that of step 5, after steps 0, 1, 2 and 4; the third save is the checkpoint of
                # step 10, after that of step 5 and the model.
                if len(calls) == {"sampling": 5, "save": 3}.get(place, 2):
                    os.write(reached[1], b"x")
                    time.sleep(0.3)
                return real(*args, **kwargs)

            patch.setattr(module, name, waiting)
            script(replace(settings, compile="off"))()  # so that no steps are timed first

    pid = start(training, errors=errors)
    os.close(reached[1])  # or a training that ends early would leave us waiting
    os.read(reached[0], 1)
    os.close(reached[0])
    begin = time.perf_counter()
    os.kill(pid, number)
    if twice:
        time.sleep(0.1)
        os.kill(pid, number)
    code = end_of(pid)
    return code, time.perf_counter() - begin


# Where a signal arrives and which one it is have nothing to do with each other: each place once.
PLACES = {
    "evaluation": signal.SIGINT,
    "sampling": signal.SIGTERM,
    "save": signal.SIGINT,
    "step": signal.SIGTERM,
}


@pytest.mark.parametrize(("place", "number"), PLACES.items())
def test_a_signal_anywhere_saves_the_current_step(finished_run, tmp_path, place, number):
    settings = replace(
        finished_run.settings, sample_tokens=6, checkpoint_dir=tmp_path / "run", model_file=tmp_path / "model.pt"
    )
    code, seconds = signalled(settings, place, number, tmp_path / "errors")
    assert code == 128 + number
    assert seconds < 2.3
    said = (tmp_path / "errors").read_text()
    assert "Traceback" not in said and "stopping after this step" in said
    step = newest_checkpoint(settings.checkpoint_dir)[1]["step"]
    assert step == {"evaluation": 5, "sampling": 5, "save": 10, "step": 2}[place]
    train.main(settings, fresh=False)
    ours, whole = newest_checkpoint(settings.checkpoint_dir)[1], finished_run.last
    assert same(ours["model"], whole["model"]) and same(ours["optimizer"], whole["optimizer"])


def test_a_training_that_does_not_look_for_signals_is_noticed(finished_run, tmp_path, monkeypatch):
    """The control: it goes on to its end."""
    settings = replace(finished_run.settings, checkpoint_dir=tmp_path / "run", model_file=tmp_path / "model.pt")
    monkeypatch.setattr(StopFlag, "check", lambda self: None)
    assert signalled(settings, "step", signal.SIGTERM, tmp_path / "errors")[0] == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_second_signal_ends_at_once_and_loses_nothing(finished_run, tmp_path, number, code):
    settings = replace(finished_run.settings, checkpoint_dir=tmp_path / "run", model_file=tmp_path / "model.pt")
    ended, seconds = signalled(settings, "save", number, tmp_path / "errors", twice=True)
    assert ended == code
    assert seconds < 2.3
    assert "Traceback" not in (tmp_path / "errors").read_text()
    assert steps_of(settings) == ["step_00000005.pt"]
    train.main(settings, fresh=False)
    assert left_over(tmp_path) == []
    assert same(newest_checkpoint(settings.checkpoint_dir)[1], finished_run.last)


# --- whoever can read what it prints ----------------------------------------------------------------------------------


def endless(finished_run, folder):
    """The settings of a run that only a signal ends, with a line for each step, and its command line."""
    settings = replace(
        finished_run.settings,
        checkpoint_dir=folder / "run",
        model_file=folder / "model.pt",
        max_steps=1_000_000,
        checkpoint_every=1_000_000,
        eval_every=0,
        log_every=1,
        compile="off",  # which so long a run would begin with
    )
    return settings, [sys.executable, str(ROOT / "train.py"), *flags(settings)]


def read_until(terminal: int, pattern: bytes, seconds: float = 60) -> bytes:
    """Read a terminal until it has shown the pattern."""
    shown, end = b"", time.monotonic() + seconds
    while not re.search(pattern, shown):
        assert select.select([terminal], [], [], max(0, end - time.monotonic()))[0], shown[-2000:]
        shown += os.read(terminal, 1 << 16)
    return shown


@pytest.mark.skipif(not (shutil.which("bash") and shutil.which("tee")), reason="needs bash and tee")
@pytest.mark.parametrize("pipe", ["| tee", "2>&1 | tee"])
def test_ctrl_c_in_a_shell_that_ends_tee_as_well_saves_all_the_same(finished_run, tmp_path, pipe):
    """The terminal sends Ctrl-C to both, so what training says of it has no reader, or only stderr."""
    settings, command = endless(finished_run, tmp_path)
    pid, terminal = pty.fork()
    if not pid:
        os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
    line = f"{{ {shlex.join(command)}; echo $? > {tmp_path}/code; }} {pipe} {tmp_path}/train.log\n"
    (tmp_path / "command").write_text(line)  # longer than a terminal's line may be
    os.write(terminal, f". {tmp_path / 'command'}\n".encode())
    read_until(terminal, rb"step +\d+/1000000 ")
    os.write(terminal, b"\x03")
    if pipe == "| tee":  # stderr is the terminal
        read_until(terminal, rb"saved as .*The same command resumes it")
    os.write(terminal, b"exit\n")
    assert end_of(pid) == 130  # of the last command
    os.close(terminal)
    assert (tmp_path / "code").read_text() == "130\n"
    (step,) = steps_of(settings)
    assert int(step[5:13]) >= log_of(settings)[-1]["step"] > 0


def test_a_closed_terminal_saves(finished_run, tmp_path):
    """Closing it sends SIGHUP, and from then on every line fails."""
    settings, command = endless(finished_run, tmp_path)
    pid, terminal = pty.fork()
    if not pid:
        os.execv(command[0], command)
    read_until(terminal, rb"step +\d+/1000000 ")
    os.close(terminal)
    assert end_of(pid) == 128 + signal.SIGHUP
    assert len(steps_of(settings)) == 1


def test_under_nohup_a_closed_terminal_changes_nothing(finished_run, tmp_path):
    settings = replace(finished_run.settings, checkpoint_dir=tmp_path / "run", model_file=tmp_path / "model.pt")
    settings = replace(settings, max_steps=150, checkpoint_every=150, eval_every=0, log_every=1)
    command = [sys.executable, str(ROOT / "train.py"), *flags(settings)]
    terminal, theirs = pty.openpty()
    ignored = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen([sys.executable, "-c", ignored, *command], stdout=theirs, stderr=theirs)
    os.close(theirs)
    read_until(terminal, rb"step +\d+/150 ")
    os.close(terminal)
    process.send_signal(signal.SIGHUP)
    assert process.wait(120) == 0
    assert log_of(settings)[-1]["step"] == 150 and settings.model_file.exists()
