"""ingestion/ingest_dataset.py: JSON lines, text, CSV, Parquet and folders of `datasets`, to Parquet and to a corpus."""

import csv
import gzip
import json
import lzma
import os
import sys

import extract_parquets_to_text
import pyarrow as pa
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


def table_of(rows: list[dict]):
    """A Dataset of the library `datasets`, which takes a second to import."""
    from datasets import Dataset

    return Dataset.from_list(rows)


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
        table_of(rows(column)).to_parquet(path)
    elif kind == "saved":
        table_of(rows(column)).save_to_disk(path)
    elif kind == "splits":
        table = table_of(rows(column))
        from datasets import DatasetDict

        DatasetDict({"test": table.select([0, 1]), "train": table.select([2, 3])}).save_to_disk(path)
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


# === what is read is what was named ===================================================================================


@pytest.mark.parametrize(
    "name", ["part[1].jsonl", "data [1].jsonl", "a*.jsonl", "a?.jsonl", "{a,b}.jsonl", "s3:x.jsonl"]
)
def test_a_name_is_a_name_and_not_a_pattern(tmp_path, monkeypatch, name):
    for other in ("part1.jsonl", "ab.jsonl", "a.jsonl"):
        (tmp_path / other).write_text('{"text": "another file"}\n', "utf-8")
    for suffix in (name, name.replace("jsonl", "csv"), name.replace("jsonl", "parquet"), f"::{name}", f"file:{name}"):
        write_as(tmp_path / suffix, ["this one"])
        assert ingest(monkeypatch, tmp_path, tmp_path / suffix) == ["this one"]


def write_as(path, texts: list[str]):
    """The texts as a file of one column, in the format that its ending says."""
    if path.suffix == ".parquet":
        with open(path, "wb") as file:
            pq.write_table(pa.table({"text": texts}), file)
    elif path.suffix == ".csv":
        path.write_text("text\n" + "".join(f"{text}\n" for text in texts), "utf-8")
    else:
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")


def test_a_saved_folder_whose_name_could_be_a_pattern_or_an_address(tmp_path, monkeypatch):
    for name in ("saved[1]", "a::b"):
        table_of(rows("text")).save_to_disk(tmp_path / "plain")
        os.rename(tmp_path / "plain", tmp_path / name)
        assert ingest(monkeypatch, tmp_path, tmp_path / name) == EXPECTED


@pytest.mark.skipif(sys.platform == "darwin", reason="names are UTF-8 there")
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_name_that_is_no_text(tmp_path, monkeypatch, suffix):
    path = tmp_path / os.fsdecode(b"caf\xe9" + suffix.encode())
    write_as(path, ["text"])
    assert ingest(monkeypatch, tmp_path, path) == ["text"]


# === no type is guessed ===============================================================================================


CELLS = [
    "null",
    "NA",
    "None",
    "nan",
    "",
    "007",
    "1.10",
    "12",
    "true",
    "2024-01-01",
    "2024-01-01T00:00:00Z",
    "-inf",
    "a,b",
]


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_cells_are_text_to_the_letter(tmp_path, monkeypatch, capsys, suffix, delimiter):
    with open(tmp_path / f"a.{suffix}", "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([("id", "text"), *enumerate([*CELLS, ' a\n"b" '])])
    expected = [cell for cell in [*CELLS, ' a\n"b" '] if cell]
    assert ingest(monkeypatch, tmp_path, tmp_path / f"a.{suffix}") == expected
    assert "empty rows: 1" in capsys.readouterr().out


def test_numbers_behind_ten_thousand_words_are_text(tmp_path, monkeypatch):
    texts = [f"word{i}" for i in range(10_000)] + ["12"] * 10_000
    write_as(tmp_path / "a.csv", texts)
    assert ingest(monkeypatch, tmp_path, tmp_path / "a.csv") == texts


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("title,text\nA,hello world,x\nB,you there,y\n", "line 2: 3 fields, and the header has 2"),
        ('title,text\nA,"b\nc"\nB,"d",e\n', "line 4: 3 fields"),
        ('title,text\nA,"never closed\n', "line 2: "),
        ("text,text\na,b\n", "has several columns text"),
    ],
)
def test_a_csv_whose_columns_are_in_doubt_is_refused(tmp_path, monkeypatch, text, reason):
    (tmp_path / "a.csv").write_text(text, "utf-8")
    with pytest.raises(UserError, match=f"a.csv .*{reason}"):
        ingest(monkeypatch, tmp_path, tmp_path / "a.csv", "--column", "text")


