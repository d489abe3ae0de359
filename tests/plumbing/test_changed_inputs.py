"""An input that is replaced or changed while a step reads it: a plain error, and the earlier results stay."""

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_scripts import (
    DOCUMENTS,
    EXTRACT,
    MERGE,
    PREPARE_BPE,
    PREPARE_CHAR,
    SAMPLE,
    TRAIN_BPE,
    TRAIN_CHAR,
    VARIED,
    refused,
    snapshot,
    write_corpus,
)

import config
import dataset
from ingestion import ingest_dataset
from model.storage import safe_load
from plumbing import corpus as corpus_file
from plumbing.errors import UserError
from plumbing.inputs import LeftOut, Unchanged, find_files

CHANGES = ["replaced", "replaced by one of the same size and time", "cut", "longer", "gone", "another name's link"]


def change(path: Path, kind: str) -> None:
    other, data, status = path.with_name("other"), path.read_bytes(), path.stat()
    if kind == "cut":
        os.truncate(path, len(data) // 2)
    elif kind == "longer":
        with open(path, "ab") as file:
            file.write(data)
    elif kind == "gone":
        path.unlink()
    elif kind == "another name's link":
        other.write_bytes(data.upper())
        path.unlink()
        path.symlink_to(other.name)
    else:
        other.write_bytes(data.swapcase() if "same" in kind else data * 2)
        if "same" in kind:
            os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.replace(other, path)


def changing(monkeypatch, owner, name: str, path: Path, kind: str) -> list:
    """Make a function change a file at its third call, which is in the midst of the reading. Returns its calls."""
    original, calls = getattr(owner, name), []

    def changes(*args, **kwargs):
        calls.append(name)
        if len(calls) == 3:
            change(path, kind)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, changes)
    return calls


def refused_and_unchanged(run, command: list, folder: Path, reads: Path) -> None:
    before = {name: data for name, data in snapshot(folder).items() if name not in (reads.name, "other")}
    refused(run(*command), f"{reads.name} was replaced or changed while it was read")
    after = {name: data for name, data in snapshot(folder).items() if name not in (reads.name, "other")}
    assert after == before


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("script", [SAMPLE, TRAIN_CHAR, TRAIN_BPE, PREPARE_CHAR, PREPARE_BPE])
def test_a_corpus(run, project, monkeypatch, script, kind):
    flags = {SAMPLE: ["--fraction", "0.9"], TRAIN_BPE: ["--vocab-size", "300"]}.get(script, [])
    corpus = write_corpus(config.CHAR.corpus)
    assert run(TRAIN_CHAR).code == run(TRAIN_BPE, "--vocab-size", "300").code == run(script, *flags).code == 0
    assert changing(monkeypatch, corpus_file, "decode_text", corpus, kind) == []  # called for each document, UTF-8
    refused_and_unchanged(run, [script, *flags], corpus.parent, corpus)


@pytest.mark.parametrize("kind", CHANGES)
def test_a_corpus_of_one_document(run, project, monkeypatch, kind):
    """It is in memory before its first block is encoded."""
    corpus = write_corpus(config.CHAR.corpus, ["".join(DOCUMENTS)])
    assert run(TRAIN_CHAR).code == run(PREPARE_CHAR).code == 0
    only = corpus_file.only_document
    monkeypatch.setattr(corpus_file, "only_document", lambda path: [only(path), change(path, kind)][0])
    refused_and_unchanged(run, [PREPARE_CHAR], corpus.parent, corpus)


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_parquet_file(run, project, monkeypatch, kind, workers):
    parquet = project / "in" / "a.parquet"
    parquet.parent.mkdir()
    pq.write_table(pa.table({"content": [f"{text}\r\n" for text in VARIED]}), parquet, row_group_size=20)
    command = [EXTRACT, "in", "--corpus", "out/c.txt", "--workers", str(workers)]
    assert run(*command).code == 0
    changing(monkeypatch, corpus_file, "split_at_marker", parquet, kind)  # called for each row with a CR
    before = snapshot(project / "out")
    refused(run(*command), "a.parquet was replaced or changed while it was read")
    assert snapshot(project / "out") == before


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("name", ["train.2-of-3.bin", "train.2-of-3.bin.json"])
def test_a_token_file(run, project, monkeypatch, name, kind):
    write_corpus(config.CHAR.corpus)
    run(TRAIN_CHAR)
    for number in (1, 2, 3):
        assert run(PREPARE_CHAR, "--shard", f"{number}/3").code == 0
    (project / "in").mkdir()
    for path in (project / "data").glob("train.*-of-3.bin*"):
        shutil.move(path, project / "in")
    command = [MERGE, "in/train.*-of-3.bin", "--output", "out/merged.bin"]
    assert run(*command).code == 0
    changing(monkeypatch, dataset.TokenWriter, "extend", project / "in" / name, kind)
    before = snapshot(project / "out")
    refused(run(*command), f"{name} was replaced or changed while it was read")
    assert snapshot(project / "out") == before


@pytest.mark.parametrize("kind", CHANGES)
def test_a_file_to_ingest(tmp_path, monkeypatch, kind):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' * 50_000, "utf-8")
    rows = ingest_dataset.read_texts(path, None)
    assert [next(rows) for _ in range(3)] == ["a"] * 3
    change(path, kind)
    with pytest.raises(UserError, match="a.jsonl was replaced or changed while it was read"):
        list(rows)


def test_a_model_file_that_is_overwritten_in_its_place(tmp_path, monkeypatch):
    """One whole file that takes its name is no harm: the file that was opened is still read to its end."""
    for step, path in enumerate((tmp_path / "a.pt", tmp_path / "b.pt", tmp_path / "c.pt")):
        safe_load.save(path, {"step": step})
    check = safe_load.check_digest

    def overwrite(file):
        check(file)
        (tmp_path / "a.pt").write_bytes((tmp_path / "b.pt").read_bytes())
        os.utime(tmp_path / "a.pt", (1, 1))

    monkeypatch.setattr(safe_load, "check_digest", overwrite)
    with pytest.raises(ValueError, match="it was changed while it was read"):
        safe_load.load(tmp_path / "a.pt")
    monkeypatch.setattr(safe_load, "check_digest", lambda file: [check(file), change(tmp_path / "c.pt", "replaced")])
    assert safe_load.load(tmp_path / "c.pt") == {"step": 2}


def test_what_is_unchanged_and_an_error_of_its_own(tmp_path):
    path, missing = tmp_path / "a", tmp_path / "missing"
    path.write_bytes(b"a")
    with Unchanged(path, missing):
        path.read_bytes()
    with pytest.raises(ZeroDivisionError), Unchanged(path):
        path.read_bytes()
        1 / 0  # noqa: B018
    with pytest.raises(KeyboardInterrupt), Unchanged(path):
        path.write_bytes(b"ab")
        raise KeyboardInterrupt
    with pytest.raises(UserError, match="missing was replaced or changed"), Unchanged(missing):
        missing.write_bytes(b"now it exists")


def test_what_is_left_out_is_said_in_short_lines(tmp_path):
    left_out = LeftOut()
    for name in ("a.png", "b.png", "c.gif", "d.svg", "e.ico"):
        left_out.add("no text", Path(name).suffix)
    left_out.add("hidden", "x" * 60)
    left_out.add("hidden", "y" * 60)
    assert left_out.lines() == ["no text: 5 (.png 2, .gif, .svg, ...)", f"hidden: 2 ({'x' * 60}, ...)"]
    with pytest.raises(UserError, match="There is no .*nowhere"):
        list(find_files([tmp_path / "nowhere"], lambda path: "", left_out))
