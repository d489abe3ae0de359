"""Names, columns and texts from outside are printed without what a terminal would obey."""

import io
import json
import os
import re
import sys
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_scripts import (
    DOCUMENTS,
    EXTRACT,
    INGEST,
    INSPECT,
    MERGE,
    PREPARE_BPE,
    PREPARE_CHAR,
    SAMPLE,
    TRAIN_BPE,
    TRAIN_CHAR,
)

import train
from model.generation.display import Output
from model.monitoring import reporter
from model.tokenization.tokenizer import load_tokenizer
from plumbing.errors import UserError, run_script
from scripts.export_huggingface import model_card

EVIL = "\x1b]0;owned\x07\x9b2J"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="such names are not possible")


def obeyed(text: str) -> list[str]:
    """What a terminal would obey in an output, save line ends, and the carriage returns of progress bars."""
    return [c for c in re.sub("[\n\r]", "", text) if not c.isprintable()]


def test_every_step_in_a_folder_with_such_a_name(run, project, monkeypatch):
    folder = project / f"f{EVIL}"
    (folder / "src").mkdir(parents=True)
    for i, text in enumerate(DOCUMENTS):
        (folder / "src" / f"{i}{EVIL}.py").write_text(f"# {EVIL}\n{text}", "utf-8")
    (folder / "src" / f"empty{EVIL}.py").touch()
    (folder / "src" / f"t{EVIL}.jsonl").write_text(json.dumps({f"c{EVIL}": "x"}), "utf-8")
    corpus, char, bpe = folder / "c.txt", folder / "t.json", folder / "b.json"
    files = ["--train-file", folder / "train.bin", "--val-file", folder / "val.bin"]
    steps = [
        [INGEST, folder / "src", "--output", folder / "f.parquet"],
        ["ingestion/ingest_dataset.py", folder / "src", "--column", f"c{EVIL}", "--output", folder / "d.parquet"],
        [EXTRACT, folder / "f.parquet", "--corpus", corpus],
        [EXTRACT, folder / "f.parquet", "--corpus", corpus, "--shard", "1/1"],
        [SAMPLE, "--fraction", "0.5", "--corpus", corpus, "--output", folder / "s.txt"],
        [TRAIN_CHAR, "--corpus", corpus, "--tokenizer-file", char],
        [TRAIN_BPE, "--corpus", corpus, "--tokenizer-file", bpe, "--vocab-size", "300"],
        [PREPARE_BPE, "--corpus", corpus, "--tokenizer-file", bpe, *files, "--val-fraction", "0.4"],
        [PREPARE_CHAR, "--corpus", corpus, "--tokenizer-file", char, *files, "--val-fraction", "0.4"],
        [PREPARE_CHAR, "--corpus", corpus, "--tokenizer-file", char, *files, "--val-fraction", "0.4", "--shard", "1/1"],
        [INSPECT, corpus],
        [INSPECT, folder / "train.bin", "--tokenizer-file", char],
        [MERGE, folder / "train.bin", folder / "val.bin", "--output", folder / "m.bin"],
        ["scripts/novelty.py", corpus, "--corpus", corpus],
    ]
    for command in steps:
        result = run(*command)
        assert (command[0], result.code, obeyed(result.out + result.err)) == (command[0], 0, [])
    for command in steps:  # and now with something that is wrong
        result = run(
            *[folder / f"no{EVIL}" if arg in (corpus, folder / "src", folder / "train.bin") else arg for arg in command]
        )
        assert obeyed(result.out + result.err) == []


def test_columns_of_a_file_from_a_stranger(run, project):
    pq.write_table(pa.table({f"c{EVIL}": ["x"]}), f"p{EVIL}.parquet")
    for script in (EXTRACT, "ingestion/ingest_dataset.py"):
        result = run(script, f"p{EVIL}.parquet")
        assert result.code == 1 and "owned" in result.err and obeyed(result.out + result.err) == []


def test_every_error_is_printed_without(capsys):
    def main():
        raise UserError(f"the type {EVIL} is unknown\nand the second line stays")

    with pytest.raises(SystemExit):
        run_script(main)
    err = capsys.readouterr().err
    assert err.count("\n") == 2 and "owned" in err and obeyed(err) == []


@pytest.mark.parametrize("terminal", [True, False])
def test_a_generated_text_is_exact_except_on_a_terminal(monkeypatch, terminal):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=buffer, isatty=lambda: terminal))
    output = Output()
    output.add(f"a\tb\n{EVIL}")
    output.flush()
    text = buffer.getvalue().decode()
    assert text.startswith("a\tb\n") and (text == f"a\tb\n{EVIL}") != terminal
    assert (obeyed(text.replace("\t", "")) == []) == terminal


def test_the_sample_of_a_training(char, capsys, monkeypatch):
    monkeypatch.setattr(reporter, "sample_text", lambda *arguments: f"first\n{EVIL}")
    assert train.main(char, fresh=False) == 0
    out = capsys.readouterr().out
    assert "  | first\n  | " in out and "owned" in out and obeyed(out) == []


def test_a_model_card_has_no_markup_from_a_stranger(char, tmp_path):
    """Such names are in it as code, and of other fields only numbers."""
    markup = f"x`](http://evil)<script>alert(1)</script>{EVIL}"
    training = {
        "steps": 3,
        "val_bits_per_byte": 2.5,
        "tokens_seen": markup,
        "val_loss": [markup],
        "init_from": markup,
        "data": {"source": markup.replace("/", "|"), "utf8_bytes": 7},
    }
    tokenizer = load_tokenizer(char.tokenizer_file)
    shape = {"n_layer": 1, "n_head": 1, "n_embd": 8, "vocab_size": 9, "block_size": 16}
    model = SimpleNamespace(architecture=shape, parameter_counts=lambda: {"all": 5})
    card = model_card(tmp_path / "out", model, tokenizer, training)
    assert obeyed(card) == []
    outside = re.sub("`[^`\n]*`", "", card)
    assert "evil" in card and "evil" not in outside and "<script>" not in outside
    assert "training tokens" not in card and "| training steps | 3 |" in card
