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

from model.tokenization.tokenizer import load_tokenizer
from plumbing import files, page
from plumbing.command_line import PAGE_BEGINS, refuse_no_page, refuse_same
from plumbing.errors import UsageError, UserError
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


def test_whole_file_checks_its_product_before_the_earlier_file_is_gone(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"earlier")
    seen = []
    with whole_file(path, check=lambda temporary: seen.append((temporary.read_bytes(), path.read_bytes()))) as file:
        file.write(b"new")
    assert seen == [(b"new", b"earlier")] and path.read_bytes() == b"new"
    with pytest.raises(UserError), whole_file(path, check=load_tokenizer) as file:
        file.write(b"no tokenizer")
    assert path.read_bytes() == b"new" and names(tmp_path) == {"x"}


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


def test_the_system_starts_to_write_a_long_file_before_it_is_flushed(tmp_path, monkeypatch):
    ranges = []
    advise = lambda _, start, size, advice: ranges.append((start, start + size))  # noqa: E731
    monkeypatch.setattr(os, "posix_fadvise", advise, raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_DONTNEED", 4, raising=False)
    monkeypatch.setattr(files, "WRITTEN_EARLY", 1 << 21)
    with whole_file(tmp_path / "x") as file:
        for _ in range(7):
            file.write(bytes(1 << 20))
        assert ranges[-1][1] >= 4 << 20 and [0, *(end for _, end in ranges)][:-1] == [start for start, _ in ranges]


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
from plumbing.files import whole_file
with whole_file(sys.argv[1]) as file:
    file.write(b"half" * 100_000)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code, path], cwd=ROOT).returncode == -9
    assert path.read_bytes() == b"earlier"


def test_a_link_stays_a_link_and_the_file_that_it_names_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "x")
    for text in (b"new", b"newer"):  # the first time, the link leads nowhere
        with whole_file(tmp_path / "link") as file:
            file.write(text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "x").read_bytes() == text
    assert names(tmp_path) == {"there", "link"} and names(tmp_path / "there") == {"x"}


def test_links_in_a_circle_are_replaced(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    refuse_same({"--output": tmp_path / "a"}, tmp_path / "c")
    with whole_file(tmp_path / "a") as file:
        file.write(b"text")
    assert (tmp_path / "a").read_bytes() == b"text"


def test_a_page_replaces_a_page_and_no_other_file(tmp_path):
    refuse_no_page("--html", None)
    for content in (b"", b"<!doctype html>\n<html>"):
        (tmp_path / "page").write_bytes(content)
        refuse_no_page("--html", tmp_path / "page")
    with pytest.raises(UsageError, match="--html would replace .*page, which is read here"):
        refuse_no_page("--html", tmp_path / "page", tmp_path / "page")
    (tmp_path / "page").write_bytes(b"PK\3\4, a model")
    with pytest.raises(UsageError, match="--html would replace .*page, which is no page. Name another file."):
        refuse_no_page("--html", tmp_path / "page")
    folder = Path(page.__file__).parents[1] / "scripts"
    writers = [path.read_text("utf-8") for path in folder.glob("*.py") if " write_page(" in path.read_text("utf-8")]
    assert len(writers) == 5 and all(" refuse_no_page(" in text for text in writers)
    templates = re.findall(r'fill_page\(\s*"(\w+\.html)"', "".join(writers))
    assert len(templates) == 5
    assert all((folder / "pages" / name).read_bytes().startswith(PAGE_BEGINS) for name in templates)


def test_two_writers_of_one_file_do_not_share_a_temporary_file(tmp_path):
    """Whatever their process ids are: two containers that share a folder have the same ones."""
    with whole_file(tmp_path / "x") as first:
        first.write(b"the first")
        with whole_file(tmp_path / "x") as second:
            second.write(b"2")
        assert (tmp_path / "x").read_bytes() == b"2"
    assert (tmp_path / "x").read_bytes() == b"the first"
    assert names(tmp_path) == {"x"}


def test_only_what_a_killed_writer_left_is_removed(tmp_path):
    own, others = "x.0123456789abcdef.tmp", {"x.best.tmp", "x.1.tmp", "x.tmp", "y.0123456789abcdef.tmp"}
    for name in {own, *others}:
        (tmp_path / name).touch()
    with whole_file(tmp_path / "x"):
        pass
    assert names(tmp_path) == {"x", *others}


def test_a_lock_on_a_file_that_was_removed_meanwhile_keeps_nobody_out(tmp_path, monkeypatch):
    """Another process removed or moved the file after we opened it: the lock must be on the one that is there now."""
    real, removed = files.try_lock, []

    def try_lock(file):
        if not removed:
            removed.append(os.unlink(tmp_path / "lock"))
        return real(file)

    monkeypatch.setattr(files, "try_lock", try_lock)
    with files.open_locked(tmp_path / "lock"):
        assert removed and files.open_locked(tmp_path / "lock") is None
    files.open_locked(tmp_path / "lock").close()


def test_an_output_has_one_writer_at_a_time(tmp_path):
    with files.only_writer(tmp_path / "x"):
        (tmp_path / "link").symlink_to("x")
        for path in ("x", "link"):
            with pytest.raises(UserError, match="Another run is writing"), files.only_writer(tmp_path / path):
                pass
        with files.only_writer(tmp_path / "y"):
            pass
    with files.only_writer(tmp_path / "x"):
        pass
    assert names(tmp_path) == {"link"}


def test_folders_and_renames_go_through_the_functions_that_flush():
    """Benchmarks may do as they like: what they write is not kept. What is in a cache can be made again."""
    calls = re.compile(r"\.mkdir\(|\.makedirs\(|os\.rename\(|os\.replace\(|\w\.rename\(|shutil\.move")
    found = [name for name, source in SOURCES.items() if calls.search(source) and "benchmarks" not in name]
    assert found == ["model/compile_c.py", "plumbing/files.py"]
