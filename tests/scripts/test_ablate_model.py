"""What parts do: scores on hand-made heads, the ranking against a plain loop, and writing without a part."""

import re
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch

import generate
import train
from dataset import open_tokens
from model.generation.command_line import generation_flags
from model.interpretation.ablation import without
from model.interpretation.heads import induction, previous_token, same_token
from model.storage.model_file import load_model
from plumbing.errors import UsageError, UserError
from plumbing.text import shown_path
from scripts import ablate_model

T = 8


def heads(*rows):
    """Attention (1, H, T, T) of heads of which each token looks at one other: rows[h][i] is at whom."""
    attention = torch.zeros(1, len(rows), T, T)
    for h, row in enumerate(rows):
        attention[0, h, range(T), row] = 1
    return attention


UNIFORM = torch.tril(torch.ones(T, T)) / torch.arange(1, T + 1)[:, None]


def test_a_previous_token_head():
    before = [0, *range(T - 1)]
    scores = previous_token(heads(before, range(T), [0] * T))
    assert scores.tolist() == pytest.approx([1, 0, 1 / 7])  # of seven tokens, the second has the first before it
    uniform = previous_token(UNIFORM[None, None]).item()
    assert uniform == pytest.approx(np.mean([1 / i for i in range(2, T + 1)]))


def test_a_same_token_head():
    idx = torch.tensor([[5, 6, 5, 7, 6, 5, 8, 8]])
    last = [0, 1, 0, 3, 1, 2, 6, 6]  # at the last one that is equal, or at itself
    assert same_token(heads(last, range(T), [0] * T), idx).tolist() == pytest.approx([1, 0, 2 / 4])
    # Spread over both earlier fives, it is the same token all the same.
    spread = heads(last)
    spread[0, 0, 5] = 0
    spread[0, 0, 5, [0, 2]] = 0.5
    assert same_token(spread, idx).tolist() == pytest.approx([1])
    assert same_token(heads(last), torch.arange(T)[None]).tolist() == [0]


def test_an_induction_head():
    n = T // 2
    after_the_same = [0] * n + [i - n + 1 for i in range(n, T)]
    the_same = [0] * n + [i - n for i in range(n, T)]
    assert induction(heads(after_the_same, the_same, [0, *range(T - 1)])).tolist() == pytest.approx([1, 0, 0])
    assert induction(UNIFORM[None, None]).item() == pytest.approx(np.mean([1 / i for i in range(n + 1, T + 1)]))


def test_habits_have_names():
    assert ablate_model.habit((0.9, 0.1, 0.2)) == "previous token"
    assert ablate_model.habit((0.1, 0.4, 0.2)) == "same token"
    assert ablate_model.habit((0.0, 0.0, 0.31)) == "induction"
    assert ablate_model.habit((0.2, 0.2, 0.2)) == ""


@pytest.fixture
def trained(char):
    """The settings of a run that has learned a little, where its model lies."""
    settings = replace(char, max_steps=40, dropout=0.0, eval_every=0, debug=False)
    train.main(settings, fresh=False)
    return settings


def ablate(settings, capsys, *flags):
    argv = ["--model", settings.model_file, "--val-file", settings.val_file, "--device", "cpu", *flags]
    capsys.readouterr()
    ablate_model.main(*ablate_model.command_line(list(map(str, argv))))
    return capsys.readouterr().out


def test_the_ranking_is_that_of_losses_without_each_part(trained, capsys):
    out = ablate(trained, capsys, "--eval-tokens", 0)
    model, _, training = load_model(trained.model_file)
    assert f"loss {training['val_loss']:.4f}" in out
    rows = re.findall(r"^  (L\d\w*)(?:, all of it)? +([+-][\d.]+) ", out, re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(f"L{i}{part}" for i in (0, 1) for part in ("H0", "H1", "MLP", ""))
    costs = [float(cost) for _, cost in rows]
    assert costs == sorted(costs, reverse=True)
    val = open_tokens(trained.val_file)
    for name, cost in rows:
        with without(model, name):
            loss, _ = train.evaluate(model, val, train.StopFlag())
        assert float(cost) == pytest.approx(loss - training["val_loss"], abs=1e-4)
    model_file = shlex.quote(shown_path(trained.model_file))
    assert f"Next: python generate.py --model {model_file} --prompt def --quiet --off L" in out


def test_scores_are_of_every_head(trained):
    model, _, _ = load_model(trained.model_file)
    idx = torch.from_numpy(open_tokens(trained.val_file).tokens[:48].astype(np.int64)).view(2, 24)
    scores = ablate_model.head_scores(model, idx, seed=1)
    assert list(scores) == ["L0H0", "L0H1", "L1H0", "L1H1"]
    assert all(0 <= score <= 1 for row in scores.values() for score in row)
    weights = []
    model(idx, weights=weights)
    shares = torch.stack([weights[1][b, 1].diagonal(-1) for b in range(2)])
    assert scores["L1H1"][0] == pytest.approx(shares.mean().item(), abs=1e-6)


def test_what_it_refuses(trained, capsys, bpe):
    with pytest.raises(UserError, match="another tokenizer"):
        argv = ["--model", str(trained.model_file), "--val-file", str(bpe.val_file)]
        ablate_model.main(*ablate_model.command_line(argv))
    with pytest.raises(UsageError, match="--eval-tokens"):
        ablate(trained, capsys, "--eval-tokens", -1)
    with pytest.raises(UsageError, match="--seed"):
        ablate(trained, capsys, "--seed", 2**64)
    assert capsys.readouterr().out == ""


def test_writing_without_a_part(trained, capfd):
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
