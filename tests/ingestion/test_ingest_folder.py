"""ingestion/ingest_folder.py: which files it takes, how it decodes them, and what it counts."""

import os
import re
import sys
import sysconfig
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from data_scripts import (
    INGEST,
    M,
    refused,
)

from plumbing.text import byte_size


def make_sources(folder: Path) -> dict[str, str]:
    """A folder of all that a folder of sources can hold. Returns the files that should be taken, and their text."""
    (folder / "package" / "inner").mkdir(parents=True)
    taken = {
        "a.py": "import os\n",
        "package/b.py": "def b():\r\n\treturn 1\r\n",  # line ends are kept here
        "package/inner/latin.py": "# -*- coding: latin-1 -*-\n# café\n",
        "package/bom.py": "# with a byte order mark: é\n",
        "package/second.py": "#!/usr/bin/env python\n# vim: set fileencoding=cp1252 :\n# 5 €\n",  # declared in line 2
        "package/utf8.py": "# 日本語 🐍\n",
        "package/space name.py": "x = 1",
    }
    for name, text in taken.items():
        (folder / name).write_bytes(text.encode())
    (folder / "package/inner/latin.py").write_bytes("# -*- coding: latin-1 -*-\n# café\n".encode("latin-1"))
    (folder / "package/bom.py").write_bytes(b"\xef\xbb\xbf" + taken["package/bom.py"].encode())
    (folder / "package/second.py").write_bytes(taken["package/second.py"].encode("cp1252"))
    left_out = {
        "undecodable.py": b"# caf\xe9\n",
        "wrongly_declared.py": b"# coding: ascii\n# caf\xc3\xa9\n",
        "unknown_encoding.py": b"# coding: no-such-encoding\nx = 1\n",
        "no_text_encoding.py": b"# coding: hex\n616263\n",
        "bom_and_latin.py": b"\xef\xbb\xbf# coding: latin-1\n",
        "half_a_pair.py": b"# coding: utf-7\n# +2AA-\n",  # decodes to a lone surrogate, which is no text
        "binary.py": b"x = 1\0\n",
        "utf16.py": "x = 2\n".encode("utf-16"),
        "nothing.py": b"",
        "white.py": b" \n\t\n",
        "long.py": b"x = 3  # " + b"x" * 3000 + b"\n",
        "package/copy_of_a.py": b"import os\n",
        "package/copy_in_another_encoding.py": b"\xef\xbb\xbfimport os\n",
    }
    for name, data in left_out.items():
        (folder / name).write_bytes(data)
    others = [
        "notes.txt",
        ".git/hook.py",
        "__pycache__/c.py",
        "node_modules/n.py",
        "env/bin/v.py",
        "site-packages/s.py",
    ]
    for name in [*others, "env/pyvenv.cfg"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"# not to be taken: {name}\n")
    return taken


REASONS = {"undecodable": 6, "binary": 2, "empty": 2, "longer than 3,000 bytes": 1, "duplicate": 2}
BY_NAME = {
    "not *.py": 1,
    "hidden": 1,
    "folders of packages, tests or compiled files": 3,
    "virtual environments: other people's packages": 1,
}


def left_out_counts(out: str) -> dict[str, int]:
    return {
        reason: int(n.replace(",", ""))
        for reason, n in re.findall(r"left out, (.*): ([\d,]+) \(.*\)$", out, re.MULTILINE)
    }


def rows_of(path: Path) -> dict[str, str]:
    return {row["path"]: row["content"] for row in pq.read_table(path).to_pylist()}


def test_sources_are_gathered_and_the_rest_is_counted(run, project):
    taken = make_sources(project / "src")
    result = run(INGEST, "src", "--output", "out/f.parquet", "--max-bytes", "3000")
    assert (result.code, result.err) == (0, "")
    assert rows_of(project / "out" / "f.parquet") == taken
    assert left_out_counts(result.out) == REASONS | BY_NAME
    assert "left out, not *.py: 1 (.txt)" in result.out
    assert f"left out, hidden: 1 ({Path('src') / '.git'})" in result.out
    size = byte_size(sum(len(text.encode()) for text in taken.values()))
    assert f"{len(taken)} files, {size} of text, in {Path('out') / 'f.parquet'}" in result.out
    # Whatever matches is either taken or counted.
    folders = "package package/inner .".split()
    assert len(taken) + sum(REASONS.values()) == sum(len(list((project / "src" / f).glob("*.py"))) for f in folders)


