"""The data path in pieces: any number of workers, stopped and started again, in shares, merged, looked into."""

import json
import random
import re
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_data_scripts
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_scripts import (
    EXTRACT,
    PREPARE_BPE,
    PREPARE_CHAR,
    TRAIN_BPE,
    TRAIN_CHAR,
    M,
    files_of,
    refused,
    snapshot,
    write_corpus,
)
from test_dataset import folder, plain_documents, texts  # noqa: F401 (a fixture)

import config
import dataset
from model.tokenization.tokenizer import load_tokenizer
from plumbing import corpus as corpus_file
from plumbing import files, journal, parallel
from plumbing.corpus import (
    SeenDocuments,
    cut_at_borders,
    document_hashes,
    find_border,
    read_document_bytes,
    read_documents,
)
from plumbing.errors import UserError
from plumbing.journal import Journal
from plumbing.parallel import in_input_order

project, run, prepare = test_data_scripts.project, test_data_scripts.run, test_data_scripts.prepare  # fixtures
INSPECT, MERGE = "scripts/inspect_data.py", "scripts/merge_token_files.py"
CORPUS = [f"import os\n\n\ndef f{i}(x):\n    return x + {i}  # naïve {'ab' * (i % 7)}\n" for i in range(200)]


# === several at once, in order ========================================================================================


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_results_come_in_order(workers):
    def work(item):
        time.sleep(random.random() / 1000)
        yield from (f"{item}.{i}" for i in range(item % 7))

    found = [(item, list(results)) for item, results in in_input_order(work, range(30), workers)]
    assert found == [(item, [f"{item}.{i}" for i in range(item % 7)]) for item in range(30)]


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_comes_at_its_place_and_nothing_hangs(workers):
    def work(item):
        yield item
        if item == 4:
            raise ValueError("four")
        yield item

    taken = []
    with pytest.raises(ValueError, match="four"):
        for _, results in in_input_order(work, range(1000), workers):
            taken += results
    assert taken == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


def test_workers_do_not_run_far_ahead():
    """Memory is bounded: of 100 pieces of 100 results, few are made before anything is taken."""
    made = []

    def work(item):
        for i in range(100):
            made.append((item, i))
            yield i

    stream = in_input_order(work, range(100), 2)
    _, results = next(stream)
    next(results)
    time.sleep(0.3)
    assert len(made) <= 3 * (parallel.AHEAD + 2)
    stream.close()


def test_a_worker_far_enough_ahead_ends_its_piece_before_that_is_asked_for():
    ended = threading.Event()

    def work(item):
        yield from range(20)
        if item == 1:
            ended.set()

    stream = in_input_order(work, range(2), 2, ahead=20)
    next(next(stream)[1])
    assert ended.wait(30)
    stream.close()


# === cutting a corpus =================================================================================================


@settings(max_examples=150, deadline=None)
@given(text=texts, size=st.integers(1, 60))
def test_the_documents_of_the_pieces_are_those_of_the_file(folder, text, size):  # noqa: F811
    path = folder / "pieces.txt"
    path.write_bytes(text.encode())
    ranges = list(cut_at_borders(path, 0, path.stat().st_size, size))
    assert [end for _, end in ranges[:-1]] == [start for start, _ in ranges[1:]]
    found = [document.decode() for piece in ranges for document in read_document_bytes(path, *piece)]
    assert found == plain_documents(text)


def test_a_border_is_behind_a_separator(tmp_path):
    path = write_corpus(tmp_path / "c.txt", ["ab", "cd"])  # ab, 15 bytes of separator, cd
    assert [find_border(path, at) for at in (0, 1, 17, 18, 19, 99)] == [0, 17, 17, 19, 19, 19]


# === stopped and started again ========================================================================================


class Stop(BaseException):
    """Ends a run where a kill would."""


def stopped_at(monkeypatch, number: int):
    """A run's journal ends it when it has made so many entries."""
    real, count = Journal.note, [0]

    def note(self, files, state):
        real(self, files, state)
        count[0] += 1
        if count[0] == number:
            raise Stop

    monkeypatch.setattr(Journal, "note", note)


def start_and_stop(monkeypatch, main, number: int) -> None:
    with monkeypatch.context() as patch:
        stopped_at(patch, number)
        with pytest.raises(Stop):
            main()


