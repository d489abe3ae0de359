"""dataset.py: token files and batches, against plain definitions of each."""

import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from faults import change_sidecar
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dataset import TokenFile, blocks_in_order, draw_batch, open_tokens, sidecar, token_writer
from plumbing import files
from plumbing.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that the examples of a hypothesis test share."""
    return tmp_path_factory.mktemp("dataset")


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


def raise_no_space(*_):
    raise OSError(28, "No space left on device")


# === token files ======================================================================================================


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
    assert opened.facts | {"crc32": files.checksum(opened.facts)} == json.loads(sidecar(path).read_text())
    assert opened.facts == FACTS | {
        "format_version": 2,
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


def test_a_token_file_and_its_sidecar_have_one_writer_at_a_time(tmp_path):
    """Or the tokens of one run could be there with the sidecar of the other."""
    with token_writer(tmp_path / "t.bin", FACTS) as writer:
        writer.add(np.array([4], np.uint16), utf8_bytes=1)
        with pytest.raises(UserError, match="Another run is writing"):
            write_tokens(tmp_path / "t.bin", [5])
    assert open_tokens(tmp_path / "t.bin").tokens.tolist() == [4, 7]
    assert names(tmp_path) == {"t.bin", "t.bin.json"}


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


@pytest.mark.parametrize(
    "fact", ["tokenizer_sha256", "vocab_size", "tokens", "documents", "utf8_bytes", "sha256", "end_of_text_id"]
)
def test_a_sidecar_that_lacks_a_fact_is_named(tmp_path, fact):
    path = write_tokens(tmp_path / "t.bin", [1, 2, 3])
    facts = json.loads(sidecar(path).read_text())
    del facts[fact]
    sidecar(path).write_text(json.dumps(facts))
    with pytest.raises(UserError, match=rf"is damaged .*{fact}"):
        open_tokens(path)


SENSELESS = [
    *({"tokens": value} for value in ("4", None, [4], 4.0, True)),
    *({"utf8_bytes": value} for value in (0, -1, 10**1000)),
    {"documents": 10**1000},
    {"unknown_characters": "3"},
    {"end_of_text_id": None},
    {"pairs": "a"},
    {"pairs": [1]},
]


@pytest.mark.parametrize("fact", SENSELESS, ids=lambda fact: str(fact)[:40])
def test_a_sidecar_of_senseless_facts_is_named(tmp_path, fact):
    """With the right checksum: somebody made it so."""
    path = write_tokens(tmp_path / "t.bin", [1, 2, 3])
    change_sidecar(path, **fact)
    with pytest.raises(UserError, match=f"is damaged.*{next(iter(fact))}"):
        open_tokens(path)


def test_a_token_file_of_nothing_is_refused(tmp_path):
    with pytest.raises(UserError):
        open_tokens(write_tokens(tmp_path / "t.bin"))


def test_a_sidecar_of_another_version_is_refused(tmp_path):
    path = write_tokens(tmp_path / "t.bin", [1, 2, 3])
    change_sidecar(path, format_version=3)
    with pytest.raises(UserError, match="format version 3"):
        open_tokens(path)


def test_a_sidecar_without_a_checksum_is_one_of_the_first_version(tmp_path):
    path = write_tokens(tmp_path / "t.bin", [1, 2, 3])
    facts = json.loads(sidecar(path).read_text())
    del facts["crc32"]
    sidecar(path).write_text(json.dumps(facts))
    with pytest.raises(UserError, match="is damaged"):
        open_tokens(path)
    sidecar(path).write_text(json.dumps(facts | {"format_version": 1}))
    assert open_tokens(path).tokens.tolist() == [1, 2, 3, 7]


def test_no_flipped_bit_of_a_sidecar_is_used(tmp_path):
    """In numbers such as utf8_bytes, nothing but the checksum would notice it: bits per byte would be others."""
    path = write_tokens(tmp_path / "t.bin", [1, 2, 3])
    good, facts = sidecar(path).read_bytes(), open_tokens(path).facts
    noticed = 0
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        sidecar(path).write_bytes(bad)
        try:
            assert open_tokens(path).facts == facts  # a letter of another case in \\u00e9, say
        except UserError as error:
            noticed += 1
            assert "t.bin" in str(error)
    assert noticed > 7.9 * len(good)


def test_a_file_that_is_changed_in_place_is_noticed(tmp_path):
    """By its bytes: a new date alone is no change, and another file under its name is not the one that is open."""
    path = write_tokens(tmp_path / "t.bin", [1, 2, 3])
    write_tokens(tmp_path / "folder" / "t.bin", [1, 2, 3])
    opened, folder = open_tokens(path), open_tokens(tmp_path / "folder")
    for data, file in ((opened, path), (folder, tmp_path / "folder" / "t.bin")):
        data.check_unchanged()
        os.utime(file, (1, 1))
        data.check_unchanged()
        with open(file, "r+b") as changed:
            changed.write(b"\5")
        with pytest.raises(UserError, match=r"t\.bin was changed while it was in use"):
            data.check_unchanged()
    opened = open_tokens(write_tokens(path, [1, 2, 3]))
    write_tokens(path, [4, 5])
    opened.check_unchanged()


# === batches ==========================================================================================================


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
