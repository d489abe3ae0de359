"""The scripts of steps 1 to 5, run as a user runs them: what they print, write and refuse, and every script's --help.

Most run inside this process, which is quick; the defaults are moved to a temporary folder first. Some run as processes.
"""

import hashlib
import json
import os
import random
import re
import runpy
import subprocess
import sys
import sysconfig
import time
import tracemalloc
from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import tqdm

import config
import dataset
from model.tokenization import bpe_trainer
from model.tokenization import tokenizer as tokenizer_file
from plumbing import corpus as corpus_file
from plumbing.corpus import read_documents

ROOT = Path(__file__).resolve().parents[2]
M = "<|endoftext|>"

INGEST = "ingestion/ingest_folder.py"
EXTRACT = "scripts/extract_parquets_to_text.py"
SAMPLE = "scripts/sample_corpus_subset.py"
TRAIN_CHAR = "scripts/train_tokenizer_character_level.py"
TRAIN_BPE = "scripts/train_tokenizer_bpe.py"
PREPARE_CHAR = "scripts/prepare_dataset.py"
PREPARE_BPE = "scripts/prepare_dataset_bpe.py"
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("train*.py", "generate*.py", "ingestion/*.py", "scripts/*.py")
    for path in ROOT.glob(pattern)
)

DOCUMENTS = [f"import os\n\n\ndef f{i}(x):\n    return x + {i}  # naïve {'ab' * (i % 7)}\n" for i in range(60)]


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """Every default path in a temporary folder, so that no test can touch the project's own data."""

    def moved(settings):
        paths = {f.name: getattr(settings, f.name) for f in fields(settings) if f.type is Path}
        return replace(settings, **{name: tmp_path / path.relative_to(ROOT) for name, path in paths.items()})

    monkeypatch.setattr(config, "CHAR", moved(config.CHAR))
    monkeypatch.setattr(config, "BPE", moved(config.BPE))
    monkeypatch.setattr(config, "DATA", tmp_path / "data")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no-such-cache"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a script in this process. An exception that it lets through, which a user would see as a traceback, fails."""

    def run_script(script, *args) -> Result:
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *map(str, args)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        captured = capsys.readouterr()
        result = Result(end.value.code, captured.out, captured.err)
        assert "Traceback" not in captured.err
        assert result.code == 0 or captured.err  # a failure says something
        return result

    return run_script


def refused(result: Result, *parts: str, code: int = 1) -> None:
    """The script ended with a plain sentence or two that hold each of the parts."""
    assert result.code == code
    (message,) = re.findall(r"error: [^\r\n]*", result.err)
    for part in parts:
        assert part in message, message
    assert len(message) < 600


def write_corpus(path: Path, documents=DOCUMENTS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"\n{M}\n".join(documents).encode())
    return path