def test_the_schema_is_that_of_ingestion(run, project):
    taken = make_sources(project / "src")
    run(INGEST, "src", "--output", "f.parquet", "--max-bytes", "3000")
    table = pq.read_table("f.parquet")
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("content", "string"),
        ("path", "string"),
    ]
    assert {row["path"]: row["content"] for row in table.to_pylist()} == taken


def test_the_same_folder_gives_the_same_file(run, project):
    make_sources(project / "src")
    run(INGEST, "src", "--output", "1.parquet")
    run(INGEST, "src", "--output", "2.parquet")
    assert Path("1.parquet").read_bytes() == Path("2.parquet").read_bytes()
    paths = pq.read_table("1.parquet").column("path").to_pylist()
    assert paths.index("a.py") < paths.index("package/b.py") < paths.index("package/inner/latin.py")


def test_pattern_and_several_folders(run, project):
    for name in ("one/a.txt", "one/a.py", "two/b.txt", "two/deep/c.txt"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(f"# {name}")
    assert run(INGEST, "one", "two", "one", "--pattern", "*.txt", "--output", "f.parquet").code == 0
    assert list(rows_of(Path("f.parquet"))) == ["a.txt", "b.txt", "deep/c.txt"]  # the second "one": duplicates


def test_links_do_no_harm(run, project):
    folder = project / "src"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.py").write_text("x = 1\n")
    (folder / "inner" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "folder.py").symlink_to(folder / "inner", target_is_directory=True)
    (folder / "broken.py").symlink_to("nowhere.py")
    (folder / "itself.py").symlink_to("itself.py")
    (folder / "z_again.py").symlink_to("a.py")
    expected = {"not a regular file": 2, "the same file again": 1, "links to folders": 2}
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.py")  # reading it would wait for ever
        expected["not a regular file"] += 1
    result = run(INGEST, "src", "--output", "f.parquet")
    assert (result.code, result.err) == (0, "")
    assert rows_of(Path("f.parquet")) == {"a.py": "x = 1\n"}
    assert left_out_counts(result.out) == expected


def test_a_name_that_is_not_utf8(run, project):
    (project / "src").mkdir()
    name = os.fsdecode(os.fsencode(project / "src") + b"/caf\xe9.py")
    try:
        Path(name).write_text("x = 1\n")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    result = run(INGEST, "src", "--output", "f.parquet")
    assert (result.code, result.err) == (0, "")
    assert rows_of(Path("f.parquet")) == {"caf\ufffd.py": "x = 1\n"}


def test_without_folders_the_standard_library_is_gathered(run, project, monkeypatch):
    for name in (
        "ast.py",
        "json/decoder.py",
        "test/t.py",
        "json/tests/u.py",
        "idlelib/idle_test/v.py",
        "site-packages/w.py",
    ):
        (project / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (project / "lib" / name).write_text(f"# {name}\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: {"stdlib": str(project / "lib")}[name])
    assert run(INGEST).code == 0
    assert list(rows_of(project / "data" / "parquet" / "folder.parquet")) == ["ast.py", "json/decoder.py"]
    assert run(INGEST, "lib", "--output", "all.parquet").code == 0  # of other folders the tests are code like any
    assert len(rows_of(Path("all.parquet"))) == 5


def test_text_is_written_in_row_groups(project, monkeypatch):
    from ingestion import ingest_folder
    from plumbing import parquet

    (project / "src").mkdir()
    for i in range(10):
        (project / "src" / f"{i}.py").write_text(f"x = {i}\n")
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 15)
    monkeypatch.setattr(sys, "argv", ["ingest_folder.py", "src", "--output", "f.parquet"])
    ingest_folder.main()
    assert pq.ParquetFile("f.parquet").metadata.num_row_groups == 4  # 3, 3, 3 and 1 files of 6 bytes
    assert list(rows_of(Path("f.parquet"))) == [f"{i}.py" for i in range(10)]


def test_a_folder_without_text_is_refused(run, project):
    (project / "src").mkdir()
    (project / "f.parquet").write_bytes(b"earlier")
    refused(run(INGEST, "src", "--output", "f.parquet"), "No file matching '*.py' was taken", "none found")
    (project / "src" / "a.py").write_bytes(b"")
    (project / "src" / "b.py").write_bytes(b"\0")
    result = run(INGEST, "src", "--output", "f.parquet")
    refused(result, "No file matching '*.py' was taken", "empty: 1 (", "binary: 1 (")
    refused(run(INGEST, "src", "--pattern", "*.js", "--output", "f.parquet"), "'*.js'")
    assert (project / "f.parquet").read_bytes() == b"earlier"
    assert sorted(os.listdir(project)) == ["f.parquet", "src"]


def test_a_folder_that_is_none_is_named(run, project):
    (project / "file.py").write_text("x = 1\n")
    refused(run(INGEST, "nowhere"), "nowhere is not a folder")
    refused(run(INGEST, "file.py"), "file.py is not a folder. For one text", "name it with --corpus from step 4 on.")


def test_the_pattern_for_the_files_that_there_are_is_offered(run, project):
    for name in ("a.txt", "b/c.txt", "d.md", "e", ".git/f.txt", "__pycache__/g.pyc"):
        (project / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (project / "src" / name).write_text("x")
    refused(run(INGEST, "src"), "There are files for --pattern '*.txt' (2), --pattern '*.md' (1).")
    assert run(INGEST, "src", "--pattern", "*.txt", "--output", "f.parquet").code == 0


def test_a_lone_byte_order_mark_is_empty(run, project):
    (project / "src").mkdir()
    (project / "src" / "a.py").write_text("x = 1\n")
    (project / "src" / "bom.py").write_bytes(b"\xef\xbb\xbf")
    assert left_out_counts(run(INGEST, "src", "--output", "f.parquet").out) == {"empty": 1}


# === other files than Python's ========================================================================================


def test_a_line_that_declares_an_encoding_counts_for_python_files(run, project):
    """Elsewhere such words are text, unless the file is not UTF-8."""
    text = "# Character encoding: latin-1 and UTF-8 compared\n\nnaïve café\n"
    ascii_declared = "# encoding: ascii\nname: naïve\n"
    files = {
        "a.md": text.encode(),
        "b.yml": ascii_declared.encode(),
        "c.rb": "# encoding: iso-8859-1\n# café\n".encode("latin-1"),
        "d.txt": b"\xef\xbb\xbf" + text.encode(),
        "e.py": "# coding: latin-1\n# café\n".encode("latin-1"),
        "f.PY": "# coding: latin-1\n# naïve\n".encode("latin-1"),
        "g.pyx": "# coding: cp1252\n# 5 €\n".encode("cp1252"),
        "h.py": b"# coding: ascii\n# caf\xc3\xa9\n",
        "i.md": b"caf\xe9",
    }
    (project / "src").mkdir()
    for name, data in files.items():
        (project / "src" / name).write_bytes(data)
    result = run(INGEST, "src", "--pattern", "*", "--output", "f.parquet")
    assert rows_of(Path("f.parquet")) == {
        "a.md": text,
        "b.yml": ascii_declared,
        "c.rb": "# encoding: iso-8859-1\n# café\n",
        "e.py": "# coding: latin-1\n# café\n",
        "f.PY": "# coding: latin-1\n# naïve\n",
        "g.pyx": "# coding: cp1252\n# 5 €\n",
    }
    assert left_out_counts(result.out) == {"undecodable": 2, "duplicate": 1}


def test_endings_count_in_any_case(run, project):
    (project / "src").mkdir()
    for name in ("a.py", "B.PY", "C.Py"):
        (project / "src" / name).write_text(f"# {name}\n")
    assert run(INGEST, "src", "--output", "f.parquet").code == 0
    assert list(rows_of(Path("f.parquet"))) == ["B.PY", "C.Py", "a.py"]


def test_files_that_extraction_will_cut_are_counted(run, project):
    (project / "src").mkdir()
    (project / "src" / "a.py").write_text(f"a\n{M}\nb\n")
    (project / "src" / "b.py").write_text(f"print('{M}')\n")
    assert (
        "with a line <|endoftext|>, where extraction cuts them: 1\n" in run(INGEST, "src", "--output", "f.parquet").out
    )


def test_folders_and_files_that_cannot_be_read_are_named(run, project, monkeypatch):
    for name in ("src/closed/a.py", "src/b.py", "src/.ipynb_checkpoints/b.py", "src/._b.py"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(f"# {name}\n")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    out = run(INGEST, "src", "--output", "f.parquet").out
    assert left_out_counts(out) == {"hidden": 2, "folders that cannot be opened": 1}
    assert str(Path("src") / "closed") in out