def test_other_columns_of_json_lines_may_hold_anything(tmp_path, monkeypatch, capsys):
    filler = [{"text": "x" * 100_000, "other": i} for i in range(120)]  # 12 MB: the reader's schema is long made
    odd = [
        {"text": "changed type", "other": "a string"},
        {"late": [1], "text": "appears late", "other": {"a": 1}},
        {"text": "2024-01-01", "type": "user", "message": "hi"},
        {"text": "2024-01-01T00:00:00Z", "type": "user", "message": {"role": "x"}},
        {"other": "no text at all"},
    ]
    lines = [json.dumps(row) for row in [*filler, *odd]] + ['{"text": "long number", "n": ' + "1" * 5000 + "}"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), "utf-8")
    texts = ingest(monkeypatch, tmp_path, tmp_path / "a.jsonl")
    assert texts[120:] == ["changed type", "appears late", "2024-01-01", "2024-01-01T00:00:00Z", "long number"]
    assert "empty rows: 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        '{"text": "a"}\r\n\r\n{"text": "b\u2028c"}',
        '\ufeff{"text": "a"}\n{"text": "b\u2028c"}\n',
        '[{"text": "a"}, {"text": "b\u2028c"}]',
        '[\n  "a",\n  "b\u2028c"\n]\n',
        '{\n  "text": "a"\n}\n{\n  "text": "b\u2028c"\n}\n',
    ],
)
def test_the_forms_of_json(tmp_path, monkeypatch, text):
    (tmp_path / "a.json").write_bytes(text.encode())
    assert ingest(monkeypatch, tmp_path, tmp_path / "a.json") == ["a", "b\u2028c"]


@pytest.mark.parametrize("form", ['{{"text": "{}"}}\n', '[{{"text": "{}"}}]'])
def test_half_a_surrogate_pair_is_named(tmp_path, monkeypatch, form):
    (tmp_path / "a.json").write_text(form.format("cut \\ud83d here"), "utf-8")
    with pytest.raises(UserError, match="a.json holds half of a surrogate pair, which is no character, in row 1"):
        ingest(monkeypatch, tmp_path, tmp_path / "a.json")


