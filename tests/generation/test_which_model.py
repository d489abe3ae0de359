"""Which model a generator takes: --model, else gpt_model.pt, else the one that its own run keeps."""

from dataclasses import replace

import pytest
import torch

import generate
from config import BPE, CHAR, MODEL_NAME, ROOT
from model.generation.command_line import generation_flags
from model.gpt import GPT
from model.storage.model_file import load_model, save_model
from model.tokenization.tokenizer import BareIds
from plumbing.errors import UserError

OLD = ROOT / "tests/fixtures/before_rooms"
MODELS = {"char": OLD / "gpt_model.pt", "bpe": OLD / "gpt_model_bpe.pt"}


@pytest.fixture
def write_in(tmp_path, monkeypatch, capfd):
    """Run the generator of a kind in a project where gpt_model.pt and the run's own model are copies of those given.
    Returns what it says on stderr, and whether the text is that of the model of this kind."""

    def run(kind, newest=None, own=None, *flags):
        monkeypatch.chdir(tmp_path)
        settings = {"char": CHAR, "bpe": BPE}[kind]
        settings = replace(
            settings, model_file=tmp_path / "gpt_model.pt", checkpoint_dir=tmp_path / "checkpoints" / kind
        )
        settings.checkpoint_dir.mkdir(parents=True)
        for path, source in (
            (settings.model_file, newest),
            (settings.checkpoint_dir / MODEL_NAME, own),
        ):
            if source:
                path.write_bytes(source.read_bytes())
        argv = ["--prompt", "1 2", "--tokens", "5", "--temperature", "0", "--device", "cpu", *flags]
        capfd.readouterr()
        generate.main(*generation_flags(settings, "", argv), kind)
        return capfd.readouterr()

    return run


@pytest.fixture
def bare(tmp_path):
    path = tmp_path / "bare.pt"
    torch.manual_seed(0)
    save_model(
        path, GPT(9, block_size=8, n_layer=1, n_head=1, n_embd=4), BareIds(9), {"steps": 1, "val_bits_per_byte": None}
    )
    return path


@pytest.mark.parametrize(("kind", "other"), [("char", "bpe"), ("bpe", "char")])
def test_without_model_the_newest_of_its_kind(write_in, kind, other):
    err = write_in(kind, newest=MODELS[kind], own=MODELS[other]).err
    assert err.startswith("gpt_model.pt: trained for")


@pytest.mark.parametrize(("kind", "other"), [("char", "bpe"), ("bpe", "char")])
def test_its_own_runs_model_where_the_newest_is_of_the_other_kind(write_in, kind, other):
    done = write_in(kind, MODELS[other], MODELS[kind])
    begin = f"gpt_model.pt is a {other} model, so this uses checkpoints/{kind}/gpt_model.pt: trained for"
    assert done.err.splitlines()[0].startswith(begin)
    assert done.out.startswith("1 2") and len(done.out) > 3


def test_quiet_says_nothing_of_it(write_in):
    assert write_in("char", MODELS["bpe"], MODELS["char"], "--quiet").err == ""


def test_its_own_runs_model_where_there_is_no_other(write_in):
    assert write_in("char", None, MODELS["char"]).err.startswith("checkpoints/char/gpt_model.pt: trained for")


@pytest.mark.parametrize(
    ("kind", "other", "script", "train"),
    [("char", "bpe", "generatev2.py", "train.py"), ("bpe", "char", "generate.py", "trainv2.py")],
)
def test_only_one_of_the_other_kind(write_in, kind, other, script, train):
    message = f"^gpt_model.pt is a {other} model: use {script} for it, or train a {kind} model with {train}.$"
    with pytest.raises(UserError, match=message):
        write_in(kind, MODELS[other])


def test_no_model_at_all(write_in):
    with pytest.raises(UserError, match=r"^There is no model gpt_model.pt\. Train one with train.py"):
        write_in("char")


def test_a_model_that_is_named_is_the_one(write_in):
    """No other is taken instead of it, whatever else there is."""
    with pytest.raises(UserError, match=r"bpe model: use generatev2.py for it\.$"):
        write_in("char", MODELS["char"], MODELS["char"], "--model", str(MODELS["bpe"]))


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_model_of_bare_ids_is_of_either_kind(write_in, bare, kind):
    assert write_in(kind, bare, MODELS[kind]).err.startswith("gpt_model.pt: trained for 1 step")


def test_neither_file_is_replaced(write_in, tmp_path):
    for name in ("gpt_model.pt", "checkpoints/char/gpt_model.pt"):
        with pytest.raises(UserError, match=f"--output-file would replace {name}, which is read here"):
            write_in("char", MODELS["char"], MODELS["char"], "--output-file", name)
        (tmp_path / "checkpoints/char/gpt_model.pt").unlink()
        (tmp_path / "checkpoints/char").rmdir()
    assert load_model(tmp_path / "gpt_model.pt")
