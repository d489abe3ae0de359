"""dataset.py: the corpus format, samples, splits, token files and batches, against plain definitions of each."""

import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from conftest import split_documents
from hypothesis import example, given, settings
from hypothesis import strategies as st

import dataset
from dataset import TokenFile, blocks_in_order, draw_batch, open_tokens, sidecar, token_writer
from plumbing.corpus import (
    END_OF_TEXT,
    hash_fraction,
    read_documents,
    sample_documents,
    split_at_marker,
    write_documents,
)
from plumbing.errors import UserError
from plumbing.files import whole_file

ROOT = Path(__file__).resolve().parents[1]
M = END_OF_TEXT


def plain_documents(text: str) -> list[str]:
    """The format's definition, line by line: a line that is exactly the marker ends a document."""
    documents, lines = [], []
    for line in [*text.split("\n"), M]:
        if line == M:
            documents.append("\n".join(lines))
            lines = []
        else:
            lines.append(line)
    return [document for document in documents if document]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that the examples of a hypothesis test share."""
    return tmp_path_factory.mktemp("dataset")


def corpus(path: Path, *documents: str) -> Path:
    path.write_bytes(f"\n{M}\n".join(documents).encode())
    return path


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


# === files that are whole or not there ===============================================================================


def test_whole_file_appears_at_the_end(tmp_path):
    path = tmp_path / "new" / "folder" / "x"
    with whole_file(path) as file:
        file.write(b"half")
        assert not path.exists()
        file.write(b" and whole")
    assert path.read_bytes() == b"half and whole"
    assert names(path.parent) == {"x"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_whole_file_leaves_the_earlier_file_after_an_exception(tmp_path, error):
    path = tmp_path / "x"
    path.write_bytes(b"earlier")
    with pytest.raises(error), whole_file(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"earlier"
    assert names(tmp_path) == {"x"}


def test_whole_file_leaves_the_earlier_file_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"earlier")
    monkeypatch.setattr(os, "fsync", raise_no_space)
    with pytest.raises(OSError, match="No space"), whole_file(path) as file:
        file.write(b"late")
    assert path.read_bytes() == b"earlier"
    assert names(tmp_path) == {"x"}


def raise_no_space(*_):
    raise OSError(28, "No space left on device")


def test_whole_file_reaches_the_disk_before_its_name_does(tmp_path, monkeypatch):
    order = []
    real = {name: getattr(os, name) for name in ("fsync", "replace")}
    for name in real:
        monkeypatch.setattr(os, name, lambda *args, name=name: (order.append(name), real[name](*args)))
    with whole_file(tmp_path / "x") as file:
        file.write(b"text")
    assert order[:2] == ["fsync", "replace"]


@pytest.mark.skipif(os.name != "posix", reason="kills its own process")
def test_whole_file_leaves_the_earlier_file_when_the_process_is_killed(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"earlier")
    code = """
import os, signal, sys
from dataset import whole_file
with whole_file(sys.argv[1]) as file:
    file.write(b"half" * 100_000)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code, path], cwd=ROOT).returncode == -9
    assert path.read_bytes() == b"earlier"


# === the corpus format ===============================================================================================

# Pieces that stand next to each other in every order: markers, parts of one, line ends, characters of 1 to 4 bytes.
pieces = st.sampled_from(
    ["\n", M, f"\n{M}\n", f"{M}\n", f"\n{M}", M[:-1], M[1:], "\r\n", "\r", " ", "a", "é", "日", "🐍"]
)
texts = st.lists(pieces | st.characters(codec="utf-8"), max_size=12).map("".join)


@pytest.mark.parametrize("chunk", [1, 14, 1 << 20])
def test_every_short_text_of_markers_and_line_ends(folder, chunk):
    path = folder / "short.txt"
    with patch.object(dataset, "CHUNK", chunk):
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
    with patch.object(dataset, "CHUNK", chunk):  # so small that markers and characters lie across its borders
        assert list(read_documents(path)) == plain_documents(text)


