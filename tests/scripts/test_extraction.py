"""scripts/extract_parquets_to_text.py: text to the byte, inputs, damage, duplicates, shards, memory."""

import os
import random
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_scripts import (
    EXTRACT,
    KINDS,
    SAMPLE,
    TRAIN_CHAR,
    VARIED,
    M,
    damaged,
    refused,
    write_corpus,
    write_parquet,
)

import config
from plumbing.corpus import (
    document_hashes,
    read_documents,
)
from plumbing.text import byte_size


def test_files_and_folders_are_extracted_in_order(run, project):
    write_parquet(project / "z.parquet", ["z1", "z2"])
    write_parquet(project / "folder" / "b.parquet", ["b"])
    write_parquet(project / "folder" / "deep" / "a.parquet", ["a"])
    (project / "folder" / "notes.txt").write_text("no parquet")
    result = run(EXTRACT, "z.parquet", "folder", "--corpus", "c.txt")
    assert (result.code, result.err) == (0, "")
    assert list(read_documents(Path("c.txt"))) == ["z1", "z2", "b", "a"]
    assert "of 3 parquet files" in result.out
    assert f"4 documents, {byte_size(Path('c.txt').stat().st_size)}, in c.txt" in result.out


@pytest.mark.parametrize(("size", "following"), [(3_900_000, TRAIN_CHAR), (4_100_000, f"{SAMPLE} --megabytes 4")])
def test_of_a_large_corpus_a_sample_comes_next(run, project, size, following):
    write_parquet(project / "p.parquet", ["x" * size])
    assert f"\nNext: python {following} --corpus c.txt\n" in run(EXTRACT, "p.parquet", "--corpus", "c.txt").out


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
    assert "files with a line <|endoftext|>, which splits them: 1" in result.out


def test_rows_without_text_and_marker_lines_are_counted(run, project):
    texts = ["a", None, "", f"b\n{M}\nc", None, f"{M}\n", f"print('{M}')", " "]
    write_parquet(project / "p.parquet", texts)
    result = run(EXTRACT, "p.parquet", "--corpus", "c.txt")
    assert result.code == 0
    assert "empty rows: 3" in result.out
    assert "files with a line <|endoftext|>, which splits them: 2" in result.out
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
    """HF_HUB_CACHE, also by its old name, before HF_HOME before XDG_CACHE_HOME; variables and ~ in them; the newest
    revision; links to blobs."""
    blob = write_parquet(project / "blobs" / "0f3a", ["xdg"])
    places = {
        "xdg": project / "xdg" / "huggingface" / "hub",
        "home": project / "home" / "hub",
        "cache": project / "cache",
        "old": project / "old name",
        "variable": project / "v" / "hub",
        "tilde": project / "~home" / "hub",
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
    monkeypatch.setenv("BELOW", str(project))
    monkeypatch.setenv("HOME", str(project))
    monkeypatch.delenv("HUGGINGFACE_HUB_CACHE", raising=False)
    monkeypatch.delenv("HF_HOME")
    for name, variable, value in (
        ("xdg", None, None),
        ("home", "HF_HOME", project / "home"),
        ("variable", "HF_HOME", "$BELOW/v"),
        ("tilde", "HF_HOME", "~/~home"),
        ("old", "HUGGINGFACE_HUB_CACHE", project / "old name"),
        ("cache", "HF_HUB_CACHE", "${BELOW}/cache"),
    ):
        if variable:
            monkeypatch.setenv(variable, str(value))
        assert run(EXTRACT, "--corpus", "c.txt").code == 0
        assert Path("c.txt").read_text() == name


def test_somebody_without_a_home_is_told_what_there_is_not(run, project, monkeypatch):
    """In some containers, the user has neither HOME nor an entry in the list of users."""
    pwd = pytest.importorskip("pwd")
    monkeypatch.setattr(pwd, "getpwuid", lambda number: {}[number])
    for variable in ("HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    refused(run(EXTRACT, "--corpus", "c.txt"), "No parquet file in", "huggingface/hub/datasets--bigcode--the-stack")


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


def test_a_shard_of_empty_rows_has_no_type(run, project):
    write_parquet(project / "in" / "a.parquet", ["a"])
    pq.write_table(pa.table({"content": [None, None]}), "in/b.parquet")
    result = run(EXTRACT, "in", "--corpus", "c.txt")
    assert (result.code, Path("c.txt").read_text()) == (0, "a")
    assert "empty rows: 2" in result.out


def test_a_column_whose_name_is_also_a_path_into_another(run, project):
    table = pa.table({"a": [{"b": "inside"}], "a.b": ["this one"]})
    for number, names in enumerate((["a", "a.b"], ["a.b", "a"])):
        pq.write_table(table.select(names), f"{number}.parquet")
        assert run(EXTRACT, f"{number}.parquet", "--column", "a.b", "--corpus", "c.txt").code == 0
        assert Path("c.txt").read_text() == "this one"


@pytest.mark.parametrize("name", [b"part[1]", b"a*", b"file:x", b"s3:x", b"a::b", b"a%20b", b"~", b"caf\xe9"])
def test_a_name_is_a_name_and_not_an_address(run, project, name):
    path = Path(os.fsdecode(name) + ".PARQUET")
    try:
        with open(path, "wb") as file:
            pq.write_table(pa.table({"content": ["this one"]}), file)
    except OSError:
        pytest.skip("this file system takes no such names")
    result = run(EXTRACT, path, "--corpus", "c.txt")
    assert (result.code, result.err, Path("c.txt").read_text()) == (0, "", "this one")


def test_files_are_read_once_and_the_rest_is_named(run, project):
    write_parquet(project / "in" / "x.parquet" / "part-0.snappy.parquet", ["part"])  # as Spark writes a table
    for name in ("x.parquet/_temporary/0.parquet", ".ipynb_checkpoints/a.parquet", "._a.parquet", "notes.md"):
        write_parquet(project / "in" / name, ["not to be read"])
    write_parquet(project / "in" / "B.PARQUET", ["b"])
    (project / "in" / "again").symlink_to(project / "in", target_is_directory=True)
    (project / "in" / "c.parquet").symlink_to("B.PARQUET")
    if hasattr(os, "mkfifo"):
        os.mkfifo(project / "in" / "p.parquet")
    result = run(EXTRACT, "in", Path("in") / "B.PARQUET", "--corpus", "c.txt")
    assert (result.code, list(read_documents(Path("c.txt")))) == (0, ["b", "part"])
    lines = sorted(line.partition(" (")[0] for line in result.out.splitlines() if "left out" in line)
    assert [line for line in lines if "regular" not in line] == [
        "  left out, hidden: 3",
        "  left out, links to folders: 1",
        "  left out, not Parquet: 1",
        "  left out, the same file again: 2",
    ]
    assert not hasattr(os, "mkfifo") or "  left out, not a regular file: 1" in lines


def test_a_file_without_permission_is_not_called_damaged(run, project):
    (project / "in").mkdir()
    (project / "in" / "a.parquet").symlink_to("nowhere")
    refused(run(EXTRACT, "in", "--corpus", "c.txt"), "a.parquet cannot be read", "No such file")


def test_two_columns_of_the_same_name_are_refused(run, project):
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["content", "content"]), "p.parquet")
    refused(run(EXTRACT, "p.parquet", "--corpus", "c.txt"), "p.parquet")