@pytest.fixture
def small_pieces(monkeypatch):
    """Everything in many pieces, and each of them noted."""
    import scripts.extract_parquets_to_text as extraction
    import scripts.prepare_dataset as preparation

    monkeypatch.setattr(journal, "SECONDS", 0.0)
    monkeypatch.setattr(preparation, "PIECE_BYTES", 700)
    monkeypatch.setattr(extraction, "PIECE_BYTES", 3000)
    monkeypatch.setattr(extraction, "CHAR", config.CHAR)
    return extraction, preparation


@pytest.mark.parametrize("kind", ["char", "bpe"])
@pytest.mark.parametrize("number", [1, 4, 9])
def test_a_preparation_goes_on_and_gives_the_same_bytes(run, project, small_pieces, monkeypatch, capsys, kind, number):
    base = config.CHAR if kind == "char" else config.BPE
    write_corpus(base.corpus, [*CORPUS, "unknown Ω"])
    run(TRAIN_CHAR)
    run(TRAIN_BPE, "--vocab-size", "300")
    write_corpus(base.corpus, [*CORPUS[:20], "unknown ΩΩ", *CORPUS[20:]])

    def main():
        monkeypatch.setattr("sys.argv", ["script.py", "--quiet"])
        small_pieces[1].main(base, kind=kind)

    main()
    expected = snapshot(project / "data")
    start_and_stop(monkeypatch, main, number)
    unfinished = list((project / "data").glob("*.tmp"))
    assert len(unfinished) == 3  # two token files and the journal
    read = []
    real = corpus_file.read_document_bytes
    monkeypatch.setattr(small_pieces[1], "read_document_bytes", lambda *a, **k: (read.append(a[1:]), real(*a, **k))[1])
    capsys.readouterr()
    main()
    assert "Going on behind the" in capsys.readouterr().out
    assert snapshot(project / "data") == expected
    assert (0, find_border(base.corpus, 700)) not in read  # the first piece was not made again


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("flags", [[], ["--deduplicate"]])
def test_an_extraction_goes_on_and_gives_the_same_bytes(project, small_pieces, monkeypatch, capsys, number, flags):
    for name in "ab":
        table = pa.table({"content": [name, *CORPUS, "again", *CORPUS[:50], f"x\r\n{M}\ny"]})
        config.CHAR.parquet_dir.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, config.CHAR.parquet_dir / f"{name}.parquet", row_group_size=30)
    monkeypatch.setattr("sys.argv", ["script.py", *flags])
    assert small_pieces[0].main() == 0
    expected, out = snapshot(project / "data"), capsys.readouterr().out
    start_and_stop(monkeypatch, small_pieces[0].main, number)
    assert len(list((project / "data").glob("*.tmp"))) == 2
    assert small_pieces[0].main() == 0
    assert snapshot(project / "data") == expected
    again = capsys.readouterr().out
    assert "Going on behind the" in again
    counts = re.compile(r"^  [^a].*: [\d,]+$|^[\d,]+ documents", re.MULTILINE)
    assert counts.findall(again) == counts.findall(out) != []
    documents = list(read_documents(config.CHAR.corpus))
    if flags:
        assert documents == ["a", *CORPUS, "again", "x", "y", "b"]
    else:
        assert documents == [d for name in "ab" for d in (name, *CORPUS, "again", *CORPUS[:50], "x", "y")]


def test_what_a_result_depends_on_is_compared(run, project, small_pieces, monkeypatch, capsys):
    """Another corpus, split, tokenizer: the run begins at the beginning, and leaves nothing behind."""
    write_corpus(config.CHAR.corpus, CORPUS)
    run(TRAIN_CHAR)
    _, preparation = small_pieces

    def main(*flags):
        monkeypatch.setattr("sys.argv", ["script.py", "--quiet", *flags])
        preparation.main(config.CHAR, kind="char")

    for change in (
        lambda: write_corpus(config.CHAR.corpus, CORPUS[1:]),
        lambda: ("--val-fraction", "0.3"),
        lambda: (run(TRAIN_CHAR, "--corpus", write_corpus(project / "o", [*CORPUS, "é"])), None)[1],
    ):
        main()
        start_and_stop(monkeypatch, main, 3)
        flags = change()
        capsys.readouterr()
        main(*(flags if isinstance(flags, tuple) else ()))
        assert "Going on" not in capsys.readouterr().out
        assert list(project.rglob("*.tmp")) == []
        expected = snapshot(project / "data")
        main(*(flags if isinstance(flags, tuple) else ()))
        assert snapshot(project / "data") == expected


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b"{"), lambda p: p.unlink(), lambda p: p.write_text("[1]")])
def test_a_damaged_journal_is_as_none(run, project, small_pieces, monkeypatch, damage):
    write_corpus(config.CHAR.corpus, CORPUS)
    run(TRAIN_CHAR)

    def main():
        monkeypatch.setattr("sys.argv", ["script.py", "--quiet"])
        small_pieces[1].main(config.CHAR, kind="char")

    main()
    expected = snapshot(project / "data")
    start_and_stop(monkeypatch, main, 3)
    (journal,) = (project / "data").glob("*.journal.tmp")
    damage(journal)
    main()
    assert snapshot(project / "data") == expected


