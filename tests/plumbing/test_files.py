"""plumbing/files.py: a file is there whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from data_scripts import (
    ROOT,
)

from plumbing.files import whole_file


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


def test_whole_file_appears_at_the_end(tmp_path):
    path = tmp_path / "new" / "folder" / "x"
    with whole_file(path) as file:
        file.write(b"half")
        assert not path.exists()
        file.write(b" and whole")
    assert path.read_bytes() == b"half and whole"
    assert names(path.parent) == {"x"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_whole_file_leaves_the_earlier_file_after_an_exception(tmp_path, error):
    path = tmp_path / "x"
    path.write_bytes(b"earlier")
    with pytest.raises(error), whole_file(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"earlier"
    assert names(tmp_path) == {"x"}


def test_whole_file_leaves_the_earlier_file_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"earlier")
    monkeypatch.setattr(os, "fsync", raise_no_space)
    with pytest.raises(OSError, match="No space"), whole_file(path) as file:
        file.write(b"late")
    assert path.read_bytes() == b"earlier"
    assert names(tmp_path) == {"x"}


def raise_no_space(*_):
    raise OSError(28, "No space left on device")


def test_whole_file_reaches_the_disk_before_its_name_does(tmp_path, monkeypatch):
    order = []
    real = {name: getattr(os, name) for name in ("fsync", "replace")}
    for name in real:
        monkeypatch.setattr(os, name, lambda *args, name=name: (order.append(name), real[name](*args)))
    with whole_file(tmp_path / "x") as file:
        file.write(b"text")
    assert order[:2] == ["fsync", "replace"]


@pytest.mark.skipif(os.name != "posix", reason="kills its own process")
def test_whole_file_leaves_the_earlier_file_when_the_process_is_killed(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"earlier")
    code = """
import os, signal, sys
from plumbing.files import whole_file
with whole_file(sys.argv[1]) as file:
    file.write(b"half" * 100_000)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code, path], cwd=ROOT).returncode == -9
    assert path.read_bytes() == b"earlier"
