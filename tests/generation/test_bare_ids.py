"""Token files of other projects, raw uint16 without a description: --tokenizer none --vocab-size N."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

import generate
import train
from config import CHAR
from dataset import open_bare_tokens, open_tokens, sidecar
from model.generation.command_line import generation_flags
from model.storage.model_file import load_model
from model.tokenization.tokenizer import BareIds
from model.training.command_line import training_flags
from plumbing.errors import UsageError, UserError
from scripts import ablate_model, export_huggingface, inspect_model, plot_training, surprise_map


@pytest.fixture
def bare(char):
    """The settings of a run on nothing but two files, and their number of ids."""
    ids = open_tokens(char.train_file).facts["vocab_size"]
    char.tokenizer_file.unlink()
    for path in (char.train_file, char.val_file):
        sidecar(path).unlink()
    return char, ids


def test_bare_ids_train_as_described_ones_do(char, tmp_path, capsys):
    train.main(char, fresh=False)
    described = load_model(char.model_file)[2]["val_loss"]
    ids = open_tokens(char.train_file).facts["vocab_size"]
    for path in (char.train_file, char.val_file):
        sidecar(path).unlink()
    char.tokenizer_file.unlink()
    capsys.readouterr()
    settings = replace(char, checkpoint_dir=tmp_path / "bare", model_file=tmp_path / "bare.pt")
    assert train.main(settings, fresh=False, ids=ids) == 0
    model, tokenizer, training = load_model(settings.model_file)
    assert training["val_loss"] == described
    assert (tokenizer.kind, tokenizer.vocab_size, model.vocab_size) == ("none", ids, ids)
    out = capsys.readouterr().out
    assert "bits per byte unknown" in out and "nan" not in out and "number of bytes unknown" in out
    assert f"ln({ids})" in out
    lines = (settings.checkpoint_dir / "log.jsonl").read_text("utf-8").splitlines()
    assert "NaN" not in "".join(lines)
    assert json.loads(lines[-1])["val_bits_per_byte"] is None
    # What it writes are ids.
    assert all(id.isdecimal() for id in json.loads(lines[-1])["sample"].split())

    # The same command goes on; a larger vocabulary is another run.
    assert train.main(replace(settings, max_steps=12), fresh=False, ids=ids) == 0
    with pytest.raises(UserError, match="used different settings: the tokenizer has changed"):
        train.main(replace(settings, max_steps=12), fresh=False, ids=ids + 1)


def test_prompt_and_text_are_ids(bare, capfdbinary, monkeypatch):
    settings, ids = bare
    train.main(settings, fresh=False, ids=ids)
    capfdbinary.readouterr()
    model = ["--model", str(settings.model_file), "--tokens", "9", "--device", "cpu"]
    for prompt, begins in (([], b""), (["--prompt", " "], b" "), (["--prompt", "5 7 0"], b"5 7 0")):
        for kind in ("char", "bpe"):
            assert generate.main(*generation_flags(CHAR, "", [*model, *prompt]), kind=kind) == 0
            done = capfdbinary.readouterr()
            assert done.out.startswith(begins)
            written = done.out.removeprefix(begins).split()
            assert len(written) == 9 and all(0 <= int(id) < ids for id in written)
            assert b"bits per byte unknown" in done.err and b"nan" not in done.err
            assert (b"starting from id 0" in done.err) == (not begins.strip())
    for prompt in ("def", "-1", "1.5", str(ids), "9" * 5000, "²"):
        with pytest.raises(UserError, match=f"texts are ids from 0 to {ids - 1}"):
            generate.main(*generation_flags(CHAR, "", [*model, "--prompt", prompt]))
    with pytest.raises(UserError, match="no tokenizer, so it cannot be exported"):
        export_huggingface.main(["--model", str(settings.model_file), "--output", "nowhere"])
    with pytest.raises(UserError, match="cannot read a text"):
        surprise_map.main([__file__, "--model", str(settings.model_file)])


def test_looking_inside(bare, tmp_path, capsys):
    settings, ids = bare
    train.main(settings, fresh=False, ids=ids)
    model, page = ["--model", str(settings.model_file), "--device", "cpu"], tmp_path / "page.html"
    for prompt in ("5 7 0", " "):
        inspect_model.main([*model, "--prompt", prompt, "--text", "--html", str(page)])
    assert "a model of bare ids, trained for 10 steps, validation bits per byte unknown." in page.read_text("utf-8")
    ablate_model.main([*model, "--val-file", str(settings.val_file)])
    plot_training.main([str(settings.checkpoint_dir), "--text", "--html", str(page)])
    assert "char: 10 steps, best validation bits per byte unknown." in page.read_text("utf-8")
    out = capsys.readouterr().out
    assert "a model of bare ids: trained for 10 steps" in out and "nan" not in out
    assert re.search(r"--prompt \d+ --quiet --off", out)
    with pytest.raises(UsageError, match="trained on bare ids: name some with --val-file"):
        ablate_model.main(model)


def test_id_0_ends_no_text():
    tokenizer = BareIds(10)
    assert tokenizer.encode("3 0\n9").tolist() == [3, 0, 9]
    assert tokenizer.decode([3, 0, 9]) == "3 0 9 "


def test_files_that_cannot_be_are_refused(bare, tmp_path):
    settings, ids = bare
    with pytest.raises(UserError, match=rf"holds the id {ids - 1}, so --vocab-size must be {ids} or more, and it is 5"):
        train.main(settings, fresh=False, ids=5)
    with pytest.raises(UserError, match="vocab_size must be a whole number from 1 to 65,536"):
        train.main(settings, fresh=False, ids=70_000)
    (tmp_path / "odd.bin").write_bytes(b"\0\0\0")
    (tmp_path / "empty.bin").write_bytes(b"")
    for name in ("odd.bin", "empty.bin"):
        with pytest.raises(UserError, match="it is empty, or not one of ids of two bytes"):
            open_bare_tokens(tmp_path / name, 10)
    with pytest.raises(UserError, match="There is no token file"):
        open_bare_tokens(tmp_path / "missing.bin", 10)
    with pytest.raises(UserError, match="is a folder, and bare ids .* are one file"):
        open_bare_tokens(tmp_path, 10)
    with pytest.raises(UserError, match="--vocab-size must be 2 or more"):
        train.main(settings, fresh=False, ids=1)
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, 3
    (tmp_path / "llmc.bin").write_bytes(header.tobytes() + np.array([1, 2, 9], "<u2").tobytes())
    with pytest.raises(UserError, match=r"has the header of llm.c's .* tail -c \+1025 llmc.bin > llmc.ids"):
        open_bare_tokens(tmp_path / "llmc.bin", 60_000)
    for kind in ("<i4", "<i8"):
        np.array([0, 2, 9, 9], kind).tofile(tmp_path / "wide.bin")
        with pytest.raises(UserError, match=f'holds ids of {kind[2]} bytes.*fromfile."wide.bin", "{kind}"'):
            open_bare_tokens(tmp_path / "wide.bin", 10)
    for ids in ([0, 0, 0, 0], [5, 0, 0, 3], [0, 0, 5]):  # which are none of these
        np.array(ids, "<u2").tofile(tmp_path / "few.bin")
        assert open_bare_tokens(tmp_path / "few.bin", 10).tokens.tolist() == ids
    np.array([1, 2, 9], "<u2").tofile(tmp_path / "nine.bin")
    assert open_bare_tokens(tmp_path / "nine.bin", 10).tokens.tolist() == [1, 2, 9]


FLAGS = [
    ("--tokenizer none", "go together"),
    ("--vocab-size 65", "go together"),
    ("--tokenizer none --vocab-size 9 --init-from x", "leave --tokenizer none out"),
]


@pytest.mark.parametrize(("flags", "message"), FLAGS)
def test_flags_that_go_together(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        training_flags(CHAR, "", flags.split())
    assert message in capsys.readouterr().err
