"""JSON lines, text, CSV, parquet and folders of `datasets`, into a corpus."""

import gzip
import json
import sys

import datasets
import pytest

from ingestion import ingest_dataset
from plumbing.corpus import END_OF_TEXT, read_documents
from plumbing.errors import UserError, run_script

TEXTS = ["first\n  é 日本\n", "second\r\nline", "third"]
EXPECTED = [text.replace("\r\n", "\n") for text in TEXTS]


def ingest(monkeypatch, tmp_path, *arguments) -> list[str]:
    corpus = tmp_path / "corpus.txt"
    monkeypatch.setattr(sys, "argv", ["ingest_dataset.py", *map(str, arguments), "--corpus", str(corpus)])
    ingest_dataset.main()
    return list(read_documents(corpus))


def rows(column: str) -> list[dict]:
    return [{column: text, "stars": i} for i, text in enumerate(TEXTS)] + [{column: None, "stars": 9}]


def write(folder, kind: str, column: str):
    """A file, or a folder, of that kind that holds TEXTS."""
    path = folder / f"in.{kind}"
    if kind in ("jsonl", "jsonl.gz"):
        data = "".join(json.dumps(row) + "\n" for row in rows(column)).encode()
        path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    elif kind == "json":
        path.write_text(json.dumps(rows(column)), "utf-8")
    elif kind == "txt":
        path.write_bytes(f"\n{END_OF_TEXT}\n".join(TEXTS).encode())
    elif kind == "parquet":
        datasets.Dataset.from_list(rows(column)).to_parquet(path)
    elif kind == "saved":
        datasets.Dataset.from_list(rows(column)).save_to_disk(path)
    elif kind == "splits":
        table = datasets.Dataset.from_list(rows(column))
        datasets.DatasetDict({"train": table.select([0, 1]), "test": table.select([2, 3])}).save_to_disk(path)
    elif kind == "folder":
        path.mkdir()
        for i, text in enumerate(TEXTS):
            (path / f"{i}.jsonl").write_text(json.dumps({column: text}) + "\n", "utf-8")
        (path / "picture.png").write_bytes(b"\x89PNG")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "txt", "parquet", "saved", "splits", "folder"])
def test_every_kind_gives_the_same_corpus(tmp_path, monkeypatch, kind, capsys):
    assert ingest(monkeypatch, tmp_path, write(tmp_path, kind, "text")) == EXPECTED
    out = capsys.readouterr().out
    assert "3 documents" in out and ("empty rows: 1" in out) == (kind not in ("txt", "folder"))


def test_a_column_can_be_named_and_several_inputs_follow_each_other(tmp_path, monkeypatch):
    inputs = [write(tmp_path, kind, "story") for kind in ("jsonl", "txt")]
    assert ingest(monkeypatch, tmp_path, *inputs, "--column", "story") == EXPECTED * 2


def test_empty_files_are_counted_and_byte_order_marks_removed(tmp_path, monkeypatch, capsys):
    contents = {"a.txt": b"", "b.txt": b"\xef\xbb\xbf", "c.jsonl": b"", "d.txt": b"\xef\xbb\xbftext"}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    assert ingest(monkeypatch, tmp_path, *(tmp_path / name for name in contents)) == ["text"]
    out = capsys.readouterr().out
    assert "empty files: 3" in out and out.count("begins:") == 1


def test_what_cannot_be_read_is_named(tmp_path, monkeypatch):
    refused = {
        "missing.jsonl": (None, "There is no"),
        "broken.jsonl": (b'{"text": "a"}\n{"text": ', "broken.jsonl cannot be read"),
        "other.jsonl": (b'{"title": "a"}\n', "has no column content or text. It has: title"),
        "numbers.jsonl": (b'{"text": 7}\n', "The column text of .* holds int, not text"),
        "bad.parquet": (b"PAR1 no", "bad.parquet cannot be read"),
        "latin.txt": (b"caf\xe9", "is not UTF-8"),
        "picture.png": (b"\x89PNG", "ends in none of"),
        "empty.txt": (b"", "no document was found"),
        "empty.jsonl": (b"", "no document was found"),
        "a.txt.gz": (gzip.compress(b"a"), "Unpack .*a.txt.gz first: only .jsonl, .*can be read packed"),
    }
    for name, (data, reason) in refused.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=reason):
            ingest(monkeypatch, tmp_path, tmp_path / name)
        assert not (tmp_path / "corpus.txt").exists()
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="No file in"):
        ingest(monkeypatch, tmp_path, tmp_path / "nothing")
    with pytest.raises(UserError, match="--corpus would replace"):
        (tmp_path / "corpus.txt").write_text("a", "utf-8")
        ingest(monkeypatch, tmp_path, tmp_path / "corpus.txt")
    monkeypatch.setattr(sys, "argv", ["ingest_dataset.py", str(tmp_path / "missing.jsonl")])
    with pytest.raises(SystemExit, match="1"):
        run_script(ingest_dataset.main)
