"""What components do: the ranking against a plain loop, the scores of a model's heads, and generating without some."""

import re
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_pipeline

import generate
import train
from config import CHAR
from dataset import open_tokens
from model.generation.command_line import generation_flags
from model.interpretation.ablation import ablated
from model.interpretation.heads import head_scores
from model.storage.model_file import load_model
from plumbing.errors import UsageError, UserError
from plumbing.text import shown_path
from scripts import ablate_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The settings of a run that has learned a little, where its model lies."""
    settings = make_pipeline(tmp_path_factory.mktemp("trained"), CHAR, "char")
    settings = replace(settings, max_steps=40, dropout=0.0, eval_every=0, debug=False)
    train.main(settings, fresh=False)
    return settings


def ablate(settings, capsys, *flags):
    argv = ["--model", settings.model_file, "--val-file", settings.val_file, "--device", "cpu", *flags]
    capsys.readouterr()
    ablate_model.main(list(map(str, argv)))
    return capsys.readouterr().out


def test_the_ranking_is_that_of_losses_without_each_component(trained, capsys):
    out = ablate(trained, capsys, "--eval-tokens", 0)
    model, _, training = load_model(trained.model_file)
    assert f"loss {training['val_loss']:.4f}" in out
    rows = re.findall(r"^  (L\d\w*)(?:, all of it)? +([+-][\d.]+) ", out, re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(f"L{i}{part}" for i in (0, 1) for part in ("H0", "H1", "MLP", ""))
    costs = [float(cost) for _, cost in rows]
    assert costs == sorted(costs, reverse=True)
    val = open_tokens(trained.val_file)
    for name, cost in rows:
        with ablated(model, name):
            loss, _ = train.evaluate(model, val)
        assert float(cost) == pytest.approx(loss - training["val_loss"], abs=1e-4)
    model_file = shlex.quote(shown_path(trained.model_file))
    assert f"Next: python generate.py --model {model_file} --prompt def --quiet --off L" in out


def test_scores_are_of_every_head(trained):
    model, _, _ = load_model(trained.model_file)
    idx = torch.from_numpy(open_tokens(trained.val_file).tokens[:48].astype(np.int64)).view(2, 24)
    scores = head_scores(model, idx, seed=1)
    assert list(scores) == ["L0H0", "L0H1", "L1H0", "L1H1"]
    assert all(0 <= score <= 1 for row in scores.values() for score in row)
    weights = []
    model(idx, weights=weights)
    shares = torch.stack([weights[1][b, 1].diagonal(-1) for b in range(2)])
    assert scores["L1H1"][0] == pytest.approx(shares.mean().item(), abs=1e-6)


def test_what_it_refuses(trained, capsys, bpe):
    with pytest.raises(UserError, match="another tokenizer"):
        argv = ["--model", str(trained.model_file), "--val-file", str(bpe.val_file)]
        ablate_model.main(argv)
    with pytest.raises(UsageError, match="--eval-tokens"):
        ablate(trained, capsys, "--eval-tokens", -1)
    with pytest.raises(UsageError, match="--seed"):
        ablate(trained, capsys, "--seed", 2**64)
    assert capsys.readouterr().out == ""


def test_generating_without_a_component(trained, capfd):
    def write(*flags):
        argv = ["--model", str(trained.model_file), "--prompt", "def", "--tokens", "40", "--device", "cpu", *flags]
        generate.main(*generation_flags(replace(trained, debug=True), "", argv))
        done = capfd.readouterr()
        return done.out, done.err

    capfd.readouterr()
    whole, _ = write()
    without_two, said = write("--off", "L0H1", "--off", "l1mlp")
    assert "without L0H1, l1mlp" in said
    assert without_two != whole
    assert write("--off", "L0H1", "--off", "L1MLP", "--samples", "1")[0] == without_two
    with pytest.raises(UsageError, match="--off: There is no layer 7"):
        write("--off", "L7")