def test_unfinished_bytes_that_are_not_vouched_for_are_cut_off(run, project, small_pieces, monkeypatch):
    """A run was killed while it wrote on behind the last entry. The control: without cutting, the result differs."""
    write_corpus(config.CHAR.corpus, CORPUS)
    run(TRAIN_CHAR)

    def main():
        monkeypatch.setattr("sys.argv", ["script.py", "--quiet"])
        small_pieces[1].main(config.CHAR, kind="char")

    main()
    expected = snapshot(project / "data")

    def stop_and_add():
        start_and_stop(monkeypatch, main, 3)
        with open(project / "data" / "train.bin.unfinished.tmp", "ab") as file:
            file.write(b"\1\0" * 77)

    stop_and_add()
    main()
    assert snapshot(project / "data") == expected
    stop_and_add()
    real = Journal.size
    monkeypatch.setattr(Journal, "size", lambda self, path: real(self, path) + 14 * ("train" in path.name))
    with pytest.raises(UserError, match=r"train\.bin has .* bytes and should have"):
        main()


def test_outputs_of_one_name_in_two_folders_go_on(run, project, small_pieces, monkeypatch, capsys):
    write_corpus(config.CHAR.corpus, CORPUS)
    run(TRAIN_CHAR)

    def main():
        monkeypatch.setattr("sys.argv", ["script.py", "--quiet", "--train-file", "a/x.bin", "--val-file", "b/x.bin"])
        small_pieces[1].main(config.CHAR, kind="char")

    main()
    expected = snapshot(project)
    start_and_stop(monkeypatch, main, 9)
    main()
    assert "Going on" in capsys.readouterr().out
    assert snapshot(project) == expected


def test_two_runs_at_once_are_told_apart(run, project, small_pieces, monkeypatch):
    write_corpus(config.CHAR.corpus, CORPUS)
    run(TRAIN_CHAR)
    half = project / "data" / "train.bin.unfinished.tmp"
    half.write_bytes(b"")
    with open(half, "r+b") as file:
        files.try_lock(file)
        refused(run(PREPARE_CHAR), "Another run is writing", "train.bin")
    assert run(PREPARE_CHAR).code == 0


# === shares of several machines =======================================================================================


def test_shares_joined_are_the_whole(run, project, prepare):
    script, settings = prepare
    write_corpus(settings.corpus, CORPUS)
    assert run(script, "--val-fraction", "0.3").code == 0
    whole = {path.name: path.read_bytes() for path in files_of(settings).values()}
    facts = {name: json.loads((project / "data" / f"{name}.json").read_text()) for name in whole}
    for i in (1, 2, 3):
        assert run(script, "--val-fraction", "0.3", "--shard", f"{i}/3").code == 0
    for path in files_of(settings).values():
        path.unlink()
        result = run(MERGE, f"data/{path.stem}.*-of-3.bin", "--output", path)
        assert (result.code, result.err) == (0, "")
        assert path.read_bytes() == whole[path.name]
        assert json.loads(Path(f"{path}.json").read_text()) == facts[path.name]
    refused(
        run(MERGE, f"data/{path.stem}.1-of-3.bin", f"data/{path.stem}.3-of-3.bin", "--output", "x.bin"), "missing [2]"
    )


