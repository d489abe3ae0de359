"""Initial weights: heads look back, and the untrained model is the bigram model of its training tokens."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_pipeline
from runs import interrupt_after, log_of, same

import train
from config import CHAR
from dataset import open_tokens
from model.gpt import GPT
from model.storage.checkpoint import checkpoint_path, newest_checkpoint, save_checkpoint
from model.storage.model_file import load_model, save_model
from model.training import initial_weights
from model.training.initial_weights import PRIOR, look_back, start_from_bigrams


def untrained(V: int, C: int, tokens: np.ndarray) -> GPT:
    torch.manual_seed(1)
    model = GPT(V, block_size=8, n_layer=2, n_head=2, n_embd=C).eval()
    start_from_bigrams(model, tokens)
    return model


def probabilities(model: GPT) -> np.ndarray:
    """(V, V): p(j | i), for each token i alone in a block."""
    with torch.inference_mode():
        return model(torch.arange(model.vocab_size)[:, None])[:, 0].softmax(dim=1).double().numpy()


def counted(V: int, tokens: np.ndarray) -> np.ndarray:
    """The same by plain counting."""
    counts = np.zeros((V, V))
    for before, after in zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True):
        counts[before, after] += 1
    p = np.bincount(tokens, minlength=V) + 1.0
    p = counts + PRIOR * p / p.sum()
    return p / p.sum(axis=1, keepdims=True)


def tokens_of(V: int, N: int) -> np.ndarray:
    """Text in which each token has a few usual followers."""
    generator, token, tokens = np.random.default_rng(5), 0, []
    for _ in range(N):
        tokens.append(token)
        token = int((token * 3 + generator.integers(0, 3)) % V) if generator.random() < 0.9 else int(V * 0.3)
    return np.array(tokens, np.uint16)


@pytest.mark.parametrize(
    ("C", "H", "block_size", "base"),
    [
        (128, 4, 128, 30.0),
        (192, 6, 64, 20.0),
        (112, 4, 128, 30.0),
        (256, 4, 64, 10_000.0),
        (16, 4, 3, 30.0),
        (8, 1, 16, 30.0),
    ],
)
def test_heads_begin_by_looking_back(C, H, block_size, base):
    torch.manual_seed(1)
    model = GPT(50, block_size=block_size, n_layer=2, n_head=H, n_embd=C, rotary_base=base).eval()
    look_back(model)
    weights = []
    with torch.inference_mode():
        logits = model(torch.randint(50, (64, block_size)), weights=weights)
    assert logits.std() < 0.1, "the blocks are still the identity, and the tokens equally likely"
    last = weights[0][:, :, -1].mean(0)  # (H, T): from the last token to each one
    for head, attended in enumerate(last[: block_size - 1]):
        assert attended.flip(0).argmax() == head + 1
        assert attended[-head - 2] > 1.2 / block_size


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("choice", ["random", "previous", "bigram"])
def test_which_runs_look_back(tmp_path, capsys, choice, tied):
    """All but those that begin at random; with tied embeddings, too, where counting would not help."""
    settings = settings_of(tmp_path, initial_weights=choice, tie_embeddings=tied, max_steps=1)
    assert train.main(settings) == 0
    uniform = "nearly the same probability" in capsys.readouterr().out
    assert uniform == (tied or choice != "bigram")
    weights = newest_checkpoint(settings.checkpoint_dir)[1]["model"]
    constant = (weights["embedding.weight"][:, 0] - initial_weights.CONSTANT).abs().max() < 0.05
    queries, keys, _ = weights["blocks.0.attention.qkv.weight"].chunk(3)
    is_read = [matrix[:, 0].norm() > 1.5 * matrix.norm(dim=0)[1:].mean() for matrix in (queries, keys)]
    assert [constant, *is_read] == [choice != "random"] * 3
    first = next(entry for entry in log_of(settings) if "val_loss" in entry)
    loss = math.log(open_tokens(settings.train_file).facts["vocab_size"])
    assert first["step"] == 0 and (first["val_loss"] == pytest.approx(loss, rel=0.01)) == uniform


@pytest.mark.parametrize(("V", "C"), [(12, 16), (16, 20), (5, 32)])
def test_it_is_the_bigram_model_where_the_rank_suffices(V, C):
    tokens = tokens_of(V, 50_000)
    expected = counted(V, tokens)
    assert np.abs(expected - expected.mean(axis=0)).max() > 0.15  # far from being the same after every token
    np.testing.assert_allclose(probabilities(untrained(V, C, tokens)), expected, atol=0.01)


def test_with_fewer_channels_than_tokens_it_is_close():
    V, tokens = 60, tokens_of(60, 50_000)
    p_of = {"bigram": counted(V, tokens), "model": probabilities(untrained(V, 24, tokens))}
    loss = {name: -np.log(p[tokens[:-1], tokens[1:]]).mean() for name, p in p_of.items()}
    unigram = -np.log(np.bincount(tokens, minlength=V)[tokens] / len(tokens)).mean()
    assert loss["bigram"] < loss["model"] + 0.01  # the prior is the same, and no fit of it
    assert loss["model"] - loss["bigram"] < 0.25 * (unigram - loss["bigram"])


def test_a_long_text_is_counted_all_over(monkeypatch):
    """Not only at its start, whose tokens may be others."""
    monkeypatch.setattr(initial_weights, "COUNTED", 64 * 100)
    halves = tokens_of(10, 20_000), tokens_of(10, 20_000) + 10
    p = probabilities(untrained(20, 32, np.concatenate(halves).astype(np.uint16)))
    assert p[:10, :10].sum(axis=1).min() > 0.6 and p[10:, 10:].sum(axis=1).min() > 0.6


def test_tokens_that_never_occur_have_weights_too():
    model = untrained(40, 16, np.array([3, 4, 3, 4, 5], np.uint16))
    own = model.embedding.weight[:, 1:]  # channel 0 is the same for all
    rms = own.square().mean(1).sqrt()
    assert rms.min() > 0.3 and rms.max() < 1.1
    assert model.head.weight.isfinite().all()
    assert probabilities(model)[3].argmax() in (3, 4)


def settings_of(folder, **changes):
    changes = {"initial_weights": "bigram", "max_steps": 20} | changes
    return replace(make_pipeline(folder, CHAR, "char"), **changes)


def test_a_run_begins_at_the_bigram_and_goes_on_to_the_same_bits(tmp_path, capsys):
    settings = settings_of(tmp_path, eval_every=10, checkpoint_every=10)
    assert train.main(settings) == 0
    out = capsys.readouterr().out
    assert "come from counting which token follows which" in out and "Warning at step 0" not in out
    first = next(entry for entry in log_of(settings) if "val_loss" in entry)
    vocab_size = open_tokens(settings.train_file).facts["vocab_size"]
    assert first["step"] == 0 and first["val_loss"] < 0.8 * math.log(vocab_size)
    whole = newest_checkpoint(settings.checkpoint_dir)[1]

    interrupt_after(settings, 10)
    assert train.main(settings) == 0
    resumed = newest_checkpoint(settings.checkpoint_dir)[1]
    assert same(whole["model"], resumed["model"]) and same(whole["optimizer"], resumed["optimizer"])

    train.main(replace(settings, initial_weights="random", max_steps=21))  # it has begun, and nothing to ask for
    assert "The run began with --initial-weights bigram. Others need --fresh." in capsys.readouterr().out
    content = newest_checkpoint(settings.checkpoint_dir)[1]
    assert content["step"] == 21 and content["settings"]["initial_weights"] == "bigram"


def test_a_run_from_before_there_was_this_setting_goes_on(tmp_path, capsys):
    settings = settings_of(tmp_path, initial_weights="random")
    assert train.main(settings) == 0
    saved = newest_checkpoint(settings.checkpoint_dir)[1]
    del saved["settings"]["initial_weights"]
    checkpoint_path(settings.checkpoint_dir, 20).unlink()
    save_checkpoint(settings.checkpoint_dir, 20, {name: saved[name] for name in saved if name != "step"}, 3)
    model, tokenizer, training = load_model(settings.model_file)
    del training["settings"]["initial_weights"]
    save_model(settings.model_file, model, tokenizer, training)
    capsys.readouterr()
    assert train.main(replace(settings, initial_weights="bigram", max_steps=25)) == 0
    out = capsys.readouterr().out
    assert "come from counting" not in out and "of another run" not in out
    assert newest_checkpoint(settings.checkpoint_dir)[1]["settings"]["initial_weights"] == "random"
