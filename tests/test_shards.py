"""A folder of token files, which training reads as one file."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import log_of, same

import train
from dataset import blocks_in_order, draw_batch, open_tokens, sidecar, token_writer
from model.storage.model_file import load_model
from model.training.inputs import Batches
from plumbing import files
from plumbing.errors import UserError

FACTS = {"tokenizer_sha256": "a" * 64, "vocab_size": 500, "end_of_text_id": 0}


def write(path, ids, facts=FACTS):
    with token_writer(path, facts) as writer:
        writer.add(np.asarray(ids, np.uint16), 2 * len(ids), unknown_characters=1)


@pytest.fixture
def both(tmp_path):
    """The same tokens as a folder, whose files were not written in the order of their names, and as one file."""
    rng, shards = np.random.default_rng(0), {}
    for name, size in (("c", 40), ("a", 7), ("d", 1), ("b", 90), ("e", 3)):
        shards[name] = rng.integers(1, 500, size)
        write(tmp_path / "shards" / f"{name}.bin", shards[name])
    ids = np.concatenate([np.append(shards[name], 0) for name in "abcde"])[:-1]
    write(tmp_path / "merged.bin", ids)
    return open_tokens(tmp_path / "shards"), open_tokens(tmp_path / "merged.bin")


def test_a_folder_gives_the_batches_of_the_merged_file(both):
    folder, merged = both
    assert len(folder) == len(merged) == 146
    for T in (1, 8, 100):  # the last one is longer than any file
        for step in range(60):
            for one, other in zip(*(draw_batch(d.tokens, T, 4, 1337, step) for d in both), strict=True):
                assert one.dtype == other.dtype and np.array_equal(one, other)
        for one, other in zip(*(list(blocks_in_order(d, T, 3)) for d in both), strict=True):
            assert all(map(np.array_equal, one, other))
    for start in range(0, 146, 9):
        for end in range(start, 147, 5):
            assert np.array_equal(folder.tokens[start:end], merged.tokens[start:end])
    assert folder.tokens[:].dtype == np.uint16
    assert folder.facts["documents"] == 5 and folder.facts["unknown_characters"] == 5
    assert folder.facts["utf8_bytes"] == 2 * 141


@pytest.mark.skipif(os.name != "posix", reason="Windows has another limit")
def test_more_files_than_the_system_lets_open_at_first(both, tmp_path, monkeypatch):
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    for i in range(60):
        for end in ("bin", "bin.json"):
            shutil.copy(tmp_path / "shards" / f"a.{end}", tmp_path / "shards" / f"x{i}.{end}")
    monkeypatch.setattr(files, "OTHER_FILES", 40)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 20, before[1]))
        assert len(open_tokens(tmp_path / "shards").shards) == 65
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (40, 40))
    with pytest.raises(UserError, match="65 files are too many to open at once, the system allows 40. Merge some"):
        open_tokens(tmp_path / "shards")


def test_processes_divide_the_blocks_of_a_file(both):
    _, merged = both
    for every in (1, 2):
        alone = [(i.tolist(), t.tolist()) for i, t in blocks_in_order(merged, 8, 3, every)]
        for size in (1, 2, 4, 9):
            turns = [list(blocks_in_order(merged, 8, 3, every, rank, size)) for rank in range(size)]
            assert len({len(turn) for turn in turns}) == 1
            shared = [(i.tolist(), t.tolist()) for turn in zip(*turns, strict=True) for i, t in turn if i.size]
            assert shared == alone


def test_what_a_folder_must_be(both, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no token files \(\*\.bin\)"):
        open_tokens(tmp_path / "empty")
    write(tmp_path / "shards" / "f.bin", [1, 2], FACTS | {"tokenizer_sha256": "b" * 64})
    with pytest.raises(UserError, match=r"f\.bin was made with another tokenizer than .*a\.bin"):
        open_tokens(tmp_path / "shards")
    write(tmp_path / "shards" / "f.bin", [1, 2])
    damaged = bytearray((tmp_path / "shards" / "b.bin").read_bytes())
    damaged[0] ^= 1
    (tmp_path / "shards" / "b.bin").write_bytes(damaged)
    with pytest.raises(UserError, match=r"b\.bin is damaged"):
        open_tokens(tmp_path / "shards")
    assert len(open_tokens(tmp_path / "shards", checksums=False)) == 149  # which another process has compared
    sidecar(tmp_path / "shards" / "d.bin").unlink()
    with pytest.raises(UserError, match=r"d\.bin has no d\.bin\.json beside it"):
        open_tokens(tmp_path / "shards", checksums=False)


def test_another_order_is_another_data_set(both, tmp_path):
    folder, _ = both
    for name in ("a.bin", "a.bin.json"):
        (tmp_path / "shards" / name).rename(tmp_path / "shards" / f"z{name}")
    assert folder.facts["sha256"] != open_tokens(tmp_path / "shards").facts["sha256"]


def test_a_training_on_a_folder_is_the_training_on_the_file(char, tmp_path, capsys):
    facts = json.loads(sidecar(char.train_file).read_text())
    tokens, cuts = open_tokens(char.train_file).tokens, [100, 1000]
    for number, ids in enumerate(np.split(tokens, cuts)):
        write(tmp_path / "folder" / f"{number}.bin", ids[:-1], {name: facts[name] for name in FACTS})
    # The writer ends each file with an end-of-text id, so the file to compare with has it at the cuts as well.
    expected = np.array(tokens)
    expected[[cut - 1 for cut in cuts]] = facts["end_of_text_id"]
    write(tmp_path / "merged.bin", expected[:-1], {name: facts[name] for name in FACTS})
    for name, path in (("one", tmp_path / "merged.bin"), ("two", tmp_path / "folder")):
        settings = replace(char, train_file=path, checkpoint_dir=tmp_path / name, model_file=tmp_path / f"{name}.pt")
        train.main(settings, fresh=False)
    assert "tokens, " in (said := capsys.readouterr().out) and ", in 3 files\n" in said
    one, two = (load_model(tmp_path / f"{name}.pt")[0] for name in ("one", "two"))
    assert same(one.state_dict(), two.state_dict())
    assert [e.get("loss") for e in log_of(settings)] == [
        e.get("loss") for e in log_of(replace(settings, checkpoint_dir=tmp_path / "one"))
    ]
    resident = Batches(open_tokens(tmp_path / "folder"), settings, torch.device("cpu"))
    batch = resident(3)
    resident.move_to_device()
    assert same(list(batch), list(resident(3)))


def test_a_folder_to_validate_on(char, tmp_path):
    char = replace(char, max_steps=1)
    train.main(char, fresh=False)
    (tmp_path / "validation").mkdir()
    for path in (char.val_file, sidecar(char.val_file)):
        path.rename(tmp_path / "validation" / path.name)
    folder = replace(char, val_file=tmp_path / "validation", checkpoint_dir=tmp_path / "run")
    train.main(folder, fresh=False)
    assert [e.get("val_loss") for e in log_of(folder)] == [e.get("val_loss") for e in log_of(char)]


def test_a_folder_that_holds_the_validation_file_is_refused(char):
    with pytest.raises(UserError, match="also contains the validation file"):
        train.main(replace(char, train_file=char.train_file.parent), fresh=False)
