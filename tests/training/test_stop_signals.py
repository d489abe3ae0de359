"""Ctrl-C and SIGTERM: training saves the current step and ends, wherever it is; a second signal ends it at once."""

import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from faults import end_of, left_over, start
from runs import same, steps_of
from stored_runs import script

import train
from model.monitoring import reporter
from model.storage.checkpoint import newest_checkpoint
from model.training.stop import StopFlag

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
                # Three steps are timed before the first; the fifth sample is that of step 5, after steps 0, 1, 2 and 4.
                if len(calls) == {"step": 5, "sampling": 5}.get(place, 2):
                    os.write(reached[1], b"x")
                    time.sleep(0.3)
                return real(*args, **kwargs)

            patch.setattr(module, name, waiting)
            script(settings)()

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


@pytest.mark.parametrize("place", ["evaluation", "sampling", "save", "step"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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
