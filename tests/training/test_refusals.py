"""Settings and files that no training can use."""

import math
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import make_pipeline
from data_scripts import PREPARE_CHAR

import train
from config import BPE, CHAR
from dataset import check_pair, joined_pairs, open_tokens, token_writer
from model.training.command_line import training_flags
from plumbing.command_line import flag_name
from plumbing.errors import UserError
from plumbing.text import time_left


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_head": 3}, "n_embd / n_head"),
        ({"n_layer": 0}, "--n-layer must be above 0"),
        ({"batch_size": -1}, "--batch-size must be above 0"),
        ({"block_size": 100_000}, "too few for blocks"),
        ({"max_steps": 0}, "--max-steps or --minutes"),
        ({"seed": -1}, "--seed must be from 0"),
        ({"seed": 2**64}, "--seed must be from 0"),
        ({"beta1": 1.0}, "--beta1"),
        ({"momentum": 1.0}, "--momentum"),
        ({"muon_rate": 0.0}, "--muon-rate must be above 0"),
        ({"rotary_base": 0.0}, "--rotary-base must be above 0"),
        ({"eval_every": -2}, "--eval-every must be -1 .ten in a run. or above"),
        ({"beta2": -1.0}, "--beta2"),
        ({"weight_decay": -1.0}, "--weight-decay"),
        ({"warmup_steps": -1}, "--warmup-steps"),
        ({"sample_tokens": -1}, "--sample-tokens"),
        ({"minutes": math.inf}, "--minutes must be a finite number"),
        ({"minutes": 1e308}, "--minutes must be at most 5,256,000"),
        ({"grad_clip": -1.0}, "--grad-clip must be 0 or above"),
        ({"decay_fraction": 1.5}, "--decay-fraction must be from 0 to 1"),
        ({"learning_rate": math.nan}, "--learning-rate must be a finite number"),
        ({"keep_checkpoints": 1}, "at least 2"),
        ({"dropout": 1.0}, "--dropout"),
        ({"device": "abacus"}, "--device is auto, cpu, .*, not 'abacus'"),
        ({"dtype": "float64"}, "not 'float64'"),
        ({"compile": "maybe"}, "--compile must be auto, on or off, not 'maybe'"),
        ({"tokenizer_file": Path("nowhere.json")}, "no tokenizer nowhere.json"),
        ({"train_file": Path("nowhere.bin")}, "no token file nowhere.bin.*prepare_dataset"),
    ],
)
def test_settings_that_no_run_can_use(char, change, message):
    with pytest.raises(UserError, match=message):
        train.main(replace(char, **change), fresh=False)


def prepared(folder, **pairs):
    """Token files of a training and a validation split, with these pairs in their sidecars (None: as older files)."""
    facts = {"tokenizer_sha256": "0" * 64, "vocab_size": 9, "end_of_text_id": 0, "source": "c.txt"}
    for name, several in pairs.items():
        with token_writer(folder / f"{name}.bin", facts | ({"pairs": several} if several else {})) as writer:
            writer.add(np.arange(8), 8)
    return [open_tokens(folder / f"{name}.bin") for name in pairs]


@pytest.mark.parametrize(
    ("train_pairs", "val_pairs"), [(["a"], ["a"]), (["a", "b"], ["b"]), (["b"], ["a", "b"]), (["a", "b"], ["a", "b"])]
)
def test_files_that_were_prepared_together_belong_together(tmp_path, capsys, train_pairs, val_pairs):
    check_pair(*prepared(tmp_path, train=train_pairs, val=val_pairs))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("train_pairs", "val_pairs"), [(["a"], ["b"]), (["a", "b"], ["b", "c"])])
def test_files_of_two_preparations_are_refused(tmp_path, train_pairs, val_pairs):
    with pytest.raises(UserError, match=r"train\.bin and .*val\.bin were not prepared together .*c\.txt"):
        check_pair(*prepared(tmp_path, train=train_pairs, val=val_pairs))