# === damage ===========================================================================================================


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
    assert f"left out from the damage on: {Path('in') / 'b.parquet'} is damaged" in result.err
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


# === memory, duplicates, shards =======================================================================================


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


def test_duplicates_are_left_out_across_files_and_counted(run, project):
    rng = random.Random(1)
    documents = [rng.choice(VARIED[:40]) for _ in range(500)]
    (project / "in").mkdir()
    for i in range(4):
        table = pa.table({"content": [*documents[i::4], None, "", f"a\r\n{M}\rb"]})
        pq.write_table(table, project / "in" / f"{i}.parquet", row_group_size=50)
    everything = [d for i in range(4) for d in (*documents[i::4], "a", "b")]
    for workers in (1, 3):
        result = run(EXTRACT, "in", "--deduplicate", "--corpus", "c.txt", "--workers", workers)
        assert list(read_documents(Path("c.txt"))) == list(dict.fromkeys(everything))
        assert f"duplicates left out: {len(everything) - len(set(everything)):,}" in result.out
        assert "empty rows: 8" in result.out
    assert len(set(document_hashes(d.encode() for d in set(everything)).tolist())) == len(set(everything))


def test_shards_of_the_files_are_all_files(run, project):
    for i in range(5):
        config.CHAR.parquet_dir.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"content": [f"{i}a", f"{i}b"]}), config.CHAR.parquet_dir / f"{i}.parquet")
    for i in (1, 2):
        assert run(EXTRACT, "--shard", f"{i}/2").code == 0
    shards = [list(read_documents(project / "data" / f"corpus.{i}-of-2.txt")) for i in (1, 2)]
    assert shards == [["0a", "0b", "2a", "2b", "4a", "4b"], ["1a", "1b", "3a", "3b"]]
    Path("c.txt").write_bytes(b"".join((project / "data" / f"corpus.{i}-of-2.txt").read_bytes() for i in (1, 2)))
    assert list(read_documents(Path("c.txt"))) == shards[0] + shards[1]
    refused(run(EXTRACT, "--shard", "6/6"), "more shards than parquet files")
    for wrong in ("0/2", "3/2", "1", "a/b"):
        assert run(EXTRACT, "--shard", wrong).code == 2