def write_parquet(path: Path, texts: list, column: str = "content", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": list(range(len(texts))), column: pa.array(texts, pa.string())})
    pq.write_table(table, path, **options)
    return path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# === all scripts =====================================================================================================


def test_help_and_wrong_flags_answer_at_once():
    """In one fresh interpreter, as if each were started by itself, and none of them imports torch for it."""
    code = """
import contextlib, io, json, runpy, sys
from pathlib import Path
root, scripts = Path(sys.argv[1]), sys.argv[2:]
outer, answers = list(sys.path[1:]), []
for script in scripts:
    arguments = {
        "sample": ["--fraction", "1"], "merge": ["a", "--output", "b"], "export": ["--output", "b"],
        **dict.fromkeys(("surprise", "novelty", "inspect_data", "ingest_dataset"), ["a"]),
    }  # fmt: skip
    needed = next((found for name, found in arguments.items() if name in script), [])
    for flags in (["--help"], ["--no-such-flag", *needed]):
        for name in [n for n in sys.modules if n.partition(".")[0] in ("config", "dataset", "model", "scripts")]:
            del sys.modules[name]
        sys.path[:] = [str((root / script).parent), *outer]
        sys.argv = [str(root / script), *flags]
        out, err, code = io.TextIOWrapper(io.BytesIO()), io.TextIOWrapper(io.BytesIO()), None
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path(str(root / script), run_name="__main__")
            except SystemExit as end:
                code = end.code
        out.flush(), err.flush()
        answers.append([script, code, out.buffer.getvalue().decode(), err.buffer.getvalue().decode()])
print(json.dumps({"answers": answers, "heavy": [n for n in ("torch", "datasets") if n in sys.modules]}))
"""
    assert len(SCRIPTS) >= 13
    env = os.environ | {"COLUMNS": "120", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-c", code, ROOT, *SCRIPTS], env=env, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["heavy"] == []
    helps, wrongs = result["answers"][::2], result["answers"][1::2]
    for script, code, out, err in helps:
        assert (code, err) == (0, ""), script
        assert f"    python {script}" in out, f"{script} --help shows no worked example"
        assert "usage:" in out and "--help" in out
    for script, code, out, err in wrongs:
        assert (code, out) == (2, ""), script
        assert "--no-such-flag" in err and "Traceback" not in err, script


def test_a_script_runs_from_any_folder_and_in_any_locale(tmp_path):
    """A process of its own, with relative paths, an output that is ASCII, and text that is not."""
    write_corpus(tmp_path / "c.txt", ["naïve 🐍\n", "日本語\n"])
    done = subprocess.run(
        [sys.executable, ROOT / SAMPLE, "--fraction", "1", "--corpus", "c.txt", "--output", "new/s.txt"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "new" / "s.txt").read_bytes() == (tmp_path / "c.txt").read_bytes()
    assert f"in {Path('new') / 's.txt'}" in done.stdout.decode()
    assert "naïve·🐍↵" in done.stdout.decode()


def test_a_step_names_the_next_one_for_the_files_that_it_was_given(run, project):
    (project / "in").mkdir()
    for i, text in enumerate(DOCUMENTS):
        (project / "in" / f"{i}.py").write_text(text, "utf-8")
    char, bpe = ["--tokenizer-file", "c t.json"], ["--tokenizer-file", "b.json"]
    files = ["--train-file", "t.bin", "--val-file", "v.bin"]
    steps = [
        ([INGEST, "in", "--output", "p.parquet"], f"{EXTRACT} p.parquet"),
        ([EXTRACT, "p.parquet", "--corpus", "c.txt"], f"{SAMPLE} --megabytes 20 --corpus c.txt"),
        (["ingestion/ingest_dataset.py", "c.txt", "--output", "d.parquet"], f"{EXTRACT} d.parquet"),
        ([TRAIN_CHAR, "--corpus", "c.txt", *char], f"{PREPARE_CHAR} --corpus c.txt --tokenizer-file 'c t.json'"),
        ([TRAIN_BPE, "--corpus", "c.txt", *bpe], f"{PREPARE_BPE} --corpus c.txt {' '.join(bpe)}"),
        ([PREPARE_CHAR, "--corpus", "c.txt", *char, *files], f"train.py {' '.join(files)} --tokenizer-file 'c t.json'"),
        (["scripts/inspect_data.py", "c.txt"], f"{TRAIN_BPE} --corpus c.txt"),
        (["scripts/inspect_data.py", "t.bin"], "train.py --train-file t.bin"),
        ([PREPARE_BPE, "--corpus", "c.txt", *bpe], f"trainv2.py {' '.join(bpe)}"),
        (["scripts/inspect_data.py", "data/train_bpe.bin"], "trainv2.py"),
        (["scripts/inspect_data.py", "data/val_bpe.bin", *bpe], f"trainv2.py {' '.join(bpe)}"),
    ]
    for command, following in steps:
        result = run(*command)
        assert (result.code, result.err) == (0, "")
        assert result.out.endswith(f"Next: python {following}\n"), result.out


def test_no_step_replaces_what_it_reads(run, project):
    write_corpus(project / "c.txt")
    write_parquet(project / "p.parquet", DOCUMENTS)
    before = snapshot(project)
    for command in (
        [EXTRACT, "p.parquet", "--corpus", "p.parquet"],
        [TRAIN_CHAR, "--corpus", "c.txt", "--tokenizer-file", "c.txt"],
        [TRAIN_BPE, "--corpus", "c.txt", "--tokenizer-file", "c.txt"],
        ["ingestion/ingest_dataset.py", "c.txt", "--output", "c.txt"],
    ):
        refused(run(*command), f"{command[-2]} would replace {command[-1]}, which is read here", code=2)
    assert snapshot(project) == before


@pytest.mark.skipif(os.name != "posix", reason="pipes of a shell")
def test_a_reader_that_leaves_is_no_error(tmp_path):
    """As in `python script | head -1`."""
    write_corpus(tmp_path / "c.txt")
    command = [
        sys.executable,
        ROOT / TRAIN_CHAR,
        "--corpus",
        tmp_path / "c.txt",
        "--tokenizer-file",
        tmp_path / "t.json",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


def test_the_steps_follow_each_other_on_their_defaults(run, project):
    """Each script reads what the one before wrote, and names the script that is next."""
    sources = project / "sources"
    sources.mkdir()
    for i, text in enumerate(DOCUMENTS):
        (sources / f"{i:02d}.py").write_text(text, "utf-8")
    steps = [
        ([INGEST, sources], EXTRACT),
        ([EXTRACT], SAMPLE),
        ([SAMPLE, "--fraction", "0.5"], TRAIN_CHAR),
        ([TRAIN_CHAR], PREPARE_CHAR),
        ([PREPARE_CHAR], "train.py"),
        ([TRAIN_BPE, "--vocab-size", "300"], PREPARE_BPE),
        ([PREPARE_BPE], "trainv2.py"),
    ]
    for command, following in steps:
        result = run(*command)
        assert (result.code, result.err) == (0, "")
        assert f"Next: python {following}" in result.out
    assert list(read_documents(project / "data" / "corpus.txt")) == DOCUMENTS
    files = (
        "parquet/folder.parquet corpus.txt corpus_sample.txt tokenizer_char.json tokenizer_bpe.json train.bin val.bin "
    )
    files += "train_bpe.bin val_bpe.bin train.bin.json val.bin.json train_bpe.bin.json val_bpe.bin.json"
    assert set(snapshot(project / "data")) == set(files.split())


@pytest.mark.parametrize(
    "script",
    [
        INGEST,
        SAMPLE,
        TRAIN_CHAR,
        EXTRACT,
        PREPARE_CHAR,
    ],
)
def test_an_error_does_not_stand_behind_the_progress_bar(run, project, monkeypatch, script):
    """A bar leaves the cursor at its end. It has to be closed before the message is printed."""

    class Bar(tqdm.tqdm):
        def __init__(self, *args, **options):
            super().__init__(*args, **options | {"delay": 0, "mininterval": 0})

    write_corpus(config.CHAR.corpus)
    run(TRAIN_CHAR, "--tokenizer-file", "t.json")
    monkeypatch.setattr(tqdm, "tqdm", Bar)
    (project / "src").mkdir()
    (project / "src" / "a.py").write_bytes(b"")
    damaged(project / "p.parquet", "cut off")
    Path("latin.txt").write_bytes(f"good\n{M}\n".encode() + b"\xff")
    arguments = {
        INGEST: ["src"],
        EXTRACT: ["p.parquet"],
        SAMPLE: ["--corpus", "latin.txt", "--fraction", "1", "--output", "s.txt"],
        TRAIN_CHAR: ["--corpus", "latin.txt"],
        PREPARE_CHAR: ["--corpus", "latin.txt", "--tokenizer-file", "t.json"],
    }
    result = run(script, *arguments[script])
    assert result.code == 1
    assert "[00:00" in result.err  # there was a bar
    assert re.search(r"^error: ", result.err, re.MULTILINE)


QUIET = {
    INGEST: ["sources"],
    EXTRACT: [],
    SAMPLE: ["--documents", "20"],
    TRAIN_CHAR: [],
    TRAIN_BPE: ["--vocab-size", "300"],
    PREPARE_CHAR: [],
    PREPARE_BPE: [],
}


@pytest.mark.parametrize("script", QUIET)
def test_quiet_says_less_and_does_the_same(run, project, script):
    (project / "sources").mkdir()
    (project / "sources" / "a.py").write_text("x = 1\n")
    write_parquet(project / "data" / "parquet" / "a.parquet", DOCUMENTS)
    write_corpus(config.CHAR.corpus)
    run(TRAIN_CHAR, "--quiet")
    run(TRAIN_BPE, "--quiet", "--vocab-size", "300")
    loud = run(script, *QUIET[script])
    files = snapshot(project / "data")
    quiet = run(script, *QUIET[script], "--quiet")
    assert loud.code == quiet.code == 0
    assert snapshot(project / "data") == files
    assert 0 < len(quiet.out) < len(loud.out)
    figures = re.compile(r"\(?[\d.]+ (MB/s\)?|s)$", re.MULTILINE)  # times differ from run to run
    assert set(figures.sub("", quiet.out).splitlines()) <= set(figures.sub("", loud.out).splitlines())


# === 1. ingestion/ingest_folder.py ===================================================================================


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


def left_out_counts(out: str) -> dict[str, int]:
    return {
        reason: int(n.replace(",", "")) for reason, n in re.findall(r"left out, (.*): ([\d,]+)$", out, re.MULTILINE)
    }


def rows_of(path: Path) -> dict[str, str]:
    return {row["path"]: row["content"] for row in pq.read_table(path).to_pylist()}


def test_sources_are_gathered_and_the_rest_is_counted(run, project):
    taken = make_sources(project / "src")
    result = run(INGEST, "src", "--output", "out/f.parquet", "--max-bytes", "3000")
    assert (result.code, result.err) == (0, "")
    assert rows_of(project / "out" / "f.parquet") == taken
    assert left_out_counts(result.out) == REASONS
    assert f"{len(taken)} files, 0.0 MB of text, in {Path('out') / 'f.parquet'}" in result.out
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
    expected = {"not a regular file": 2, "duplicate": 1}
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
    refused(result, "No file matching '*.py' was taken", "'empty': 1", "'binary': 1")
    refused(run(INGEST, "src", "--pattern", "*.js", "--output", "f.parquet"), "'*.js'")
    assert (project / "f.parquet").read_bytes() == b"earlier"
    assert sorted(os.listdir(project)) == ["f.parquet", "src"]


def test_a_folder_that_is_none_is_named(run, project):
    (project / "file.py").write_text("x = 1\n")
    refused(run(INGEST, "nowhere"), "nowhere is not a folder")
    refused(run(INGEST, "file.py"), "file.py is not a folder")


def test_a_lone_byte_order_mark_is_empty(run, project):
    (project / "src").mkdir()
    (project / "src" / "a.py").write_text("x = 1\n")
    (project / "src" / "bom.py").write_bytes(b"\xef\xbb\xbf")
    assert left_out_counts(run(INGEST, "src", "--output", "f.parquet").out) == {"empty": 1}


# === 2. scripts/extract_parquets_to_text.py ==========================================================================


def test_files_and_folders_are_extracted_in_order(run, project):
    write_parquet(project / "z.parquet", ["z1", "z2"])
    write_parquet(project / "folder" / "b.parquet", ["b"])
    write_parquet(project / "folder" / "deep" / "a.parquet", ["a"])
    (project / "folder" / "notes.txt").write_text("no parquet")
    result = run(EXTRACT, "z.parquet", "folder", "--corpus", "c.txt")
    assert (result.code, result.err) == (0, "")
    assert list(read_documents(Path("c.txt"))) == ["z1", "z2", "b", "a"]
    assert "of 3 parquet files" in result.out
    assert "4 documents, 0.0 MB, in c.txt" in result.out


def test_what_goes_in_comes_out(run, project):
    texts = [
        "\n\n  x = 1\t\n\n",
        "no newline",
        "\ttabs\v\f\x1c and naïve 🐍 \u2028",
        "ends with two\n\n",
        f"'{M}'\n {M}",
    ]
    write_parquet(project / "p.parquet", texts)
    assert run(EXTRACT, "p.parquet", "--corpus", "c.txt").code == 0
    assert Path("c.txt").read_bytes() == f"\n{M}\n".join(texts).encode()
    assert list(read_documents(Path("c.txt"))) == texts


def test_line_ends_become_lf(run, project):
    write_parquet(project / "p.parquet", ["a\r\nb\rc\n\r\n", f"x\r\n{M}\r\ny"])
    result = run(EXTRACT, "p.parquet", "--corpus", "c.txt")
    assert list(read_documents(Path("c.txt"))) == ["a\nb\nc\n\n", "x", "y"]
    assert "files with a line <|endoftext|>, which cuts them in parts: 1" in result.out


def test_rows_without_text_and_marker_lines_are_counted(run, project):
    texts = ["a", None, "", f"b\n{M}\nc", None, f"{M}\n", f"print('{M}')", " "]
    write_parquet(project / "p.parquet", texts)
    result = run(EXTRACT, "p.parquet", "--corpus", "c.txt")
    assert result.code == 0
    assert "empty rows: 3" in result.out
    assert "files with a line <|endoftext|>, which cuts them in parts: 2" in result.out
    assert list(read_documents(Path("c.txt"))) == ["a", "b", "c", f"print('{M}')", " "]
    assert "5 documents" in result.out
    clean = run(EXTRACT, write_parquet(project / "q.parquet", ["a"]), "--corpus", "c.txt")
    assert "empty" not in clean.out and M not in clean.out


def test_debug_output_shows_the_first_documents(run, project):
    write_parquet(project / "p.parquet", [f"def f():\n\treturn {i}\n" for i in range(9)])
    out = run(EXTRACT, "p.parquet", "--corpus", "c.txt").out
    assert out.count("a document of 19 characters begins: def·f():↵→return·") == 3


def test_the_default_is_the_parquet_folder_before_the_hub_cache(run, project, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(project / "hf"))
    stack = project / "hf" / "hub" / "datasets--bigcode--the-stack" / "snapshots" / "abc"
    write_parquet(stack / "data" / "python" / "s.parquet", ["from the cache"])
    assert run(EXTRACT).code == 0
    assert config.CHAR.corpus.read_text() == "from the cache"
    write_parquet(config.CHAR.parquet_dir / "p.parquet", ["from data/parquet"])
    assert run(EXTRACT).code == 0
    assert config.CHAR.corpus.read_text() == "from data/parquet"


def test_the_hub_cache_is_found_as_the_hub_library_finds_it(run, project, monkeypatch):
    """HF_HUB_CACHE before HF_HOME before XDG_CACHE_HOME; the newest revision; links to blobs."""
    blob = write_parquet(project / "blobs" / "0f3a", ["xdg"])
    places = {
        "xdg": project / "xdg" / "huggingface" / "hub",
        "home": project / "home" / "hub",
        "cache": project / "cache",
    }
    for name, place in places.items():
        revisions = place / "datasets--bigcode--the-stack" / "snapshots"
        if name == "xdg":
            (revisions / "1" / "data").mkdir(parents=True)
            (revisions / "1" / "data" / "train.parquet").symlink_to(blob)
        else:
            write_parquet(revisions / "2" / "data" / "train.parquet", [name])
            write_parquet(revisions / "1" / "data" / "train.parquet", ["an older revision"])
            os.utime(revisions / "1", (time.time() - 1000,) * 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(project / "xdg"))
    monkeypatch.delenv("HF_HOME")
    for name, variable, value in (
        ("xdg", None, None),
        ("home", "HF_HOME", project / "home"),
        ("cache", "HF_HUB_CACHE", project / "cache"),
    ):
        if variable:
            monkeypatch.setenv(variable, str(value))
        assert run(EXTRACT, "--corpus", "c.txt").code == 0
        assert Path("c.txt").read_text() == name


def test_a_missing_column_is_named_with_those_there_are(run, project):
    write_parquet(project / "p.parquet", ["a"], column="text")
    write_corpus(project / "c.txt", ["earlier"])
    refused(run(EXTRACT, "p.parquet", "--corpus", "c.txt"), "p.parquet", "'content'", "id, text", "--column")
    assert Path("c.txt").read_text() == "earlier"
    assert run(EXTRACT, "p.parquet", "--corpus", "c.txt", "--column", "text").code == 0
    assert Path("c.txt").read_text() == "a"


def test_a_column_of_numbers_is_refused(run, project):
    write_parquet(project / "p.parquet", ["a"])
    refused(run(EXTRACT, "p.parquet", "--corpus", "c.txt", "--column", "id"), "p.parquet", "'id'", "int64, not text")


def test_large_strings_are_text(run, project):
    pq.write_table(pa.table({"content": pa.array(["a", "b"], pa.large_string())}), "p.parquet")
    assert run(EXTRACT, "p.parquet", "--corpus", "c.txt").code == 0
    assert list(read_documents(Path("c.txt"))) == ["a", "b"]


@pytest.mark.parametrize("kind", ["view", "dictionary"])
def test_strings_in_their_other_forms_are_text(run, project, kind):
    texts = pa.array(["a", "b"], pa.string_view()) if kind == "view" else pa.array(["a", "b"]).dictionary_encode()
    pq.write_table(pa.table({"content": texts}), "p.parquet")
    assert run(EXTRACT, "p.parquet", "--corpus", "c.txt").code == 0


def test_two_columns_of_the_same_name_are_refused(run, project):
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["content", "content"]), "p.parquet")
    refused(run(EXTRACT, "p.parquet", "--corpus", "c.txt"), "p.parquet")


def damaged(path: Path, kind: str) -> Path:
    """A parquet file of two row groups of 300 documents each, damaged."""
    rng = random.Random(1)
    write_parquet(path, [f"{i} {rng.random()}" for i in range(600)], row_group_size=300, compression="zstd")
    data = bytearray(path.read_bytes())
    if kind == "empty":
        data = b""
    elif kind == "cut off":
        data = data[: len(data) // 2]
    elif kind == "no parquet":
        data = b"def f(): pass\n" * 100
    elif kind == "second half":
        start = pq.ParquetFile(path).metadata.row_group(1).column(1).dictionary_page_offset
        data[start : start + 2000] = bytes(2000)
    path.write_bytes(data)
    return path


KINDS = ["empty", "cut off", "no parquet", "second half"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_stops_with_its_name(run, project, kind):
    write_parquet(project / "in" / "a.parquet", ["good"])
    damaged(project / "in" / "b.parquet", kind)
    write_corpus(project / "c.txt", ["earlier"])
    refused(run(EXTRACT, "in", "--corpus", "c.txt"), str(Path("in") / "b.parquet"), "is damaged", "--skip-bad")
    assert Path("c.txt").read_text() == "earlier"
    assert sorted(os.listdir(project)) == ["c.txt", "in"]


@pytest.mark.parametrize("kind", KINDS)
def test_skip_bad_goes_on_and_exits_with_3(run, project, kind):
    write_parquet(project / "in" / "a.parquet", ["good"])
    damaged(project / "in" / "b.parquet", kind)
    write_parquet(project / "in" / "c.parquet", ["good too"])
    result = run(EXTRACT, "in", "--corpus", "c.txt", "--skip-bad")
    assert result.code == 3
    assert f"left out from where it broke off: {Path('in') / 'b.parquet'} is damaged" in result.err
    documents = list(read_documents(Path("c.txt")))
    assert documents[0] == "good" and documents[-1] == "good too"
    # The batches of 256 rows before the damage are kept.
    assert len(documents) == 2 if kind != "second half" else 256 <= len(documents) - 2 <= 300
    assert f"{len(documents)} documents" in result.out


def test_skip_bad_with_nothing_bad_is_a_success(run, project):
    assert run(EXTRACT, write_parquet(project / "a.parquet", ["good"]), "--corpus", "c.txt", "--skip-bad").code == 0


def test_changed_bytes_never_end_in_a_traceback(run, project):
    rng = random.Random(3)
    good = damaged(project / "p.parquet", "not at all").read_bytes()
    codes = Counter()
    for _ in range(60):
        data = bytearray(good)
        for _ in range(rng.choice([1, 3, 30])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (project / "p.parquet").write_bytes(data)
        codes[run(EXTRACT, "p.parquet", "--corpus", "c.txt", "--skip-bad", "--quiet").code] += 1
    assert set(codes) <= {0, 1, 3}
    assert codes[1] + codes[3] > 5


def test_skip_bad_leaves_out_a_broken_link(run, project):
    """As a hub cache holds where blobs were deleted."""
    write_parquet(project / "in" / "a.parquet", ["good"])
    (project / "in" / "b.parquet").symlink_to("nowhere")
    assert run(EXTRACT, "in", "--corpus", "c.txt", "--skip-bad").code == 3


def test_skip_bad_names_the_files_when_all_are_bad(run, project):
    damaged(project / "b.parquet", "cut off")
    result = run(EXTRACT, "b.parquet", "--corpus", "c.txt", "--skip-bad")
    assert result.code != 0
    assert "b.parquet is damaged" in result.err


def test_nothing_to_extract(run, project, monkeypatch):
    (project / "folder").mkdir()
    refused(run(EXTRACT, "folder"), "No parquet file in folder", "ingest_folder.py")
    refused(run(EXTRACT, "nowhere.parquet"), "There is no nowhere.parquet")
    result = run(EXTRACT)
    refused(result, str(Path("data") / "parquet"), str(Path("no-such-cache") / "hub"), "ingestion/ingest.py")
    write_corpus(project / "c.txt", ["earlier"])
    refused(
        run(EXTRACT, write_parquet(project / "p.parquet", ["", None]), "--corpus", "c.txt"), "no document was found"
    )
    assert Path("c.txt").read_text() == "earlier"


def test_memory_holds_one_row_group(run, project):
    """30 MB in 15 row groups, of which pyarrow and Python never hold more than a few."""
    rng = random.Random(0)
    schema = pa.schema([("content", pa.string())])
    with pq.ParquetWriter("p.parquet", schema, compression="none") as writer:
        for _ in range(15):
            texts = [f"{rng.random()}" * 440 for _ in range(256)]  # 2 MB
            writer.write_table(pa.table({"content": texts}, schema=schema))
    del texts
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        assert run(EXTRACT, "p.parquet", "--corpus", "c.txt", "--quiet", "--workers", "1").code == 0
        python = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
    assert Path("c.txt").stat().st_size > 25e6
    assert 1e6 < pool.max_memory() < 13e6
    assert python < 13e6


# === 3. scripts/sample_corpus_subset.py ==============================================================================


@pytest.mark.parametrize("wanted", [["--megabytes", "0.002"], ["--documents", "20"], ["--fraction", "0.25"]])
def test_a_sample_is_written_and_described(run, project, wanted):
    corpus = write_corpus(config.CHAR.corpus)
    result = run(SAMPLE, *wanted, "--output", "s.txt")
    assert (result.code, result.err) == (0, "")
    taken = list(read_documents(Path("s.txt")))
    expected = corpus_file.sample_documents(corpus, config.CHAR.seed, **{wanted[0][2:]: float(wanted[1])})
    assert taken == list(expected)
    if wanted[0] == "--megabytes":
        assert 1800 < sum(len(text.encode()) for text in taken) <= 2000
    else:
        assert len(taken) == {"--documents": 20, "--fraction": 15}[wanted[0]]
    assert f"{len(taken)} documents, 0.0 of 0.0 MB, in s.txt" in result.out
    assert result.out.count("takes a document of ") == 3
    assert result.out.endswith("Next: python scripts/train_tokenizer_character_level.py --corpus s.txt\n")


def test_the_same_seed_gives_the_same_sample(run, project):
    write_corpus(config.CHAR.corpus)
    files = []
    for seed in ("1", "1", "2"):
        run(SAMPLE, "--documents", "10", "--seed", seed, "--output", "s.txt")
        files.append(Path("s.txt").read_bytes())
    assert files[0] == files[1] != files[2]


def test_wrong_sizes_of_a_sample(run, project):
    write_corpus(config.CHAR.corpus)
    for wanted in (["--megabytes", "0"], ["--documents", "-1"], ["--fraction", "0"], ["--fraction", "1.01"]):
        refused(run(SAMPLE, *wanted), "above 0", "--fraction at most 1", code=2)
    for wanted in ([], ["--documents", "1", "--fraction", "1"], ["--documents", "1.5"], ["--megabytes", "ten"]):
        assert run(SAMPLE, *wanted).code == 2
    assert list(project.rglob("*sample*")) == []


@pytest.mark.parametrize("wanted", [["--megabytes", "nan"], ["--megabytes", "inf"], ["--fraction", "nan"]])
def test_sizes_that_are_no_numbers(run, project, wanted):
    write_corpus(config.CHAR.corpus)
    assert run(SAMPLE, *wanted).code == 2


@pytest.mark.parametrize("wanted", [["--megabytes", "0.000001"], ["--fraction", "0.0001"]])
def test_a_sample_too_small_for_any_document(run, project, wanted):
    write_corpus(config.CHAR.corpus)
    result = run(SAMPLE, *wanted)
    refused(result, "fits into so small a sample")
    write_corpus(config.CHAR.corpus, [""])
    refused(run(SAMPLE, *wanted), "holds no document")


def test_a_sample_never_replaces_its_source(run, project):
    corpus = write_corpus(config.CHAR.corpus)
    before = corpus.read_bytes()
    (project / "link.txt").symlink_to(corpus)
    for output in (corpus, "link.txt", Path("data") / ".." / "data" / "corpus.txt"):
        refused(run(SAMPLE, "--documents", "5", "--output", output), "--output would replace", code=2)
    assert corpus.read_bytes() == before


def test_a_corpus_that_is_missing_or_damaged_leaves_the_earlier_sample(run, project):
    (project / "s.txt").write_text("earlier")
    refused(
        run(SAMPLE, "--documents", "5", "--output", "s.txt"), "There is no corpus", str(Path("data") / "corpus.txt")
    )
    (project / "c.txt").write_bytes(b"good\n\xff")
    refused(run(SAMPLE, "--documents", "5", "--corpus", "c.txt", "--output", "s.txt"), "c.txt is not UTF-8 at byte 5")
    assert (project / "s.txt").read_text() == "earlier"


# === 4. tokenizers ===================================================================================================


def test_the_character_tokenizer_shows_its_work(run, project):
    write_corpus(config.CHAR.corpus)
    result = run(TRAIN_CHAR)
    assert (result.code, result.err) == (0, "")
    text = "".join(DOCUMENTS)
    counts, total = Counter(text), len(text)
    assert f"60 documents, {total:,} characters, {len(counts)} different ones" in result.out
    # The alphabet: twelve lines, with the right counts and shares.
    rows = re.findall(r"^  (\S+) +([\d,]+) [█▏▎▍▌▋▊▉ ]+ +([\d.]+)%$", result.out, re.MULTILINE)
    assert [int(count.replace(",", "")) for _, count, _ in rows] == [n for _, n in counts.most_common(12)]
    shown = {"·": " ", "↵": "\n"}
    for character, count, share in rows:
        assert counts[shown.get(character, character)] == int(count.replace(",", ""))
        assert float(share) == pytest.approx(100 * int(count.replace(",", "")) / total, abs=0.051)
    # The cut line: tokens above their ids.
    vocab = tokenizers.Tokenizer.from_file(str(config.CHAR.tokenizer_file)).get_vocab()
    lines = result.out.splitlines()
    at = lines.index("A line of it cut into tokens, with their ids:")
    tokens, ids = lines[at + 1].split(), lines[at + 2].split()
    assert "".join(tokens) == "import·os"
    assert [vocab[shown.get(token, token)] for token in tokens] == list(map(int, ids))
    assert "A character that it has not seen, such as \u03b1, becomes id 1 (<|unk|>)." in result.out
    size = len(text.encode())
    assert f"Reloaded and checked: {size:,} bytes came back unchanged, {size / total:.3f} bytes per token" in result.out
    assert f"{len(counts) + 2} ids, two of them special, in {Path('data') / 'tokenizer_char.json'}" in result.out


def test_the_character_tokenizer_is_the_list_of_characters(run, project):
    write_corpus(project / "c.txt", ["ba\n", "\u03b1 b"])
    result = run(TRAIN_CHAR, "--corpus", "c.txt", "--tokenizer-file", "t.json")
    vocab = tokenizers.Tokenizer.from_file("t.json").get_vocab()
    assert vocab == {M: 0, "<|unk|>": 1, "\n": 2, " ": 3, "a": 4, "b": 5, "\u03b1": 6}  # no character of the separator
    assert "such as β, becomes" in result.out  # alpha it has seen


def test_the_bpe_tokenizer_shows_its_work(run, project):
    write_corpus(config.BPE.corpus)
    result = run(TRAIN_BPE, "--vocab-size", "300")
    assert (result.code, result.err) == (0, "")
    content = json.loads(config.BPE.tokenizer_file.read_text("utf-8"))
    merges = content["model"]["merges"]
    assert len(merges) == 300 - 257
    rows = re.findall(r"^  id +(\d+): (.*) \+ (.*) = (.*)$", result.out, re.MULTILINE)
    assert [int(row[0]) for row in rows] == [*range(257, 269), *range(288, 300)]
    for number, left, right, whole in rows:
        pair = [piece.replace("Ġ", "·").replace("Ċ", "↵") for piece in merges[int(number) - 257]]
        assert [left, right] == pair or "<" in left + right
        assert whole == left + right
        assert content["model"]["vocab"]["".join(merges[int(number) - 257])] == int(number)
    assert result.out.count("\n  ...\n") == 1
    tokenizer = tokenizers.Tokenizer.from_file(str(config.BPE.tokenizer_file))
    size, tokens = (
        sum(map(len, part)) for part in zip(*((t.encode(), tokenizer.encode(t).ids) for t in DOCUMENTS), strict=True)
    )
    assert (
        f"Reloaded and checked: {size:,} bytes came back unchanged, {size / tokens:.3f} bytes per token" in result.out
    )
    assert f"300 ids in {Path('data') / 'tokenizer_bpe.json'}, learned in " in result.out
    assert "merges to offer" not in result.out
    assert "learning from a random" not in result.out
    at = result.out.splitlines().index("A line of the corpus cut into tokens, with their ids:")
    ids = [
        int(token) for line in result.out.splitlines()[at + 2 : at + 9 : 2] for token in line.split() if token.isdigit()
    ]
    assert any(tokenizer.decode(ids).strip() in text for text in DOCUMENTS)


def test_the_bpe_tokenizer_learns_from_documents_and_not_across_them(run, project):
    write_corpus(project / "c.txt", ["a", "b"] * 50)
    result = run(TRAIN_BPE, "--corpus", "c.txt", "--tokenizer-file", "t.json")
    assert result.code == 0
    assert "The text had only 0 merges to offer." in result.out
    assert tokenizers.Tokenizer.from_file("t.json").get_vocab_size() == 257


def test_a_small_text_gives_a_smaller_vocabulary(run, project):
    write_corpus(project / "c.txt", ["ab ab ab abc"])
    result = run(TRAIN_BPE, "--corpus", "c.txt", "--tokenizer-file", "t.json")
    assert "The text had only 3 merges to offer." in result.out
    assert "260 ids in t.json" in result.out
    assert "  id   257: a + b = ab" in result.out and "  id   259: ·ab + c = ·abc" in result.out


def test_the_text_to_learn_merges_from_is_capped(run, project):
    corpus = write_corpus(config.BPE.corpus)
    assert corpus.stat().st_size > 3000
    result = run(TRAIN_BPE, "--vocab-size", "300", "--tokenizer-megabytes", "0.003")
    assert "learning from a random 0.003 MB of it" in result.out
    sample = corpus_file.sample_documents(corpus, config.BPE.seed, megabytes=0.003)
    expected = bpe_trainer.train_bpe_tokenizer(sample, 300).to_str(pretty=True)
    assert config.BPE.tokenizer_file.read_text("utf-8") == expected


@pytest.mark.parametrize("size", ["0", "-5", "256", "65537"])
def test_vocabularies_out_of_range(run, project, size):
    write_corpus(config.BPE.corpus)
    refused(run(TRAIN_BPE, "--vocab-size", size), "--vocab-size must be from 257 to 65,536", code=2)
    assert not config.BPE.tokenizer_file.exists()


def test_more_characters_than_ids(run, project):
    characters = "".join(map(chr, range(0x10000, 0x10000 + 65_535)))
    write_corpus(config.CHAR.corpus, [characters])
    refused(run(TRAIN_CHAR), "65,535 different characters", "65,536", "train_tokenizer_bpe.py")
    assert not config.CHAR.tokenizer_file.exists()


@pytest.mark.parametrize("script", [TRAIN_CHAR, TRAIN_BPE])
def test_a_corpus_that_cannot_be_learned_from(run, project, script):
    file = config.CHAR.tokenizer_file if script == TRAIN_CHAR else config.BPE.tokenizer_file
    file.parent.mkdir()
    file.write_text("earlier")
    corpus = str(Path("data") / "corpus.txt")
    refused(run(script), "There is no corpus", corpus)
    for empty in (b"", f"{M}\n{M}\n".encode()):
        config.CHAR.corpus.write_bytes(empty)
        refused(run(script), corpus, "holds no document")
    config.CHAR.corpus.write_bytes(f"good\n{M}\ncaf\xe9".encode("latin-1"))
    refused(run(script), corpus, "is not UTF-8 at byte 22 (0xe9)")
    assert file.read_text() == "earlier"
    assert {path.name for path in file.parent.iterdir()} == {"corpus.txt", file.name}


@pytest.mark.parametrize("script", [TRAIN_CHAR, TRAIN_BPE])
def test_a_tokenizer_that_does_not_give_the_text_back_is_noticed(run, project, monkeypatch, script):
    write_corpus(config.CHAR.corpus)
    decode = tokenizer_file.Tokenizer.decode
    monkeypatch.setattr(tokenizer_file.Tokenizer, "decode", lambda self, ids: decode(self, ids)[:-1])
    refused(run(script), "does not give back the text that begins 'import os")


@pytest.mark.parametrize("script", [TRAIN_CHAR, TRAIN_BPE])
def test_a_corpus_of_white_space(run, project, script):
    write_corpus(config.CHAR.corpus, [" \n\n \t\n"])
    assert run(script).code in (0, 1)


@pytest.mark.parametrize("documents", [1, 2])
def test_of_documents_that_are_all_above_the_cap_the_beginning_is_learned(run, project, documents):
    text = "é" + "def f(x):\n    return x\n" * 100
    write_corpus(config.BPE.corpus, [text] * documents)
    result = run(TRAIN_BPE, "--vocab-size", "300", "--tokenizer-megabytes", "0.000050")
    assert result.code == 0 and "learning from the first 5e-05 MB of it" in result.out
    expected = bpe_trainer.train_bpe_tokenizer([text.encode()[:50].decode()], 300).to_str(pretty=True)
    assert config.BPE.tokenizer_file.read_text("utf-8") == expected
    assert run(TRAIN_BPE, "--tokenizer-megabytes", "0.000001").code == 0  # half a character
    for size in ("0", "-1"):
        refused(run(TRAIN_BPE, "--tokenizer-megabytes", size), "--tokenizer-megabytes must be above 0", code=2)


# === 5. token files ==================================================================================================


@pytest.fixture(params=[PREPARE_CHAR, PREPARE_BPE])
def prepare(request, run, project):
    """A script of step 5, its settings, and the tokenizer that it needs, trained on DOCUMENTS."""
    settings = config.CHAR if request.param == PREPARE_CHAR else config.BPE
    write_corpus(settings.corpus)
    run(TRAIN_CHAR)
    run(TRAIN_BPE, "--vocab-size", "300")
    return request.param, settings


def plain_ids(settings, documents) -> list[int]:
    """The definition: the library's ids of each document, and the end-of-text id behind them."""
    library = tokenizers.Tokenizer.from_file(str(settings.tokenizer_file))
    library.encode_special_tokens = True
    return [token for text in documents for token in [*library.encode(text, add_special_tokens=False).ids, 0]]


def plain_part(text: str, val_fraction: float) -> str:
    number = int(hashlib.blake2b(text.encode(), digest_size=6).hexdigest(), 16)
    return "val" if number / 16**12 < val_fraction else "train"


def files_of(settings) -> dict[str, Path]:
    return {"train": settings.train_file, "val": settings.val_file}


def test_token_files_are_what_a_plain_loop_gives(run, project, prepare):
    script, settings = prepare
    documents = [*DOCUMENTS, f"text that holds {M}, <|unk|> and\n {M}\n", "short"]
    write_corpus(settings.corpus, documents)
    run(TRAIN_CHAR)  # it has to know the new characters
    result = run(script, "--val-fraction", "0.3")
    assert (result.code, result.err) == (0, "")
    tokenizer_sha256 = hashlib.sha256(settings.tokenizer_file.read_bytes()).hexdigest()
    for part, path in files_of(settings).items():
        expected = [text for text in documents if plain_part(text, 0.3) == part]
        ids, size = plain_ids(settings, expected), sum(len(text.encode()) for text in expected)
        assert np.memmap(path, dtype=np.uint16, mode="r").tolist() == ids
        facts = json.loads(path.with_name(path.name + ".json").read_text())
        assert facts == {
            "format_version": 1,
            "tokenizer_kind": "char" if script == PREPARE_CHAR else "bpe",
            "tokenizer_sha256": tokenizer_sha256,
            "vocab_size": tokenizers.Tokenizer.from_file(str(settings.tokenizer_file)).get_vocab_size(),
            "end_of_text_id": 0,
            "source": str(Path("data") / "corpus.txt"),
            "tokens": len(ids),
            "documents": len(expected),
            "utf8_bytes": size,
            "unknown_characters": 0,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        assert (
            f"{Path('data') / path.name}: {len(expected)} documents, {len(ids):,} tokens, {size:,} bytes, "
            f"{size / len(ids):.3f} bytes a token"
        ) in result.out
    assert "not in the tokenizer" not in result.out


def test_debug_output_shows_tokens_and_reads_them_back(run, project, prepare):
    script, settings = prepare
    result = run(script)
    lines = result.out.splitlines()
    cuts = [re.fullmatch(r"(\d+) bytes for (train|val), (\d+) tokens: (.*?)(\|\.\.\.)?", line) for line in lines[:3]]
    for cut, text in zip(cuts, DOCUMENTS, strict=False):
        ids = plain_ids(settings, [text])[:-1]
        assert (int(cut[1]), cut[2], int(cut[3])) == (len(text.encode()), plain_part(text, 0.1), len(ids))
        assert text.replace(" ", "·").replace("\n", "↵").startswith(cut[4].replace("|", ""))
        assert cut[4].count("|") == min(28, len(ids)) - 1
        assert bool(cut[5]) == (len(ids) > 28)
    for part, path in files_of(settings).items():
        at = lines.index(f"The beginning of {Path('data') / path.name}, read back and decoded, above its source:")
        first = next(text for text in DOCUMENTS if plain_part(text, 0.1) == part)
        assert lines[at + 1] == lines[at + 2] == "  " + first[:70].replace(" ", "·").replace("\n", "↵")


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_pieces_and_workers_make_no_difference(run, project, prepare, monkeypatch, workers):
    import scripts.prepare_dataset as script

    _, settings = prepare
    kind = "char" if settings is config.CHAR else "bpe"
    monkeypatch.setattr(sys, "argv", ["prepare_dataset.py", "--workers", str(workers), "--quiet"])
    files = []
    for size in (1, 100, 1 << 20):
        monkeypatch.setattr(script, "PIECE_BYTES", size)
        script.main(settings, kind=kind)
        files.append([path.read_bytes() for path in files_of(settings).values()])
    assert files[0] == files[1] == files[2]
    ids = [np.frombuffer(data, "<u2").tolist() for data in files[0]]
    parts = [[text for text in DOCUMENTS if plain_part(text, 0.1) == part] for part in ("train", "val")]
    assert ids == [plain_ids(settings, part) for part in parts]


def test_one_document_is_cut_in_two(run, project, prepare):
    script, settings = prepare
    text = "".join(DOCUMENTS)
    write_corpus(settings.corpus, [text])
    assert run(script).code == 0
    cut = int((1 - 0.1) * len(text))
    assert np.fromfile(settings.train_file, np.uint16).tolist() == plain_ids(settings, [text[:cut]])
    assert np.fromfile(settings.val_file, np.uint16).tolist() == plain_ids(settings, [text[cut:]])


def test_unknown_characters_are_counted_and_named(run, project):
    write_corpus(config.CHAR.corpus)
    run(TRAIN_CHAR)
    documents = ["Ω\x07Ω import os\n" * 9, *DOCUMENTS[1:]]
    write_corpus(config.CHAR.corpus, documents)
    result = run(PREPARE_CHAR, "--val-fraction", "0.3")
    assert (result.code, result.err) == (0, "")
    assert "27 characters are not in the tokenizer and became <|unk|>" in result.out
    assert "among them Ω (18 times), \\x07 (9 times)" in result.out
    facts = [json.loads(Path(f"{path}.json").read_text()) for path in files_of(config.CHAR).values()]
    assert sum(fact["unknown_characters"] for fact in facts) == 27
    ids = [token for path in files_of(config.CHAR).values() for token in np.fromfile(path, np.uint16).tolist()]
    assert ids.count(1) == 27
    parts = [[text for text in documents if plain_part(text, 0.3) == part] for part in ("train", "val")]
    assert ids == plain_ids(config.CHAR, [*parts[0], *parts[1]])


def test_bpe_knows_every_character(run, project):
    write_corpus(config.BPE.corpus)
    run(TRAIN_BPE, "--vocab-size", "300")
    write_corpus(config.BPE.corpus, ["Ω\x07 日本語\r\n" * 9, *DOCUMENTS[1:]])
    result = run(PREPARE_BPE, "--val-fraction", "0.3")
    assert result.code == 0
    assert "<|unk|>" not in result.out


def test_the_wrong_kind_of_tokenizer_is_named_with_the_right_script(run, project, prepare):
    script, settings = prepare
    char, bpe = config.CHAR.tokenizer_file, config.BPE.tokenizer_file
    wrong, kind, other = (
        (bpe, "bpe", "prepare_dataset_bpe.py") if script == PREPARE_CHAR else (char, "char", PREPARE_CHAR)
    )
    refused(run(script, "--tokenizer-file", wrong), wrong.name, f"is a {kind} tokenizer", other)
    assert not settings.train_file.exists()


def test_what_step_5_refuses(run, project, prepare):
    script, settings = prepare
    assert run(script).code == 0
    before = snapshot(project)
    corpus = str(Path("data") / "corpus.txt")
    refused(run(script, "--corpus", "nowhere.txt"), "There is no corpus nowhere.txt")
    refused(run(script, "--tokenizer-file", "nowhere.json"), "There is no tokenizer nowhere.json", "train_tokenizer")
    for fraction in ("0", "1", "-0.1", "1.5", "nan", "inf"):
        refused(run(script, "--val-fraction", fraction), "--val-fraction must lie between 0 and 1", code=2)
    refused(run(script, "--val-fraction", "0.000001"), f"No document of {corpus} fell to val")
    refused(run(script, "--val-fraction", "0.999999"), f"No document of {corpus} fell to train")
    for taken in (corpus, settings.tokenizer_file):
        refused(run(script, "--train-file", taken), "--train-file would replace", "which is read here", code=2)
    refused(run(script, "--train-file", "t", "--val-file", "t"), "--val-file would", "--train-file writes", code=2)
    assert snapshot(project) == before
    for name, data in {"empty.txt": b"", "markers.txt": f"{M}\n{M}".encode(), "one.txt": b"x"}.items():
        Path(name).write_bytes(data)
        reason = f"No document of {name} fell to" if data == b"x" else f"{name} holds no document"
        refused(run(script, "--corpus", name), reason)
    Path("latin.txt").write_bytes(b"x" * 70_000 + f"\n{M}\ncaf\xe9\n".encode("latin-1"))
    refused(run(script, "--corpus", "latin.txt"), "latin.txt is not UTF-8 at byte 70,018 (0xe9)")
    Path("broken.json").write_text("{")
    refused(run(script, "--tokenizer-file", "broken.json"), "broken.json is not a tokenizer")
    after = snapshot(project)
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if name.endswith(".tmp")]


def test_a_damaged_byte_in_a_later_batch_leaves_the_earlier_files(run, project, prepare):
    """The first documents are encoded and written by then."""
    script, settings = prepare
    assert run(script).code == 0
    before = {path: path.read_bytes() for path in files_of(settings).values()}
    good = f"\n{M}\n".join(f"x = {i}\n" * 1000 for i in range(150)).encode()
    Path("latin.txt").write_bytes(good + b"\xff")
    refused(run(script, "--corpus", "latin.txt"), f"latin.txt is not UTF-8 at byte {len(good):,} (0xff)")
    assert {path: path.read_bytes() for path in files_of(settings).values()} == before


def test_tokens_that_do_not_decode_to_their_source_are_noticed(run, project, prepare, monkeypatch):
    script, _ = prepare
    extend = dataset.TokenWriter.extend
    monkeypatch.setattr(dataset.TokenWriter, "extend", lambda self, ids: extend(self, ids[::-1]))
    refused(run(script), "does not decode to its source")


def test_paths_in_messages_are_those_of_the_user(run, project, monkeypatch):
    """Relative to where the user stands if below it, else whole."""
    write_corpus(project / "here" / "c.txt")
    monkeypatch.chdir(project / "here")
    result = run(TRAIN_CHAR, "--corpus", "c.txt", "--tokenizer-file", project / "t.json")
    assert f"special, in {project / 't.json'}\n" in result.out
    refused(run(PREPARE_CHAR, "--corpus", "d.txt", "--tokenizer-file", "../t.json"), "There is no corpus d.txt")


def test_an_output_that_cannot_be_written_is_named(run, project):
    write_corpus(config.CHAR.corpus)
    Path("file").write_text("a file and no folder")
    for command in (
        [SAMPLE, "--documents", "5", "--output", "file/s.txt"],
        [TRAIN_CHAR, "--tokenizer-file", "file/t.json"],
        [INGEST, project, "--pattern", "*.txt", "--output", "file/f.parquet"],
    ):
        refused(run(*command), "file")
    Path("folder").mkdir()
    refused(run(SAMPLE, "--documents", "5", "--output", "folder"), "folder")
