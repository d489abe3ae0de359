"""A small finished training run, what tests do with its files, and what a loader says when it refuses one."""

import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from faults import end_of, start

from config import CHAR, Settings
from model.storage import safe_load
from model.storage.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from model.storage.model_file import load_model
from plumbing import files
from plumbing.errors import UserError, run_script

LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory by /proc")


class FinishedRun(NamedTuple):
    """A run of 10 steps: its settings, and the content of its checkpoints of step 5 and 10."""

    settings: Settings
    first: dict
    last: dict


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> FinishedRun:
    from conftest import make_pipeline  # which imports this module

    import train  # conftest.py imports this module for all tests; few of them train

    settings = make_pipeline(tmp_path_factory.mktemp("finished"), CHAR, "char")
    settings = replace(settings, debug=False, sample_tokens=0)
    train.main(settings, fresh=False)
    folder = settings.checkpoint_dir
    return FinishedRun(settings, load_checkpoint(folder / "step_00000005.pt"), newest_checkpoint(folder)[1])


@pytest.fixture
def interrupted_run(finished_run, tmp_path) -> Settings:
    """The settings of the same run in another folder, with only the checkpoint of step 5."""
    folder = tmp_path / "run"
    save_checkpoint(folder, 5, finished_run.first, keep=2)
    return replace(finished_run.settings, checkpoint_dir=folder, model_file=tmp_path / "model.pt")


def script(settings: Settings) -> Callable[[], None]:
    """What `python train.py` does with these settings."""
    import train

    return lambda: run_script(lambda: train.main(settings, fresh=False))


@contextmanager
def written_in_place(path, check=None):
    """What whole_file() protects from: a file that is written under its final name."""
    with files.open_early(path, "wb") as file:  # Faults puts its own there
        yield file


def write_in_place(patch: pytest.MonkeyPatch) -> None:
    """Save checkpoints and models without the protection of whole_file()."""
    patch.setattr(safe_load, "whole_file", written_in_place)


def refusal(path: Path) -> str | None:
    """What load_model() says about a file that it refuses; None if it accepts the file."""
    try:
        load_model(path)
    except UserError as error:
        assert "\n" not in str(error) and path.name in str(error) and len(str(error)) < 700
        return str(error)
    return None


def refused_checkpoint(path: Path) -> str | None:
    """The same for load_checkpoint()."""
    try:
        load_checkpoint(path)
    except ValueError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


def peak_growth(function) -> float:
    """By how many MB the memory of this process peaks above its present size while a function runs."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the earlier peak

    def read(name):
        return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1000

    before = read("VmRSS")
    function()
    return read("VmHWM") - before


def check_all_refused(paths: list[Path], errors: Path) -> None:
    """load_model() must refuse each file within 64 MB of memory; the largest files have 13 MB. This runs in a process
    of its own, which must end normally and write nothing to stderr, the file `errors`."""

    def check() -> None:
        for path in paths:
            messages = []
            grown = peak_growth(lambda path=path, messages=messages: messages.append(refusal(path)))
            assert messages[0], path.name
            assert grown < 64, (path.name, grown)

    assert end_of(start(check, errors=errors)) == 0, errors.read_text()
    assert errors.read_text() == ""
