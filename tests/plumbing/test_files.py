"""plumbing/files.py: a file is there whole or not at all."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from data_scripts import (
    ROOT,
)
from faults import unflushed_names
from sources import SOURCES

from plumbing.files import make_folder, rename, whole_file


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
        order.clear()
    assert order[:3] == ["fsync", "replace", "fsync"]


LINUX = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks /proc which file was flushed")


@LINUX
def test_the_names_of_new_folders_and_files_are_flushed(tmp_path):
    with unflushed_names() as unflushed:
        with whole_file(tmp_path / "a" / "b" / "c" / "x") as file:
            file.write(b"text")
        assert unflushed == set()
        rename(tmp_path / "a" / "b", tmp_path / "d")
        assert unflushed == set()
        os.mkdir(tmp_path / "left by a run that was killed")
        make_folder(tmp_path / "left by a run that was killed")
        assert unflushed == set()
        os.mkdir(tmp_path / "control")
        assert unflushed == {str(tmp_path)}


@pytest.mark.skipif(os.name != "posix", reason="kills its own process")
def test_whole_file_leaves_the_earlier_file_when_the_process_is_killed(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"earlier")
    code = """
import os, signal, sys
from plumbing.files import make_folder, rename, whole_file
with whole_file(sys.argv[1]) as file:
    file.write(b"half" * 100_000)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code, path], cwd=ROOT).returncode == -9
    assert path.read_bytes() == b"earlier"


def test_folders_and_renames_go_through_the_functions_that_flush():
    """Benchmarks may do as they like: what they write is not kept."""
    calls = re.compile(r"\.mkdir\(|\.makedirs\(|os\.rename\(|os\.replace\(|\w\.rename\(|shutil\.move")
    found = [name for name, source in SOURCES.items() if calls.search(source) and "benchmarks" not in name]
    assert found == ["plumbing/files.py"]
