"""ingestion/ingest_dataset.py: JSON lines, text, CSV, Parquet and folders of `datasets`, to Parquet and to a corpus."""

import gzip
import json
import sys

import datasets
import extract_parquets_to_text
import pyarrow.parquet as pq
import pytest

from ingestion import ingest_dataset
from plumbing import parquet
from plumbing.corpus import END_OF_TEXT, read_documents, write_documents
from plumbing.errors import UsageError, UserError, run_script

TEXTS = ["first\n  é 日本\n", "second\r\nline", "third"]
EXPECTED = [text.replace("\r\n", "\n") for text in TEXTS]


def ingest(monkeypatch, tmp_path, *arguments) -> list[str]:
    """The documents of the corpus, after steps 1 and 2."""
    output, corpus = tmp_path / "output.parquet", tmp_path / "corpus.txt"
    monkeypatch.setattr(sys, "argv", ["ingest_dataset.py", *map(str, arguments), "--output", str(output)])
    ingest_dataset.main()
    monkeypatch.setattr(sys, "argv", ["extract_parquets_to_text.py", str(output), "--corpus", str(corpus)])
    extract_parquets_to_text.main()
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
    assert "empty files: 3" in out and out.count("d.txt: a document of 4 characters begins: text") == 1


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
        assert not (tmp_path / "output.parquet").exists()
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="No file in"):
        ingest(monkeypatch, tmp_path, tmp_path / "nothing")
    with pytest.raises(UsageError, match="--output would replace"):
        (tmp_path / "output.parquet").write_bytes(b"PAR1")
        ingest(monkeypatch, tmp_path, tmp_path / "output.parquet")
    monkeypatch.setattr(sys, "argv", ["ingest_dataset.py", str(tmp_path / "missing.jsonl")])
    with pytest.raises(SystemExit, match="1"):
        run_script(ingest_dataset.main)


HARD = [
    "a\r\nb\rc\n",
    f"\n{END_OF_TEXT}\n",
    f"x\n{END_OF_TEXT}\ny",
    f"x\r\n{END_OF_TEXT}\r\ny\r\n{END_OF_TEXT}",
    f"{END_OF_TEXT}\n\n é 日本 🐍",
    f"a {END_OF_TEXT} b",
    END_OF_TEXT,
    " \n",
    "\ufeffnot at the start of a file",
    "",
    "end",
]


@pytest.mark.parametrize("form", ["jsonl", "txt"])
def test_both_steps_give_the_corpus_that_one_step_would(tmp_path, monkeypatch, form):
    """The texts with LF for line ends, cut at lines <|endoftext|>, byte for byte."""
    for number, text in enumerate(HARD):
        data = text if form == "txt" else json.dumps({"text": text}) + "\n"
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number:02}.{form}").write_bytes(data.encode())
    plain = (text.replace("\r\n", "\n").replace("\r", "\n") for text in HARD)
    if form == "txt":
        plain = (text.removeprefix("\ufeff") for text in plain)
    write_documents(tmp_path / "expected.txt", plain)
    ingest(monkeypatch, tmp_path, tmp_path / "in")
    assert (tmp_path / "corpus.txt").read_bytes() == (tmp_path / "expected.txt").read_bytes()


def test_the_parquet_file_has_the_schema_of_ingestion(tmp_path, monkeypatch):
    source = write(tmp_path, "jsonl", "text")
    ingest(monkeypatch, tmp_path, source)
    table = pq.read_table(tmp_path / "output.parquet")
    assert table.schema == parquet.SCHEMA
    assert table.to_pylist() == [{"content": text, "path": str(source)} for text in TEXTS]


def test_what_extraction_reads_as_well_is_said(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "parquet"
    folder.mkdir()
    alone = folder / "one.parquet"
    parquet.show_extraction(alone, folder)
    assert capsys.readouterr().out == "Next: python scripts/extract_parquets_to_text.py\n"
    for name in ("one", "two"):
        (folder / f"{name}.parquet").write_bytes(b"")
    parquet.show_extraction(alone, folder)
    out = capsys.readouterr().out
    assert "and there are 1 more" in out and str(alone) in out
    assert out.endswith("Next: python scripts/extract_parquets_to_text.py\n")
    parquet.show_extraction(tmp_path / "else where.parquet", folder)
    assert capsys.readouterr().out.endswith(f"extract_parquets_to_text.py '{tmp_path / 'else where.parquet'}'\n")


def test_a_document_too_large_for_parquet_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_DOCUMENT_BYTES", 10)
    (tmp_path / "large.txt").write_text("0123456789é", "utf-8")
    with pytest.raises(UserError, match="large.txt has a document of .* Parquet takes at most 2 GB"):
        ingest(monkeypatch, tmp_path, tmp_path / "large.txt")
    assert not list(tmp_path.glob("output*"))
