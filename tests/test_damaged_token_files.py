"""A damaged token file is never used. The full numbers: uv run pytest -m soak"""

import hashlib
import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
from faults import change_sidecar, damaged, runs

import train
from dataset import open_tokens
from plumbing.errors import UserError


@runs(100, 1000)
def test_no_damaged_token_file_is_used(finished_run, tmp_path, number):
    data, rng = finished_run.settings.train_file.read_bytes(), random.Random(number)
    about = finished_run.settings.train_file.with_name("train.bin.json").read_bytes()
    for i in range(number):
        for name, good in (("train.bin", data), ("train.bin.json", about)):
            harmed = bool(i % 2) == (name == "train.bin")
            (tmp_path / name).write_bytes(damaged(good, good[::-1], rng) if harmed else good)
        if (tmp_path / "train.bin").read_bytes() == data and (tmp_path / "train.bin.json").read_bytes() == about:
            continue  # a damage that changes nothing
        with pytest.raises(UserError, match=r"train\.bin"):
            open_tokens(tmp_path / "train.bin")


def test_without_the_checksum_a_changed_token_would_be_trained_on(finished_run, tmp_path):
    """The control: length and description are as they were."""
    for path in finished_run.settings.train_file.parent.glob("train.bin*"):
        shutil.copy(path, tmp_path)
    data = bytearray((tmp_path / "train.bin").read_bytes())
    data[100] ^= 1
    (tmp_path / "train.bin").write_bytes(data)
    assert len(data) == 2 * json.loads((tmp_path / "train.bin.json").read_text())["tokens"]
    with pytest.raises(UserError, match="train.bin is damaged"):
        train.main(replace(finished_run.settings, train_file=tmp_path / "train.bin"), fresh=False)


def test_ids_beyond_the_vocabulary_are_refused(finished_run, tmp_path):
    for path in finished_run.settings.train_file.parent.glob("train.bin*"):
        shutil.copy(path, tmp_path)
    tokens = np.fromfile(tmp_path / "train.bin", "<u2")
    tokens[3] = 60_000
    tokens.tofile(tmp_path / "train.bin")
    change_sidecar(tmp_path / "train.bin", sha256=hashlib.sha256(tokens.tobytes()).hexdigest())
    with pytest.raises(UserError, match="train.bin is damaged"):
        open_tokens(tmp_path / "train.bin")