@settings(max_examples=80, deadline=None)
@given(documents=st.lists(texts, max_size=6), chunk=st.integers(1, 40))
def test_documents_written_come_back_to_the_byte(folder, documents, chunk):
    path = folder / "written.txt"
    kept = [part for document in documents for part in plain_documents(document)]
    with patch.object(dataset, "CHUNK", chunk), patch.object(os, "fsync"):
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
    parts = split_at_marker(text)
    assert [part for part in parts if part] == plain_documents(text)
    assert len(parts) == 1 + text.split("\n").count(M)


def test_split_at_marker_known_answers():
    assert split_at_marker(f"a\n{M}\nb") == ["a", "b"]
    assert split_at_marker(f"{M}\n{M}") == ["", "", ""]
    assert split_at_marker(f"a {M}\nb") == [f"a {M}\nb"]
    assert split_at_marker("") == [""]


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
    with patch.object(dataset, "CHUNK", chunk), pytest.raises(UserError) as error:
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
        assert Counter(part for part, _ in split_documents(tmp_path / "c", 0.5)).total() == 3000
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

    with patch.object(dataset, "open", Counting, create=True), patch.object(dataset, "CHUNK", 64):
        assert len(next(read_documents(tmp_path / "c"))) == 300_000
    assert 2 < len(reads) < 20  # doubling: log2(300,000 / 64) is 12


# === samples =========================================================================================================


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


def test_by_size_the_chance_does_not_depend_on_length_or_place(varied):
    seeds, taken = 1000, Counter()
    for seed in range(seeds):
        taken.update(int(text[:2]) for text in sample_documents(varied, seed, megabytes=0.003))
    share = 0.003e6 / sum(len(text) for text in read_documents(varied))
    # The last ones are sometimes too long for what is left of the budget; all others have the same chance.
    assert all(abs(taken[i] / seeds - share) < 0.08 for i in range(50))
    assert all(taken[i] / seeds > share / 2 for i in range(60))


# === splits ==========================================================================================================


def parts(path, val_fraction=0.2):
    return {text: part for part, text in split_documents(path, val_fraction)}


def test_a_document_keeps_its_part_when_the_corpus_grows_or_is_shuffled(tmp_path):
    documents = [f"document {i}" for i in range(300)]
    small = parts(corpus(tmp_path / "small", *documents[:100]))
    assert small == {text: "val" if hash_fraction(text) < 0.2 else "train" for text in documents[:100]}
    assert small.items() <= parts(corpus(tmp_path / "large", *documents)).items()
    assert small == parts(corpus(tmp_path / "turned", *documents[99::-1]))
    assert set(small.values()) == {"train", "val"}


def test_the_split_gives_every_document_once_in_order(tmp_path):
    documents = [f"document {i}" for i in range(100)] * 2
    split = list(split_documents(corpus(tmp_path / "c", *documents), 0.5))
    assert [text for _, text in split] == documents
    assert split[:100] == split[100:]  # the same text, the same part


def test_a_larger_fraction_only_adds_to_the_validation_part(tmp_path):
    path = corpus(tmp_path / "c", *(f"document {i}" for i in range(300)))
    val = [{text for text, part in parts(path, fraction).items() if part == "val"} for fraction in (0.1, 0.3, 0.9)]
    assert val[0] < val[1] < val[2]


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5])
def test_about_the_fraction_is_kept_for_validation(fraction):
    hashes = np.array([hash_fraction(f"document {i}") for i in range(20_000)])
    assert ((hashes >= 0) & (hashes < 1)).all()
    assert abs((hashes < fraction).mean() - fraction) < 5 * (fraction * (1 - fraction) / 20_000) ** 0.5


def test_the_hash_is_fixed():
    """A change here would move documents between the parts of data that users have prepared already."""
    for text in ("", "import os\n", "naïve 🐍"):
        digest = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
        assert hash_fraction(text) == int(digest, 16) / 16**12
    assert hash_fraction("a") == pytest.approx(0.2625896, abs=1e-7)


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
    assert list(split_documents(path, fraction)) == [("train", text[:cut]), ("val", text[cut:])]