@pytest.mark.parametrize("missing", ["train", "val"])
def test_a_share_without_a_document_for_a_part_can_be_joined(run, project, prepare, missing):
    script, settings = prepare
    split_of = {d: corpus_file.split_of(d.encode(), 0.3) for d in CORPUS}
    few = [next(d for d in CORPUS if split_of[d] == missing)] * 2
    write_corpus(settings.corpus, [d for d in CORPUS if split_of[d] != missing][:20] + few)
    fraction = ("--val-fraction", "0.3")
    assert run(script, *fraction).code == 0
    whole = {path.name: path.read_bytes() for path in files_of(settings).values()}
    for i in (1, 2):
        result = run(script, *fraction, "--shard", f"{i}/2")
        assert (result.code, result.err) == (0, "")
        assert (f"no document of this share fell to {missing}" in result.out) == (i == 1)
    for path in files_of(settings).values():
        assert run(MERGE, f"data/{path.stem}.*-of-2.bin", "--output", path).code == 0
        assert path.read_bytes() == whole[path.name]
    # A folder of shares is what they are merged; an empty share is no data by itself.
    empty = files_of(settings)[missing]
    (project / "folder").mkdir()
    for share in (project / "data").glob(f"{empty.stem}.*-of-2.bin*"):
        share.rename(project / "folder" / share.name)
    assert dataset.open_tokens(project / "folder").tokens[:].tobytes() == whole[empty.name]
    empty = project / "folder" / f"{empty.stem}.1-of-2.bin"
    with pytest.raises(UserError, match="holds no tokens"):
        dataset.open_tokens(empty)
    refused(run(MERGE, empty, "--output", "x.bin"), "not all shares")
    (project / "folder" / f"{empty.name}.json").rename("e.bin.json")
    empty.rename("e.bin")
    refused(run(MERGE, "e.bin", "--output", "x.bin"), "hold no tokens")


def test_shares_of_different_files_are_not_joined(run, project):
    refused(run(MERGE, "train.1-of-2.bin", "val.2-of-2.bin", "--output", "x.bin"), "different files: train, val")


def test_shares_of_files_are_all_files(run, project):
    for i in range(5):
        config.CHAR.parquet_dir.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"content": [f"{i}a", f"{i}b"]}), config.CHAR.parquet_dir / f"{i}.parquet")
    for i in (1, 2):
        assert run(EXTRACT, "--shard", f"{i}/2").code == 0
    shares = [list(read_documents(project / "data" / f"corpus.{i}-of-2.txt")) for i in (1, 2)]
    assert shares == [["0a", "0b", "2a", "2b", "4a", "4b"], ["1a", "1b", "3a", "3b"]]
    Path("c.txt").write_bytes(b"".join((project / "data" / f"corpus.{i}-of-2.txt").read_bytes() for i in (1, 2)))
    assert list(read_documents(Path("c.txt"))) == shares[0] + shares[1]
    refused(run(EXTRACT, "--shard", "6/6"), "more shares than parquet files")
    for wrong in ("0/2", "3/2", "1", "a/b"):
        assert run(EXTRACT, "--shard", wrong).code == 2


def test_what_merging_refuses(run, project, prepare):
    script, settings = prepare
    run(script)
    train, val = files_of(settings).values()
    refused(run(MERGE, train, val, "--output", train), "--output would replace", code=2)
    run(TRAIN_BPE if script == PREPARE_BPE else TRAIN_CHAR, "--corpus", write_corpus(project / "o", [*CORPUS, "Ω"]))
    run(script, "--train-file", "t.bin", "--val-file", "v.bin")
    refused(run(MERGE, train, "t.bin", "--output", "x.bin"), "t.bin", "another tokenizer")
    refused(run(MERGE, "nothing.bin", "--output", "x.bin"), "There is no token file nothing.bin")
    result = run(MERGE, train, val, "--output", "x.bin")
    assert result.code == 0
    assert Path("x.bin").read_bytes() == train.read_bytes() + val.read_bytes()


# === duplicates =======================================================================================================


@settings(max_examples=60, deadline=None)
@given(batches=st.lists(st.lists(st.integers(0, 40)), max_size=12))
def test_seen_is_a_set(batches):
    seen, known = SeenDocuments(), set()
    for batch in batches:
        expected = []
        for number in batch:
            expected.append(number not in known)
            known.add(number)
        assert seen.new(np.array(batch, np.uint64)).tolist() == expected


def test_duplicates_are_left_out_across_files_and_counted(run, project):
    rng = random.Random(1)
    documents = [rng.choice(CORPUS[:40]) for _ in range(500)]
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


# === scripts/inspect_data.py ==========================================================================================


