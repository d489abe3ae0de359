"""plumbing/corpus.py: the corpus format, chunks, samples, splits and duplicates, against plain definitions of each."""

import hashlib
import io
import itertools
import os
import shlex
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from data_scripts import M, plain_documents, texts, write_corpus
from faults import runs
from hypothesis import example, given, settings
from hypothesis import strategies as st

from plumbing import corpus as corpus_file
from plumbing.corpus import (
    SeenDocuments,
    cut_in_two,
    cut_into_chunks,
    find_border,
    hash_fraction,
    only_document,
    read_document_bytes,
    read_documents,
    sample_documents,
    split_at_marker,
    split_documents,
    write_documents,
)
from plumbing.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that the examples of a hypothesis test share."""
    return tmp_path_factory.mktemp("dataset")


def corpus(path: Path, *documents: str) -> Path:
    path.write_bytes(f"\n{M}\n".join(documents).encode())
    return path


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


# === the format =======================================================================================================


@pytest.mark.parametrize("chunk", [1, 14, 1 << 20])
def test_every_short_text_of_markers_and_line_ends(folder, chunk):
    path = folder / "short.txt"
    with patch.object(corpus_file, "CHUNK", chunk):
        for length in range(6):
            for parts in itertools.product(["\n", M, "a"], repeat=length):
                text = "".join(parts)
                path.write_bytes(text.encode())
                assert list(read_documents(path)) == plain_documents(text), text


@settings(max_examples=250, deadline=None)
@given(text=texts, chunk=st.integers(1, 40))
@example(text=f"{M}\n{M}\na\n{M}\n{M}\n{M}\n{M}\nb\n{M}\n{M}", chunk=1)
@example(text=f"{M}\n\n{M}\n\n\n{M}", chunk=7)
@example(text=f"a\r\n{M}\r\nb\n{M} \nc\n {M}\nd", chunk=1 << 20)
@example(text="", chunk=1)
def test_documents_are_what_the_definition_says(folder, text, chunk):
    path = folder / "definition.txt"
    path.write_bytes(text.encode())
    with patch.object(corpus_file, "CHUNK", chunk):  # so small that markers and characters lie across its borders
        assert list(read_documents(path)) == plain_documents(text)


@settings(max_examples=80, deadline=None)
@given(documents=st.lists(texts, max_size=6), chunk=st.integers(1, 40))
def test_documents_written_come_back_to_the_byte(folder, documents, chunk):
    path = folder / "written.txt"
    kept = [part for document in documents for part in plain_documents(document)]
    with patch.object(corpus_file, "CHUNK", chunk), patch.object(os, "fsync"):
        if not kept:
            with pytest.raises(UserError, match="no document"):
                write_documents(path, documents)
            return
        count, size = write_documents(path, documents)
        assert list(read_documents(path)) == kept
    assert (count, size) == (len(kept), path.stat().st_size)


def test_separator_is_newline_marker_newline(tmp_path):
    assert write_documents(tmp_path / "c", ["a\n", "", "\n  b"]) == (2, 21)
    assert (tmp_path / "c").read_bytes() == b"a\n\n<|endoftext|>\n\n  b"


def test_file_without_marker_is_one_document(tmp_path):
    text = "\n\tdef f():\r\n    pass  \n\n"
    assert list(read_documents(corpus(tmp_path / "c", text))) == [text]


def test_marker_inside_a_longer_line_is_text(tmp_path):
    text = f"print('{M}')\n{M}{M}\n {M}\n{M} \n{M}\r\nx{M}"
    write_documents(tmp_path / "c", [text])
    assert list(read_documents(tmp_path / "c")) == [text]


@settings(max_examples=150, deadline=None)
@given(text=texts)
def test_split_at_marker(text):
    parts = [part.decode() for part in split_at_marker(text.encode())]
    assert [part for part in parts if part] == plain_documents(text)
    assert len(parts) == 1 + text.split("\n").count(M)


def test_split_at_marker_known_answers():
    assert split_at_marker(f"a\n{M}\nb".encode()) == [b"a", b"b"]
    assert split_at_marker(f"{M}\n{M}".encode()) == [b"", b"", b""]
    assert split_at_marker(f"a {M}\nb".encode()) == [f"a {M}\nb".encode()]
    assert split_at_marker(b"") == [b""]


@pytest.mark.parametrize("documents", [[], [""], ["", M, f"{M}\n{M}"]])
def test_an_empty_corpus_is_refused(tmp_path, documents):
    corpus(tmp_path / "c", "earlier")
    with pytest.raises(UserError, match="no document"):
        write_documents(tmp_path / "c", documents)
    assert (tmp_path / "c").read_text() == "earlier"
    assert names(tmp_path) == {"c"}


def test_a_failing_source_leaves_the_earlier_corpus(tmp_path):
    def documents():
        yield "half"
        raise ValueError

    corpus(tmp_path / "c", "earlier")
    with pytest.raises(ValueError):
        write_documents(tmp_path / "c", documents())
    assert (tmp_path / "c").read_text() == "earlier"
    assert names(tmp_path) == {"c"}


@settings(max_examples=80, deadline=None)
@given(
    before=texts, after=texts, chunk=st.integers(1, 40), wrong=st.sampled_from([b"\xff", b"\xe9", b"\xc3\n", b"\x80"])
)
def test_bytes_that_are_not_utf8_are_named_with_their_offset(folder, before, after, chunk, wrong):
    path, data = folder / "latin.txt", before.encode()
    path.write_bytes(data + wrong + b" " + after.encode())
    with patch.object(corpus_file, "CHUNK", chunk), pytest.raises(UserError) as error:
        list(read_documents(path))
    assert "latin.txt" in str(error.value)
    assert f"at byte {len(data):,} (0x{wrong[0]:02x})" in str(error.value)


def test_a_character_cut_off_by_the_end_of_the_file_is_named(tmp_path):
    (tmp_path / "c").write_bytes(b"good\n<|endoftext|>\nnext\n\xe6\x97")
    documents = read_documents(tmp_path / "c")
    assert next(documents) == "good"  # what comes before the damage is still read
    with pytest.raises(UserError, match="at byte 24 "):
        next(documents)


@pytest.mark.parametrize("path", ["nothing.txt", "."])
def test_a_missing_corpus_is_named(tmp_path, path):
    with pytest.raises(UserError, match=r"There is no corpus"):
        next(read_documents(tmp_path / path))


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    text = "for i in range(10):\n    print(i)\n" * 300  # about 10 kB
    tracemalloc.start()
    try:
        count, size = write_documents(tmp_path / "c", (text for _ in range(3000)))
        assert (count, size > 29e6) == (3000, True)
        assert sum(1 for _ in read_documents(tmp_path / "c")) == 3000
        assert 1200 < sum(1 for _ in sample_documents(tmp_path / "c", seed=1, fraction=0.5)) < 1800
        assert Counter(split for split, _ in split_documents(tmp_path / "c", 0.5)).total() == 3000
        assert tracemalloc.get_traced_memory()[1] < 10e6  # of a 30 MB file
    finally:
        tracemalloc.stop()


def test_a_long_document_is_not_scanned_again_for_every_chunk(tmp_path):
    corpus(tmp_path / "c", "x" * 300_000)
    reads = []

    class Counting(io.FileIO):
        def read(self, size):
            reads.append(size)
            return super().read(size)

    with patch.object(corpus_file, "open", Counting, create=True), patch.object(corpus_file, "CHUNK", 64):
        assert len(next(read_documents(tmp_path / "c"))) == 300_000
    assert 2 < len(reads) < 20  # doubling: log2(300,000 / 64) is 12


# === chunks ===========================================================================================================


@settings(max_examples=150, deadline=None)
@given(text=texts, size=st.integers(1, 60))
def test_the_documents_of_the_chunks_are_those_of_the_file(folder, text, size):
    path = folder / "chunks.txt"
    path.write_bytes(text.encode())
    chunks = list(cut_into_chunks(path, 0, path.stat().st_size, size))
    assert [end for _, end in chunks[:-1]] == [start for start, _ in chunks[1:]]
    found = [document.decode() for chunk in chunks for document in read_document_bytes(path, *chunk)]
    assert found == plain_documents(text)


def test_a_border_is_behind_a_separator(tmp_path):
    path = write_corpus(tmp_path / "c.txt", ["ab", "cd"])  # ab, 15 bytes of separator, cd
    assert [find_border(path, at) for at in (0, 1, 17, 18, 19, 99)] == [0, 17, 17, 19, 19, 19]


# === text from Windows ================================================================================================


def mending_command(text: str) -> list[str]:
    """The command in a message, for this Python."""
    (line,) = [line for line in text.splitlines() if line.startswith("  python -c ")]
    return [sys.executable, *shlex.split(line)[1:]]


def sample_of_nine(path: Path):
    return sample_documents(path, 1, documents=9)


@pytest.mark.parametrize(
    "text",
    [
        f"a\r\n{M}\r\nb\r\n",
        f"{M}\r\nb\r\n",
        f"\ufeffa\n{M}\nc\n{M}\r\nb",
        f"a\r{M}\rb",
    ],
)
@pytest.mark.parametrize("read", [read_document_bytes, only_document, sample_of_nine])
def test_marker_lines_with_cr_are_said_once_and_the_command_mends_them(tmp_path, capsys, text, read):
    path = tmp_path / "a [1].txt"
    path.write_bytes(text.encode())
    list(read(path) or [])
    list(read(path) or [])
    err = capsys.readouterr().err
    assert err.count("has lines <|endoftext|> that end in CR and therefore separate no documents") == 1
    subprocess.run(mending_command(err[err.index("that end in CR") :].partition("note:")[0]), check=True)
    plain = text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    assert path.read_bytes() == plain.encode()
    assert len(list(read_documents(path))) == len([part for part in plain.split(M) if part.strip()])
    assert capsys.readouterr().err == ""


def test_a_byte_order_mark_and_cr_lf_are_said_once(tmp_path, capsys):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffa\r\nb".encode())
    assert list(read_documents(path)) == list(read_documents(path)) == ["\ufeffa\r\nb"]
    assert only_document(path) == path.read_bytes()
    err = capsys.readouterr().err
    assert err.count("a.txt has a byte order mark and Windows line ends (CR LF), which count as characters") == 1
    subprocess.run(mending_command(err), check=True)
    assert path.read_bytes() == b"a\nb"
    corpus(tmp_path / "b.txt", f"print('{M}')", f"{M} \r")
    assert len(list(read_documents(tmp_path / "b.txt"))) == 2
    assert capsys.readouterr().err == ""


# === samples ==========================================================================================================


@pytest.fixture(scope="module")
def varied(folder):
    """A corpus of 60 different documents of 40 to 160 bytes."""
    lengths = np.random.default_rng(0).integers(40, 161, 60)
    return corpus(folder / "varied.txt", *(f"{i:02d}" + "x" * (length - 2) for i, length in enumerate(lengths)))


MODES = [{"megabytes": 0.002}, {"documents": 17}, {"fraction": 0.3}]


@pytest.mark.parametrize("wanted", MODES)
def test_a_sample_is_whole_documents_in_order(varied, wanted):
    everything = list(read_documents(varied))
    for seed in range(20):
        sample = list(sample_documents(varied, seed, **wanted))
        assert sample == sorted(sample)  # the documents begin with their number
        assert set(sample) <= set(everything)
        assert len(set(sample)) == len(sample)


@pytest.mark.parametrize("wanted", MODES)
def test_the_seed_decides(varied, wanted):
    samples = [tuple(sample_documents(varied, seed, **wanted)) for seed in range(20)]
    assert samples == [tuple(sample_documents(varied, seed, **wanted)) for seed in range(20)]
    assert len(set(samples)) == 20


def test_the_size_asked_for_is_kept(varied):
    for seed in range(50):
        assert len(list(sample_documents(varied, seed, documents=17))) == 17
        assert len(list(sample_documents(varied, seed, fraction=0.3))) == 18
        size = sum(len(text.encode()) for text in sample_documents(varied, seed, megabytes=0.002))
        assert 2000 - 160 <= size <= 2000  # at most; and short by less than the longest document


def test_bytes_are_counted_and_not_characters(tmp_path):
    corpus(tmp_path / "c", *(f"{i}日本語" for i in range(10)))  # 10 bytes each, in 4 characters
    taken = Counter()
    for seed in range(200):
        sample = list(sample_documents(tmp_path / "c", seed, megabytes=50e-6))
        assert len(sample) == 5
        taken.update(int(text[0]) for text in sample)
    assert all(60 < taken[i] < 140 for i in range(10))  # half of 200, and 5.6 standard deviations


@pytest.mark.parametrize("wanted", [{"megabytes": 1}, {"documents": 60}, {"documents": 1000}, {"fraction": 1.0}])
def test_more_than_all_is_all(varied, wanted):
    for seed in range(5):
        assert list(sample_documents(varied, seed, **wanted)) == list(read_documents(varied))


@pytest.mark.parametrize("wanted", [{"documents": 5}, {"fraction": 0.25}, {"megabytes": 50e-6}])
def test_every_document_has_the_same_chance(tmp_path, wanted):
    path = corpus(tmp_path / "c", *(f"document{i:02d}" for i in range(20)))  # 10 bytes each
    seeds, single, neighbours = 1500, Counter(), Counter()
    for seed in range(seeds):
        taken = [int(text[-2:]) for text in sample_documents(path, seed, **wanted)]
        assert len(taken) == 5
        single.update(taken)
        neighbours.update(i for i in taken if i + 1 in taken)
    # Binomial, 5 standard deviations: each document with 5/20, two neighbours together with (5 * 4) / (20 * 19).
    for counts, number, p in ((single, 20, 5 / 20), (neighbours, 19, 20 / 380)):
        for i in range(number):
            assert abs(counts[i] - seeds * p) < 5 * (seeds * p * (1 - p)) ** 0.5


SIZES = {  # of documents, and of the sample; the first is one large document that cannot fit between small ones
    "one too large": ([100] * 50 + [10_000] + [100] * 50, 5000),
    "one large": ([100] * 30 + [4000] + [100] * 30, 5000),
    "most are large": ([2600] * 9 + [100] * 9, 5000),
    "as large as the sample": ([5000, 2, 5000, 2, 3, 5000, *range(4, 50)], 5000),
    "all sizes": ([2**i for i in range(4, 13)] * 3, 5000),
    "by place": (sorted(2 ** (i % 10 + 1) for i in range(40)), 1600),
}


@runs(500, 1500)
@pytest.mark.parametrize("name", SIZES)
def test_by_size_every_document_that_can_fit_has_the_same_chance(tmp_path, name, number):
    sizes, limit = SIZES[name]
    path = corpus(
        tmp_path / "c", *(chr(0x100 + i) + "x" * (size - 2) if size > 1 else "y" for i, size in enumerate(sizes))
    )
    documents = list(read_documents(path))
    taken, total = Counter(), 0
    for seed in range(number):
        sample = list(sample_documents(path, seed, megabytes=limit / 1e6))
        taken.update(sample)
        size = sum(len(text.encode()) for text in sample)
        assert size <= limit
        total += size
    fitting = [text for text in documents if len(text.encode()) <= limit]
    assert set(taken) <= set(fitting) and len(set(fitting)) == len(fitting)
    chance = sum(taken.values()) / number / len(fitting)
    for text in fitting:  # binomial, 5 standard deviations
        expected, deviation = number * chance, (number * chance * (1 - chance)) ** 0.5
        assert abs(taken[text] - expected) < 5 * deviation + 1, documents.index(text)
    assert total / number > limit / 2  # and the sample is not small to make it so


def test_a_sample_by_size_is_nearly_full(varied):
    """The next document would not have fitted."""
    for seed in range(50):
        size = sum(len(text.encode()) for text in sample_documents(varied, seed, megabytes=0.003))
        assert 3000 - 160 < size <= 3000


# === splits ===========================================================================================================


def split_texts(path, val_fraction=0.2):
    """[(split, text), ...] of a corpus; the only document of one is cut in two."""
    only = only_document(path)
    documents = split_documents(path, val_fraction) if only is None else cut_in_two(only, val_fraction).items()
    return [(split, document.decode()) for split, document in documents]


def splits_of(path, val_fraction=0.2):
    return {text: split for split, text in split_texts(path, val_fraction)}


def test_a_document_keeps_its_split_when_the_corpus_grows_or_is_shuffled(tmp_path):
    documents = [f"document {i}" for i in range(300)]
    small = splits_of(corpus(tmp_path / "small", *documents[:100]))
    assert small == {text: "val" if hash_fraction(text.encode()) < 0.2 else "train" for text in documents[:100]}
    assert small.items() <= splits_of(corpus(tmp_path / "large", *documents)).items()
    assert small == splits_of(corpus(tmp_path / "turned", *documents[99::-1]))
    assert set(small.values()) == {"train", "val"}


def test_the_split_gives_every_document_once_in_order(tmp_path):
    documents = [f"document {i}" for i in range(100)] * 2
    split = split_texts(corpus(tmp_path / "c", *documents), 0.5)
    assert [text for _, text in split] == documents
    assert split[:100] == split[100:]  # the same text, the same split


def test_a_larger_fraction_only_adds_to_the_validation_split(tmp_path):
    path = corpus(tmp_path / "c", *(f"document {i}" for i in range(300)))
    val = [{text for split, text in split_texts(path, fraction) if split == "val"} for fraction in (0.1, 0.3, 0.9)]
    assert val[0] < val[1] < val[2]


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5])
def test_about_the_fraction_is_kept_for_validation(fraction):
    hashes = np.array([hash_fraction(f"document {i}".encode()) for i in range(20_000)])
    assert ((hashes >= 0) & (hashes < 1)).all()
    assert abs((hashes < fraction).mean() - fraction) < 5 * (fraction * (1 - fraction) / 20_000) ** 0.5


def test_the_hash_is_fixed():
    """A change here would move documents between the splits of data that users have prepared already."""
    for text in ("", "import os\n", "naïve 🐍"):
        digest = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
        assert hash_fraction(text.encode()) == int(digest, 16) / 16**12
    assert hash_fraction(b"a") == pytest.approx(0.2625896, abs=1e-7)


@settings(max_examples=100, deadline=None)
@given(text=st.text(min_size=1, max_size=60), fraction=st.floats(0.01, 0.99))
@example(text="日" * 10, fraction=0.1)  # characters are counted, not bytes
@example(text="x" * 10, fraction=0.9)
def test_one_document_is_cut_as_nanogpt_cuts(folder, text, fraction):
    if M in text:
        return
    path = folder / "one.txt"
    path.write_bytes(text.encode())
    cut = int((1 - fraction) * len(text))
    assert split_texts(path, fraction) == [("train", text[:cut]), ("val", text[cut:])]


def test_an_empty_corpus_has_no_splits(tmp_path):
    with pytest.raises(UserError, match="c holds no document"):
        only_document(corpus(tmp_path / "c", "", ""))


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
