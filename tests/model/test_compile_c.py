"""How one_token.c is compiled, kept and found again, and what happens where it cannot be."""

import ctypes
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from sources import ROOT

from model import compile_c
from model.compile_c import ONE_TOKEN, c_compiler, library_file

pytestmark = pytest.mark.skipif(c_compiler() is None, reason="needs a C compiler")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The cache folder, which is not there yet. Compiles without optimisation, which takes a tenth of the time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compile_c, "FLAGS", [flag.replace("-O3", "-O0") for flag in compile_c.FLAGS])
    return tmp_path / "cache" / "tinylittlegpt"


@pytest.fixture
def uncached():
    """load_or_compile() as in a new process."""
    compile_c.load_or_compile.cache_clear()
    yield
    compile_c.load_or_compile.cache_clear()


def test_compiled_once_and_found_again(folder, monkeypatch):
    path = library_file(c_compiler(), ONE_TOKEN)
    assert os.listdir(folder) == [path.name]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.setattr(compile_c, "rename", None)  # it is not written again
    assert library_file(c_compiler(), ONE_TOKEN) == path


def test_several_processes_compile_at_once(folder):
    """As the workers of one training do, the first time."""
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: library_file(c_compiler(), ONE_TOKEN), range(4)))
    assert {path.name for path in paths} == set(os.listdir(folder))


@pytest.mark.parametrize("change", ["source", "flags", "processor", "compiler"])
def test_compiled_anew_when_it_is_made_of_something_else(folder, monkeypatch, tmp_path, change):
    source, compiler = ONE_TOKEN, c_compiler()
    path = library_file(compiler, source)
    if change == "source":
        source = tmp_path / "one_token.c"
        source.write_bytes(ONE_TOKEN.read_bytes() + b"int changed;\n")
    elif change == "flags":
        monkeypatch.setattr(compile_c, "FLAGS", [*compile_c.FLAGS, "-g"])
    elif change == "processor":
        monkeypatch.setattr(compile_c, "processor", lambda: "another one")
    else:
        script = tmp_path / "cc"
        script.write_text(f'#!/bin/sh\ntest "$1" = --version && echo newer && exit\nexec {compiler} "$@"\n')
        script.chmod(0o755)
        compiler = str(script)
    other = library_file(compiler, source)
    assert other != path and path.exists()
    assert hasattr(ctypes.PyDLL(str(other)), "changed") == (change == "source")


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: data[::-1]])
def test_a_damaged_file_is_replaced(folder, damage):
    path = library_file(c_compiler(), ONE_TOKEN)
    data = path.read_bytes()
    path.write_bytes(damage(data))
    again = library_file(c_compiler(), ONE_TOKEN)
    assert ctypes.PyDLL(str(again)).step
    assert [file.read_bytes() for file in folder.iterdir() if file.name == again.name] == [again.read_bytes()]
    assert compile_c.digest(again.read_bytes()) in again.name


def only_line(capsys) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    start, _, reason = err.partition(": ")
    assert start == "one_token.c cannot be used here, so computing is slower"
    assert reason.count("\n") == 1
    return reason


def test_a_folder_of_others_is_not_used(folder, uncached, capsys):
    """What somebody else could have put there would be run."""
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert compile_c.compiled_library(ONE_TOKEN) is None
    assert compile_c.compiled_library(ONE_TOKEN) is None  # says so once
    assert "not a folder that you alone can write to" in only_line(capsys)
    assert not os.listdir(folder)


def test_a_link_is_not_followed(folder, uncached, capsys, tmp_path):
    folder.parent.mkdir()
    folder.symlink_to(tmp_path)
    assert compile_c.compiled_library(ONE_TOKEN) is None
    assert "not a folder that you alone" in only_line(capsys)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(folder, uncached, capsys):
    folder.mkdir(parents=True)
    folder.chmod(0o500)
    assert compile_c.compiled_library(ONE_TOKEN) is None
    assert "ermission denied" in only_line(capsys)


def test_a_cache_that_is_no_folder(folder, uncached, capsys):
    folder.parent.write_text("")
    assert compile_c.compiled_library(ONE_TOKEN) is None
    only_line(capsys)


def test_a_compiler_that_fails(folder, uncached, capsys, tmp_path, monkeypatch):
    source = tmp_path / "one_token.c"
    source.write_text("int step(;\n")
    assert compile_c.compiled_library(source) is None
    assert "one_token.c:1:" in only_line(capsys)
    assert not os.listdir(folder)


def test_without_a_compiler_nothing_is_said(folder, uncached, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compile_c.compiled_library(ONE_TOKEN) is None
    assert capsys.readouterr() == ("", "")
    assert not folder.exists()


START = """
import sys, threading
from config import CHAR
from model.generation.command_line import generation_flags
generation_flags(CHAR, "", [])
for thread in threading.enumerate()[1:]:
    thread.join()
assert "torch" not in sys.modules
"""


def test_compiling_starts_with_the_flags_of_a_generator(folder):
    """Before torch is imported, which takes longer."""
    subprocess.run([sys.executable, "-c", START], cwd=ROOT, check=True)
    assert len(os.listdir(folder)) == 1