def test_the_doctor_of_a_corpus_counts_right(run, project):
    documents = [*CORPUS, CORPUS[3], "x" * 500 + "\n", "\r\0"]
    write_corpus(project / "c.txt", documents)
    run(TRAIN_BPE, "--corpus", "c.txt", "--vocab-size", "300")
    result = run(INSPECT, "c.txt")
    assert (result.code, result.err) == (0, "")
    size = sum(len(d.encode()) for d in documents)
    assert f"c.txt is a corpus: {len(documents)} documents, {size:,} bytes of text" in result.out
    assert "Exact duplicates: 1 documents (0.5%)" in result.out
    white = sum(d.count(c) for d in documents for c in " \t\n\r\v\f")
    assert f"White space: {white / size:.1%} of the bytes" in result.out
    assert "1 carriage returns, 1 NUL characters" in result.out
    assert "  500 bytes in document 202: xxx" in result.out
    lengths = sorted(len(d.encode()) for d in documents)
    assert (
        f"smallest {lengths[0]}, " in result.out
        and f"largest {lengths[-1]}; mean {np.mean(lengths):,.0f}" in result.out
    )
    rows = re.findall(r"^  from +([\d,]+) .*? ([\d,]+) +[\d.]+%$", result.out, re.MULTILINE)
    assert {int(a): int(n) for a, n in rows if n != "0"} == Counter(1 << (n.bit_length() - 1) for n in lengths)
    refused(run(INSPECT, "nothing.txt"), "There is no corpus nothing.txt")
    refused(run(INSPECT, write_corpus(project / "e.txt", [""])), "holds no document")


def test_the_doctor_of_a_token_file_counts_right(run, project, prepare):
    script, settings = prepare
    write_corpus(settings.corpus, [*CORPUS, *CORPUS[:5]])
    run(script, "--val-fraction", "0.3")
    result = run(INSPECT, settings.train_file)
    assert (result.code, result.err) == (0, "")
    ids = np.fromfile(settings.train_file, "<u2")
    facts = json.loads(Path(f"{settings.train_file}.json").read_text())
    assert f"has {len(ids):,} tokens of {facts['documents']} documents" in result.out
    assert f"Its tokenizer is {Path('data') / settings.tokenizer_file.name}: the hash matches." in result.out
    assert f"Unused ids: {facts['vocab_size'] - len(set(ids.tolist()))} of {facts['vocab_size']}" in result.out
    documents = [part.tobytes() for part in np.split(ids, np.flatnonzero(ids == 0))[:-1]]
    duplicates = len(documents) - len({part.lstrip(b"\0") for part in documents})
    assert f"Exact duplicates: {duplicates} documents ({duplicates / len(documents):.1%})" in result.out
    _, count = Counter(ids.tolist()).most_common(1)[0]
    at = result.out.splitlines().index("The most common tokens:")
    assert f"{count:,}" in result.out.splitlines()[at + 1]
    border = int(np.flatnonzero(ids == 0)[0])
    tokenizer = load_tokenizer(settings.tokenizer_file)
    shown = tokenizer.decode(ids[border + 1 : border + 5]).replace("\n", "↵").replace(" ", "·")
    assert f" | {shown[:4]}" in result.out
    # Another tokenizer than the one that made it.
    settings.tokenizer_file.unlink()
    result = run(INSPECT, settings.train_file)
    assert result.code == 0
    assert "is none of" in result.out and "id " in result.out


def test_the_doctor_of_a_folder_sees_what_they_are_merged(run, project, prepare, monkeypatch):
    script, settings = prepare
    write_corpus(settings.corpus, CORPUS)
    run(script)
    Path("m").mkdir()
    train, val = files_of(settings).values()
    assert run(MERGE, train, val, "--output", "m/m.bin").code == 0
    opened = []
    real = dataset.open_tokens
    monkeypatch.setattr(dataset, "open_tokens", lambda path, *a, **k: (opened.append(path), real(path, *a, **k))[1])
    result = run(INSPECT, "m/m.bin")
    assert opened == [Path("m/m.bin")]  # the checksum of a large file takes its time
    (project / "data" / "corpus.txt").unlink()
    both = run(INSPECT, "data")
    assert both.code == 0
    for line in result.out.splitlines()[2:-6]:
        assert line in both.out


def test_numbers_are_not_taken_for_text(run, project, prepare):
    script, settings = prepare
    write_corpus(settings.corpus, CORPUS)
    run(script)
    Path("t.bin").write_bytes(settings.train_file.read_bytes())
    refused(run(INSPECT, "t.bin"), "t.bin is no", "It holds NUL bytes, as token files")
    np.arange(1, 100, dtype="<u2").tofile("ascii.bin")  # which is UTF-8
    refused(run(INSPECT, "ascii.bin"), "ascii.bin is not text. It holds NUL bytes")
