"""The quickstart beside files of others: what it takes for its own, what it does again, and what it leaves alone."""

import contextlib
import os
import sys

import pytest

from plumbing.errors import UserError
from scripts import quickstart


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A quickstart of four stages whose commands write their title, or what text says. start() returns the titles of
    the stages that it ran; `stop` kills it in that stage, after it has written."""
    a, b, c = (tmp_path / name for name in "abc")
    stages = {"one": (None, (a,)), "two": (a, (b,)), "three": (b, (c,)), "train": (None, ())}
    monkeypatch.setattr(quickstart, "STAMPS", tmp_path / "quickstart.json")
    first, names = quickstart.STAGES[0], stages.items()
    planted = [first._replace(title=t, command=t, reads=reads, writes=writes) for t, (reads, writes) in names]
    monkeypatch.setattr(quickstart, "STAGES", planted)
    monkeypatch.setattr(sys, "argv", ["quickstart.py"])

    def run(text="", stop=None):
        ran = []

        def command(title):
            ran.append(title)
            for path in stages[title][1]:
                path.write_text(title + text)
            if title == stop:
                raise KeyboardInterrupt
            return 7 * (title == "train")  # so that no log of a training is read

        monkeypatch.setattr(quickstart, "run_command", command)
        with contextlib.suppress(KeyboardInterrupt):
            quickstart.main()
        return ran

    return run


def test_what_is_done_is_skipped_whatever_its_date(start, tmp_path):
    assert start() == ["one", "two", "three", "train"]
    os.utime(tmp_path / "a", (2e9, 2e9))
    os.utime(tmp_path / "b", (1e9, 1e9))
    assert start() == ["train"]


def test_what_is_lost_is_made_again_and_what_depends_on_it_only_if_it_differs(start, tmp_path):
    start()
    (tmp_path / "a").unlink()
    assert start() == ["one", "train"]
    (tmp_path / "a").unlink()
    assert start(" newer") == ["one", "two", "three", "train"]


def test_a_stage_that_was_killed_is_run_again(start):
    assert start(stop="two") == ["one", "two"]
    assert start() == ["two", "three", "train"]


@pytest.mark.parametrize("name", ["a", "b", "c"])
@pytest.mark.parametrize("before", [True, False])
def test_files_of_others_are_left_alone_and_named_before_anything_runs(start, tmp_path, name, before):
    if before:
        start()
    (tmp_path / name).write_text("mine")
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=f"{name} is not the quickstart's"):
        start()
    assert files == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_failure_names_the_command_whose_flags_its_message_means(start, capsys):
    start()
    assert "Flags that it names are those of\n  python train\n" in capsys.readouterr().err