def test_an_empty_corpus_has_no_parts(tmp_path):
    with pytest.raises(UserError, match="c holds no document"):
        list(split_documents(corpus(tmp_path / "c", "", ""), 0.1))


# === token files =====================================================================================================

FACTS = {
    "tokenizer_kind": "char",
    "tokenizer_sha256": "0" * 64,
    "vocab_size": 65_536,
    "end_of_text_id": 7,
    "source": "c",
}


def write_tokens(path: Path, *documents: list[int], **facts) -> Path:
    with token_writer(path, FACTS | facts) as writer:
        for ids in documents:
            writer.add(np.array(ids, np.uint16), utf8_bytes=2 * len(ids), unknown_characters=len(ids) // 2)
    return path


@settings(max_examples=60, deadline=None)
@given(documents=st.lists(st.lists(st.integers(0, 65_535), max_size=20), min_size=1, max_size=6).filter(any))
@example(documents=[[0, 255, 256, 65_535], []])
def test_token_files_round_trip(folder, documents):
    path = folder / "round.bin"
    with patch.object(os, "fsync"):
        write_tokens(path, *documents)
    expected = [token for ids in documents for token in [*ids, 7]]
    assert path.read_bytes() == b"".join(token.to_bytes(2, "little") for token in expected)
    opened = open_tokens(path)
    assert opened.tokens.tolist() == expected
    assert np.memmap(path, dtype=np.uint16, mode="r").tolist() == expected
    assert opened.tokens.dtype == np.uint16
    assert opened.facts == json.loads(sidecar(path).read_text())
    assert opened.facts == FACTS | {
        "format_version": 1,
        "tokens": len(expected),
        "documents": len(documents),
        "utf8_bytes": sum(2 * len(ids) for ids in documents),
        "unknown_characters": sum(len(ids) // 2 for ids in documents),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def test_an_opened_file_is_mapped_and_read_only(tmp_path):
    opened = open_tokens(write_tokens(tmp_path / "t.bin", [1, 2, 3]))
    assert isinstance(opened.tokens, np.memmap)
    with pytest.raises(ValueError):
        opened.tokens[0] = 5
    assert opened.tokens_per_byte == 4 / 6  # the end-of-text id is a token, and stands for no bytes


def test_an_opened_file_stays_the_same_when_another_takes_its_place(tmp_path):
    opened = open_tokens(write_tokens(tmp_path / "t.bin", [1, 2, 3]))
    write_tokens(tmp_path / "t.bin", [4, 5, 6])
    assert opened.tokens.tolist() == [1, 2, 3, 7]
    assert len(opened) == 4


def test_the_sidecar_lies_beside_the_file(tmp_path):
    path = write_tokens(tmp_path / "train.bin", [1])
    assert sidecar(path) == tmp_path / "train.bin.json"
    assert names(tmp_path) == {"train.bin", "train.bin.json"}


def test_vocabularies_that_uint16_cannot_count_are_refused(tmp_path):
    with (
        pytest.raises(UserError, match="65,537 ids"),
        token_writer(tmp_path / "t.bin", FACTS | {"vocab_size": 65_537}),
    ):
        pass
    assert names(tmp_path) == set()
    path = write_tokens(tmp_path / "t.bin", [65_535], vocab_size=65_536, end_of_text_id=65_535)
    assert open_tokens(path).tokens.tolist() == [65_535, 65_535]


@pytest.mark.parametrize("ids", [np.array([1, 300], np.uint16), np.array([65_536 + 5], np.int64)])
def test_an_id_outside_the_vocabulary_stops_the_writer(tmp_path, ids):
    """Cast to uint16 without a check, 65,541 would become 5."""
    before = write_tokens(tmp_path / "t.bin", [1]).read_bytes()
    with (
        pytest.raises(ValueError, match="does not fit"),
        token_writer(tmp_path / "t.bin", FACTS | {"vocab_size": 300}) as w,
    ):
        w.add(ids, utf8_bytes=2)
    assert (tmp_path / "t.bin").read_bytes() == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_writer_leaves_the_earlier_files(tmp_path, error):
    path = write_tokens(tmp_path / "t.bin", [1, 2, 3])
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    with pytest.raises(error), token_writer(path, FACTS) as writer:
        writer.add(np.array([4], np.uint16), utf8_bytes=1)
        raise error
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    assert open_tokens(path).tokens.tolist() == [1, 2, 3, 7]


def test_a_full_disk_leaves_the_earlier_files(tmp_path, monkeypatch):
    path = write_tokens(tmp_path / "t.bin", [1, 2, 3])
    monkeypatch.setattr(os, "fsync", raise_no_space)
    with pytest.raises(OSError, match="No space"):
        write_tokens(path, [4])
    assert open_tokens(path).tokens.tolist() == [1, 2, 3, 7]


def test_between_the_tokens_and_their_sidecar_there_is_no_valid_file(tmp_path, monkeypatch):
    """New tokens beside the earlier sidecar would be read as tokens of another tokenizer."""
    path = write_tokens(tmp_path / "t.bin", [1, 2, 3])
    replace = os.replace

    def replace_tokens_only(source, target):
        if target.suffix == ".json":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_tokens_only)
    with pytest.raises(KeyboardInterrupt):
        write_tokens(path, [4, 5, 6])
    with pytest.raises(UserError, match=r"has no t\.bin\.json beside it"):
        open_tokens(path)


def test_a_missing_token_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"There is no token file .*t\.bin"):
        open_tokens(tmp_path / "t.bin")


@pytest.mark.parametrize("change", [b"", b"\0" * 7, b"\0" * 9, b"\0" * 6, b"\0" * 10])
def test_a_token_file_of_the_wrong_length_is_refused(tmp_path, change):
    path = write_tokens(tmp_path / "t.bin", [1, 2, 3])  # 8 bytes
    path.write_bytes(change)
    with pytest.raises(UserError, match=rf"has {len(change)} bytes and should have 8"):
        open_tokens(path)


def test_a_missing_sidecar_is_named(tmp_path):
    path = write_tokens(tmp_path / "t.bin", [1, 2, 3])
    sidecar(path).unlink()
    with pytest.raises(UserError, match=r"t\.bin has no t\.bin\.json beside it"):
        open_tokens(path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[]", b"5", b"null", b"{}", b'"text"', b'{"format_version": 1}']
)
def test_a_damaged_sidecar_is_named(tmp_path, content):
    path = write_tokens(tmp_path / "t.bin", [1, 2, 3])
    sidecar(path).write_bytes(content)
    with pytest.raises(UserError, match=r"t\.bin\.json is damaged"):
        open_tokens(path)


@pytest.mark.parametrize("fact", ["tokenizer_sha256", "vocab_size", "tokens", "documents", "utf8_bytes", "sha256"])
def test_a_sidecar_that_lacks_a_fact_is_named(tmp_path, fact):
    path = write_tokens(tmp_path / "t.bin", [1, 2, 3])
    facts = json.loads(sidecar(path).read_text())
    del facts[fact]
    sidecar(path).write_text(json.dumps(facts))
    with pytest.raises(UserError, match=rf"is damaged .*{fact}"):
        open_tokens(path)


@pytest.mark.parametrize("fact", [{"tokens": "4"}, {"tokens": None}, {"tokens": [4]}, {"utf8_bytes": 0}])
def test_a_sidecar_of_senseless_facts_is_named(tmp_path, fact):
    path = write_tokens(tmp_path / "t.bin", [1, 2, 3])
    sidecar(path).write_text(json.dumps(json.loads(sidecar(path).read_text()) | fact))
    with pytest.raises(UserError, match="is damaged"):
        open_tokens(path)


def test_a_token_file_of_nothing_is_refused(tmp_path):
    with pytest.raises(UserError):
        open_tokens(write_tokens(tmp_path / "t.bin"))


def test_a_sidecar_of_another_version_is_refused(tmp_path):
    path = write_tokens(tmp_path / "t.bin", [1, 2, 3])
    facts = json.loads(sidecar(path).read_text()) | {"format_version": 2}
    sidecar(path).write_text(json.dumps(facts))
    with pytest.raises(UserError, match="format version 2"):
        open_tokens(path)


# === batches =========================================================================================================


def test_targets_are_the_inputs_one_token_later():
    tokens = np.random.default_rng(0).integers(0, 65_536, 100).astype(np.uint16)
    idx, targets = draw_batch(tokens, block_size=8, batch_size=5, seed=3, step=4)
    assert idx.shape == targets.shape == (5, 8)
    assert idx.dtype == targets.dtype == np.int64
    for row, later in zip(idx, targets, strict=True):
        assert (row[1:] == later[:-1]).all()
        assert any((tokens[i : i + 9] == [*row, later[-1]]).all() for i in range(92))


def test_a_batch_follows_from_seed_and_step_alone(tmp_path):
    tokens = np.arange(1000, dtype=np.uint16)
    tokens.tofile(tmp_path / "t.bin")
    mapped = np.memmap(tmp_path / "t.bin", dtype=np.uint16, mode="r")
    batches = {(seed, step): draw_batch(tokens, 8, 4, seed, step)[0] for seed in range(5) for step in range(20)}
    for (seed, step), idx in reversed(batches.items()):  # in another order, and from a file
        np.testing.assert_array_equal(draw_batch(mapped, 8, 4, seed, step)[0], idx)
    # No two alike. With seed + step in place of the pair, (0, 1) and (1, 0) would be.
    assert len({idx.tobytes() for idx in batches.values()}) == 100


def test_every_start_is_drawn_equally_often():
    tokens = np.arange(11, dtype=np.uint16)
    starts, ends = Counter(), Counter()
    for step in range(200):
        idx, targets = draw_batch(tokens, block_size=4, batch_size=50, seed=1, step=step)
        starts.update(idx[:, 0].tolist())
        ends.update(targets[:, -1].tolist())
    assert set(starts) == set(range(7))
    assert set(ends) == set(range(4, 11))  # the last token is a target too
    for count in starts.values():
        assert abs(count - 10_000 / 7) < 5 * (10_000 * 1 / 7 * 6 / 7) ** 0.5


def test_the_shortest_file_has_one_window():
    idx, targets = draw_batch(np.arange(5, dtype=np.uint16), block_size=4, batch_size=3, seed=0, step=0)
    assert idx.tolist() == [[0, 1, 2, 3]] * 3
    assert targets.tolist() == [[1, 2, 3, 4]] * 3


@pytest.mark.parametrize("block_size", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_blocks_in_order_score_each_token_once(tmp_path, block_size, batch_size):
    span = block_size * batch_size
    lengths = {n + d for n in (0, block_size, 2 * block_size, span, 2 * span) for d in (0, 1, 2, 3)}
    for length in sorted(lengths - {0}):
        tokens = np.random.default_rng(length).permutation(100)[:length].astype(np.uint16)
        rows = []  # the plain loop: cut, row by row
        for start in range(0, length - 1, block_size):
            end = min(start + block_size, length - 1)
            rows.append((tokens[start:end].tolist(), tokens[start + 1 : end + 1].tolist()))
        tokens.tofile(tmp_path / "t.bin")
        with open(tmp_path / "t.bin", "rb") as file:
            data = TokenFile(tmp_path / "t.bin", {"tokens": length}, file)
            batches = list(blocks_in_order(data, block_size, batch_size))
        assert [row for idx, targets in batches for row in zip(idx.tolist(), targets.tolist(), strict=True)] == rows
        scored = [token for _, targets in batches for token in targets.flatten().tolist()]
        assert scored == tokens[1:].tolist()
        assert all(0 < len(idx) <= batch_size and idx.dtype == targets.dtype == np.int64 for idx, targets in batches)
        # Only the last batch may hold fewer rows, and only the short rest makes one more.
        assert len(batches) == -(-((length - 1) // block_size) // batch_size) + ((length - 1) % block_size > 0)
