"""A damaged line of log.jsonl is left out, and a changed one is not believed."""

import json
import shutil
from dataclasses import replace

import pytest
from runs import interrupt_after, log_of

import train
from model.monitoring.log import read_line
from model.storage.model_file import load_model
from model.storage.safe_load import load
from scripts import plot_training

DAMAGED = [b"{", b"[]", b"5", b'{"step": "5"}', b"\xff\xfe", b"[" * 100_000, b'{"loss": 3}']


@pytest.fixture
def copied(finished_run, tmp_path):
    """The finished run in a folder that a test may change."""
    shutil.copytree(finished_run.settings.checkpoint_dir, tmp_path / "run")
    return replace(finished_run.settings, checkpoint_dir=tmp_path / "run", model_file=tmp_path / "model.pt")


def test_damaged_lines_of_the_log_are_left_out_and_counted(copied, capsys):
    settings, whole = copied, log_of(copied)
    interrupt_after(settings, 5)
    with open(settings.checkpoint_dir / "log.jsonl", "ab") as log:
        log.writelines(line + b"\n" for line in DAMAGED)
    train.main(settings, fresh=False)
    assert "log.jsonl: left out 7 damaged lines\n" in capsys.readouterr().out
    assert [line for line in DAMAGED if read_line(line)] == []
    assert [entry["step"] for entry in log_of(settings)] == [entry["step"] for entry in whole]


def test_an_evaluation_whose_line_was_changed_is_not_believed(finished_run, copied):
    settings = copied
    truth = load_model(finished_run.settings.model_file)[2]["val_loss"]
    path = settings.checkpoint_dir / "log.jsonl"
    path.write_text(path.read_text().replace(json.dumps(truth), json.dumps(truth / 2)))
    train.main(settings, fresh=False)
    assert load_model(settings.model_file)[2]["val_loss"] == truth
    assert load(settings.model_file)["training"]["val_loss"] == truth


def test_a_record_whose_line_was_changed_is_no_record(finished_run, tmp_path, capsys):
    """A page's program would stop at it. What is left out is said."""
    lines = (finished_run.settings.checkpoint_dir / "log.jsonl").read_bytes().split(b"\n")
    number, line = next((i, line) for i, line in enumerate(lines) if b'"record"' in line)
    assert read_line(line)["record"]
    at = range(0, len(line), 7)
    changed = [line[:i] + bytes([line[i] ^ 1]) + line[i + 1 :] for i in at]
    right = [None, read_line(line)["record"]]  # if the checksum's name is changed, the record is still right
    assert all((read_line(other) or {"record": None})["record"] in right for other in changed)
    assert read_line(changed[40]) is None
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(lines[:number] + changed[40:41] + lines[number + 1 :]))
    plot_training.main([str(tmp_path), "--html", str(tmp_path / "page.html")])
    assert "log.jsonl: left out 1 damaged line\n" in capsys.readouterr().out


def test_records_of_old_versions_have_no_checksum():
    assert read_line(b'{"step": 3, "record": {"sample": "x"}}')["record"] == {"sample": "x"}