def test_columns_of_tables(tmp_path, monkeypatch, capsys):
    """A shard without any text, and a column whose name is also a path into another column."""
    pq.write_table(pa.table({"a.b": [None, None], "a": [{"b": "no"}] * 2}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": [{"b": "no"}], "a.b": ["yes"]}), tmp_path / "2.parquet")
    with pa.ipc.new_file(tmp_path / "3.arrow", schema := pa.schema([("a.b", pa.large_string())])) as writer:
        writer.write_table(pa.table({"a.b": ["other format"]}, schema=schema))
    inputs = [tmp_path / name for name in ("1.parquet", "2.parquet", "3.arrow")]
    assert ingest(monkeypatch, tmp_path, *inputs, "--column", "a.b") == ["yes", "other format"]
    assert "empty rows: 2" in capsys.readouterr().out


# === nothing is left out without a word, nothing is read twice ========================================================


def test_a_folder_is_read_once_and_the_rest_is_named(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("b.jsonl", "e.ndjson"):
        write_as(folder / name, [name])
    write_as(folder / "d.parquet", ["d"])
    os.rename(folder / "d.parquet", folder / "d.Parquet")
    (folder / "a.TXT").write_text("a", "utf-8")
    (folder / "C.CSV").write_text("text\nc\n", "utf-8")
    (folder / "f.tsv").write_text("id\ttext\n1\tf\n", "utf-8")
    (folder / "g.txt.gz").write_bytes(gzip.compress(b"g"))
    for name in (".ipynb_checkpoints/b.jsonl", "._d.parquet", "_temporary/0.parquet", "p.png", "q.png", "no_ending"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\0")
    (folder / "link").symlink_to(folder, target_is_directory=True)
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.parquet")
    table_of(rows("text")[:1]).save_to_disk(folder / "saved" / "train")
    (folder / "saved" / "train" / "stale.arrow").write_bytes(b"\0")
    once = ["c", "a", "b.jsonl", "d", "e.ndjson", "f", "g", EXPECTED[0]]
    texts = ingest(monkeypatch, tmp_path, folder, folder / "b.jsonl", folder / "a.TXT", *folder.glob("saved/*/data-*"))
    assert texts == once
    lines = [line.removeprefix("  left out, ") for line in capsys.readouterr().out.splitlines() if "left out" in line]
    names = {line.partition(": ")[0]: line.partition(": ")[2] for line in lines}
    assert names.pop("hidden").startswith("3 (")
    assert names.pop("the same file again").startswith("3 (")
    assert names.pop("links to folders").endswith("in/link)")
    assert not hasattr(os, "mkfifo") or names.pop("not a regular file").endswith("in/pipe.parquet)")
    assert names == {
        "of another format": "3 (.png 2, no ending)",
        "describes a saved dataset": "2 (.json 2)",
        "not part of the saved dataset beside it": "1 (.arrow)",
    }


def test_a_folder_that_cannot_be_opened_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "in" / "closed").mkdir(parents=True)
    write_as(tmp_path / "in" / "a.jsonl", ["a"])
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert ingest(monkeypatch, tmp_path, tmp_path / "in") == ["a"]
    out = capsys.readouterr().out
    assert "left out, folders that cannot be opened: 1 (" in out and "closed)" in out


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "p.jsonl")
    with pytest.raises(UserError, match="p.jsonl is neither a file nor a folder"):
        ingest(monkeypatch, tmp_path, tmp_path / "p.jsonl")


def test_a_folder_of_parts_is_a_folder(tmp_path, monkeypatch):
    """x.parquet/ as Spark writes it."""
    (tmp_path / "x.parquet" / "_temporary").mkdir(parents=True)
    write_as(tmp_path / "x.parquet" / "part-0.snappy.parquet", ["a"])
    write_as(tmp_path / "x.parquet" / "_temporary" / "part-0.parquet", ["a"])
    (tmp_path / "x.parquet" / "_SUCCESS").touch()
    assert ingest(monkeypatch, tmp_path, tmp_path / "x.parquet") == ["a"]


def test_rows_that_extraction_cuts_are_counted(tmp_path, monkeypatch, capsys):
    write_as(tmp_path / "a.jsonl", [f"a\r\n{END_OF_TEXT}\r\nb", f"print('{END_OF_TEXT}')"])
    assert ingest(monkeypatch, tmp_path, tmp_path / "a.jsonl") == ["a", "b", f"print('{END_OF_TEXT}')"]
    assert "with a line <|endoftext|>, where extraction cuts them: 1\n" in capsys.readouterr().out


@pytest.mark.parametrize("end", ["gz", "xz", "zst"])
def test_packed_files_are_whole_or_refused(tmp_path, monkeypatch, end):
    pack = {"gz": gzip.compress, "xz": lzma.compress, "zst": lambda data: pa.compress(data, "zstd", asbytes=True)}[end]
    for name in ("a.jsonl", "b.csv", "c.txt", "d.parquet"):
        write_as(tmp_path / name, ["x"] * 999) if name != "c.txt" else (tmp_path / name).write_text("x", "utf-8")
        data = pack((tmp_path / name).read_bytes())
        (tmp_path / f"{name}.{end}").write_bytes(data)
        assert ingest(monkeypatch, tmp_path, tmp_path / f"{name}.{end}") == ["x"] * (1 if name == "c.txt" else 999)
        (tmp_path / f"{name}.{end}").write_bytes(data[: len(data) // 2])
        with pytest.raises(UserError, match=f"{name}.{end} cannot be read"):
            ingest(monkeypatch, tmp_path, tmp_path / f"{name}.{end}")


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
        "numbers.jsonl": (b'{"text": 7}\n', "numbers.jsonl holds int, not text, in row 1 of the column"),
        "bad.parquet": (b"PAR1 no", "bad.parquet cannot be read"),
        "latin.txt": (b"caf\xe9", "is not UTF-8"),
        "picture.png": (b"\x89PNG", "ends in none of"),
        "empty.txt": (b"", "no document was found"),
        "empty.jsonl": (b"", "no document was found"),
        "cut.txt.gz": (gzip.compress(b"a" * 999)[:-9], "cut.txt.gz cannot be read"),
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
