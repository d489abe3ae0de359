"""plumbing/journal.py: extraction and preparation, stopped and resumed, give the same bytes."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_scripts import (
    PREPARE_CHAR,
    TRAIN_BPE,
    TRAIN_CHAR,
    VARIED,
    M,
    refused,
    snapshot,
    write_corpus,
)

import config
from plumbing import corpus as corpus_file
from plumbing import files, journal
from plumbing.corpus import (
    find_border,
    read_documents,
)
from plumbing.errors import UserError
from plumbing.journal import Journal


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
def small_chunks(monkeypatch):
    """Everything in many small chunks, and a journal entry after each."""
    import scripts.extract_parquets_to_text as extraction
    import scripts.prepare_dataset as preparation

    monkeypatch.setattr(journal, "SECONDS", 0.0)
    monkeypatch.setattr(preparation, "CHUNK_BYTES", 700)
    monkeypatch.setattr(extraction, "ITEM_BYTES", 3000)
    monkeypatch.setattr(extraction, "CHAR", config.CHAR)
    return extraction, preparation


@pytest.mark.parametrize("kind", ["char", "bpe"])
@pytest.mark.parametrize("number", [1, 4, 9])
def test_a_preparation_resumes_and_gives_the_same_bytes(run, project, small_chunks, monkeypatch, capsys, kind, number):
    base = config.CHAR if kind == "char" else config.BPE
    write_corpus(base.corpus, [*VARIED, "unknown Ω"])
    run(TRAIN_CHAR)
    run(TRAIN_BPE, "--vocab-size", "300")
    write_corpus(base.corpus, [*VARIED[:20], "unknown ΩΩ", *VARIED[20:]])

    def main():
        monkeypatch.setattr("sys.argv", ["script.py", "--quiet"])
        small_chunks[1].main(base, kind=kind)

    main()
    expected = snapshot(project / "data")
    start_and_stop(monkeypatch, main, number)
    unfinished = list((project / "data").glob("*.tmp"))
    assert len(unfinished) == 3  # two token files and the journal
    read = []
    real = corpus_file.read_document_bytes
    monkeypatch.setattr(corpus_file, "read_document_bytes", lambda *a, **k: (read.append(a[1:]), real(*a, **k))[1])
    capsys.readouterr()
    main()
    assert "Resuming after the" in capsys.readouterr().out
    assert snapshot(project / "data") == expected
    assert (0, find_border(base.corpus, 700)) not in read  # the first chunk was not encoded again


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("flags", [[], ["--deduplicate"]])
def test_an_extraction_resumes_and_gives_the_same_bytes(project, small_chunks, monkeypatch, capsys, number, flags):
    for name in "ab":
        table = pa.table({"content": [name, *VARIED, "again", *VARIED[:50], f"x\r\n{M}\ny"]})
        config.CHAR.parquet_dir.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, config.CHAR.parquet_dir / f"{name}.parquet", row_group_size=30)
    monkeypatch.setattr("sys.argv", ["script.py", *flags])
    assert small_chunks[0].main() == 0
    expected, out = snapshot(project / "data"), capsys.readouterr().out
    start_and_stop(monkeypatch, small_chunks[0].main, number)
    assert len(list((project / "data").glob("*.tmp"))) == 2
    assert small_chunks[0].main() == 0
    assert snapshot(project / "data") == expected
    again = capsys.readouterr().out
    assert "Resuming after the" in again
    counts = re.compile(r"^  [^a].*: [\d,]+$|^[\d,]+ documents", re.MULTILINE)
    assert counts.findall(again) == counts.findall(out) != []
    documents = list(read_documents(config.CHAR.corpus))
    if flags:
        assert documents == ["a", *VARIED, "again", "x", "y", "b"]
    else:
        assert documents == [d for name in "ab" for d in (name, *VARIED, "again", *VARIED[:50], "x", "y")]


def test_what_a_result_depends_on_is_compared(run, project, small_chunks, monkeypatch, capsys):
    """Another corpus, split, tokenizer: the run begins at the beginning, and leaves nothing behind."""
    write_corpus(config.CHAR.corpus, VARIED)
    run(TRAIN_CHAR)
    _, preparation = small_chunks

    def main(*flags):
        monkeypatch.setattr("sys.argv", ["script.py", "--quiet", *flags])
        preparation.main(config.CHAR, kind="char")

    for change in (
        lambda: write_corpus(config.CHAR.corpus, VARIED[1:]),
        lambda: ("--val-fraction", "0.3"),
        lambda: (run(TRAIN_CHAR, "--corpus", write_corpus(project / "o", [*VARIED, "é"])), None)[1],
    ):
        main()
        start_and_stop(monkeypatch, main, 3)
        flags = change()
        capsys.readouterr()
        main(*(flags if isinstance(flags, tuple) else ()))
        assert "Resuming" not in capsys.readouterr().out
        assert list(project.rglob("*.tmp")) == []
        expected = snapshot(project / "data")
        main(*(flags if isinstance(flags, tuple) else ()))
        assert snapshot(project / "data") == expected


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b"{"), lambda p: p.unlink(), lambda p: p.write_text("[1]")])
def test_a_damaged_journal_is_ignored(run, project, small_chunks, monkeypatch, damage):
    write_corpus(config.CHAR.corpus, VARIED)
    run(TRAIN_CHAR)

    def main():
        monkeypatch.setattr("sys.argv", ["script.py", "--quiet"])
        small_chunks[1].main(config.CHAR, kind="char")

    main()
    expected = snapshot(project / "data")
    start_and_stop(monkeypatch, main, 3)
    (journal,) = (project / "data").glob("*.journal.tmp")
    damage(journal)
    main()
    assert snapshot(project / "data") == expected


def test_unfinished_bytes_after_the_last_entry_are_cut_off(run, project, small_chunks, monkeypatch):
    """A run was killed while it wrote on behind the last entry. The control: without cutting, the result differs."""
    write_corpus(config.CHAR.corpus, VARIED)
    run(TRAIN_CHAR)

    def main():
        monkeypatch.setattr("sys.argv", ["script.py", "--quiet"])
        small_chunks[1].main(config.CHAR, kind="char")

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


def test_outputs_of_one_name_in_two_folders_are_resumed(run, project, small_chunks, monkeypatch, capsys):
    write_corpus(config.CHAR.corpus, VARIED)
    run(TRAIN_CHAR)

    def main():
        monkeypatch.setattr("sys.argv", ["script.py", "--quiet", "--train-file", "a/x.bin", "--val-file", "b/x.bin"])
        small_chunks[1].main(config.CHAR, kind="char")

    main()
    expected = snapshot(project)
    start_and_stop(monkeypatch, main, 9)
    main()
    assert "Resuming" in capsys.readouterr().out
    assert snapshot(project) == expected


def test_two_runs_at_once_are_told_apart(run, project, small_chunks, monkeypatch):
    write_corpus(config.CHAR.corpus, VARIED)
    run(TRAIN_CHAR)
    for name in ("train.bin", "val.bin"):
        with files.only_writer(project / "data" / name):
            refused(run(PREPARE_CHAR), "Another run is writing", name)
    assert run(PREPARE_CHAR).code == 0
    assert list(project.rglob("*.tmp")) == []


def test_a_second_run_is_refused_before_the_first_has_written_anything(tmp_path):
    outputs = [tmp_path / "a", tmp_path / "b"]
    with Journal(outputs, []):
        for second in (outputs, outputs[1:], outputs[::-1]):
            with pytest.raises(UserError, match="Another run is writing"), Journal(second, []):
                pass
        with Journal([tmp_path / "c"], []):
            pass
    with Journal(outputs, []):
        pass
    assert snapshot(tmp_path) == {}


def test_no_damage_of_an_unfinished_file_or_its_journal_gets_into_the_result(run, project, small_chunks, monkeypatch):
    """A disk changed a byte while nothing ran: the result is that of a run from the beginning."""
    write_corpus(config.CHAR.corpus, VARIED)
    run(TRAIN_CHAR)

    def main():
        monkeypatch.setattr("sys.argv", ["script.py", "--quiet"])
        small_chunks[1].main(config.CHAR, kind="char")

    main()
    expected = snapshot(project / "data")
    for name in ("train.bin.unfinished.tmp", "val.bin.unfinished.tmp", "train.bin.journal.tmp"):
        for part in (0.1, 0.5, 0.9):
            start_and_stop(monkeypatch, main, 4)
            path = project / "data" / name
            data = bytearray(path.read_bytes())
            data[int(part * len(data))] ^= 1
            path.write_bytes(data)
            main()
            assert snapshot(project / "data") == expected, (name, part)
