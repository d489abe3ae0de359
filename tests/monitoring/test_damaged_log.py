"""A damaged line of log.jsonl is left out, and a changed one is not believed."""

import json
from dataclasses import replace

import pytest
from runs import interrupt_after, log_of

import train
from model.storage.model_file import load_model
from model.storage.safe_load import load


@pytest.mark.parametrize("line", [b"{", b"[]", b"5", b'{"step": "5"}', b"\xff\xfe", b"[" * 100_000, b'{"loss": 3}'])
def test_a_damaged_line_of_the_log_is_left_out_and_named(finished_run, tmp_path, capsys, line):
    settings = replace(finished_run.settings, checkpoint_dir=tmp_path / "run", model_file=tmp_path / "model.pt")
    train.main(settings, fresh=False)
    whole = log_of(settings)
    interrupt_after(settings, 5)
    with open(settings.checkpoint_dir / "log.jsonl", "ab") as log:
        log.write(line + b"\n")
    capsys.readouterr()
    train.main(settings, fresh=False)
    assert "log.jsonl: left out 1 damaged line" in capsys.readouterr().out
    assert [entry["step"] for entry in log_of(settings)] == [entry["step"] for entry in whole]


def test_an_evaluation_whose_line_was_changed_is_not_believed(finished_run, tmp_path):
    settings = replace(finished_run.settings, checkpoint_dir=tmp_path / "run", model_file=tmp_path / "model.pt")
    train.main(settings, fresh=False)
    truth = load_model(settings.model_file)[2]["val_loss"]
    path = settings.checkpoint_dir / "log.jsonl"
    path.write_text(path.read_text().replace(json.dumps(truth), json.dumps(truth / 2)))
    train.main(settings, fresh=False)
    assert load_model(settings.model_file)[2]["val_loss"] == truth
    assert load(settings.model_file)["training"]["val_loss"] == truth