@pytest.mark.parametrize(("train_pairs", "val_pairs"), [(None, None), (["a"], None), (None, ["a"])])
def test_files_that_do_not_say_are_taken_with_a_warning(tmp_path, capsys, train_pairs, val_pairs):
    check_pair(*prepared(tmp_path, train=train_pairs, val=val_pairs))
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "train.bin and" in out and "do not say that they were prepared together" in out


def test_a_folder_is_a_half_of_all_pairs_of_its_files(tmp_path):
    a, b = prepared(tmp_path, a=["1"], b=["2"])
    assert open_tokens(tmp_path).facts["pairs"] == ["1", "2"] == joined_pairs([a, b])
    prepared(tmp_path, c=None)
    assert open_tokens(tmp_path).facts["pairs"] == []


def test_a_preparation_that_was_cut_off_between_two_folders_is_noticed(char, tmp_path, run):
    """A power failure keeps the new validation file and the earlier training file, each with its sidecar."""
    char = replace(char, train_file=tmp_path / "a" / "train.bin", val_file=tmp_path / "b" / "val.bin")
    names = "corpus tokenizer_file train_file val_file".split()
    command = [word for name in names for word in (flag_name(name), str(getattr(char, name)))]
    assert run(PREPARE_CHAR, "--val-fraction", "0.2", *command).code == 0
    shutil.copytree(tmp_path / "a", tmp_path / "earlier")
    assert run(PREPARE_CHAR, "--val-fraction", "0.6", *command).code == 0
    train.main(char, fresh=False)
    shutil.copytree(tmp_path / "earlier", tmp_path / "a", dirs_exist_ok=True)
    with pytest.raises(UserError, match="train.bin and .*val.bin were not prepared together .*0.2 and .*0.6"):
        train.main(char, fresh=True)


def test_the_model_does_not_replace_what_it_learns_from(char):
    before = char.val_file.read_bytes()
    with pytest.raises(UserError, match=r"--model-file would replace .*val\.bin, which is read here"):
        train.main(replace(char, model_file=char.val_file), fresh=False)
    assert char.val_file.read_bytes() == before


def test_the_kinds_do_not_mix(tmp_path):
    char = make_pipeline(tmp_path / "a", CHAR, "char")
    bpe = make_pipeline(tmp_path / "b", BPE, "bpe")
    with pytest.raises(UserError, match="bpe tokenizer; trainv2.py trains on it"):
        train.main(bpe, fresh=False, kind="char")
    with pytest.raises(UserError, match="char tokenizer; train.py trains on it"):
        train.main(char, fresh=False, kind="bpe")
    with pytest.raises(UserError, match="made with a different tokenizer"):
        train.main(replace(char, train_file=bpe.train_file), fresh=False)


def test_flags_become_settings(capsys):
    settings, args = training_flags(CHAR, "", ["--n-layer", "7", "--tie-embeddings", "--quiet", "--fresh"])
    assert (settings.n_layer, settings.tie_embeddings, settings.debug, args.fresh) == (7, True, False, True)
    with pytest.raises(SystemExit) as error:
        training_flags(CHAR, "", ["--n-layers", "many"])
    assert error.value.code == 2


def test_home_in_a_flag_is_the_home_folder(monkeypatch, tmp_path):
    """The shell leaves it to us in --checkpoint-dir=~/runs."""
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    settings, args = training_flags(CHAR, "", ["--checkpoint-dir=~/runs", "--init-from=~/x", "--model-file=a~/~b"])
    assert (settings.checkpoint_dir, args.init_from) == (tmp_path / "runs", tmp_path / "x")
    assert settings.model_file == Path("a~/~b")


def test_planned_steps_fill_the_time(char, monkeypatch):
    """--minutes against the time that the run then takes, generously: machines are noisy."""
    monkeypatch.setattr(train, "STARTED", time.perf_counter())
    train.main(replace(char, minutes=0.05, eval_every=0, checkpoint_every=10_000), fresh=False)
    assert 1.0 < time.perf_counter() - train.STARTED < 6.0
    assert time_left(50, 100, 30) == 30
