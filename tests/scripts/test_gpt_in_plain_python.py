"""The model in plain Python: its probabilities against the model's, its gradients against PyTorch's, all of them."""

import math
import re

import pytest
import torch
from models import random_model

from model.gpt import GPT
from model.storage.model_file import save_model
from model.tokenization.bpe_trainer import train_bpe_tokenizer
from model.tokenization.tokenizer import Tokenizer, make_character_tokenizer
from plumbing.errors import UserError
from scripts import gpt_in_plain_python as plain

SHAPE = {"vocab_size": 13, "block_size": 7, "n_layer": 2, "n_head": 2, "n_embd": 8, "rotary_base": 20.0}
IDS = [3, 1, 12, 0, 3, 3, 7]


@pytest.mark.parametrize("tied", [False, True])
def test_probabilities_are_the_models(tied):
    """After every token of a text, to 1e-5."""
    model = random_model(SHAPE | {"tie_embeddings": tied})
    weights, past = {name: weight.tolist() for name, weight in model.state_dict().items()}, {}
    with torch.inference_mode():
        expected = model(torch.tensor([IDS]))[0].softmax(-1)
    for token, p in zip(IDS, expected.tolist(), strict=True):
        logits = plain.logits_after(token, weights, past, model.architecture)
        assert plain.softmax(logits) == pytest.approx(p, abs=1e-5)


def test_every_gradient_is_pytorchs():
    """Of all weights, none of which has its initial value, to 1e-6."""
    model = random_model(SHAPE).train()
    weights = {name: plain.numbers_of(weight.tolist()) for name, weight in model.state_dict().items()}
    loss = plain.loss_of([*IDS, 5], weights, model.architecture)
    loss.backward()
    fast = model.loss(torch.tensor([IDS]), torch.tensor([[*IDS[1:], 5]]))
    fast.backward()
    assert loss.value == pytest.approx(fast.item(), abs=1e-6)
    for name, weight in model.named_parameters():
        ours = torch.tensor([number.gradient for number in plain.all_numbers({name: weights[name]})])
        assert weight.grad.abs().max() > 1e-3, name
        torch.testing.assert_close(ours, weight.grad.flatten(), rtol=1e-5, atol=1e-6, msg=name)


def test_a_number_used_twice_gets_both_gradients():
    x, y = plain.Number(3.0), plain.Number(2.0)
    z = x * x / y - (x + y * -1.0).log() * 2.0 + y.exp() + 1.0
    z.backward()
    assert z.value == pytest.approx(4.5 + math.exp(2) + 1)
    assert x.gradient == pytest.approx(2 * 3 / 2 - 2 / 1)
    assert y.gradient == pytest.approx(-9 / 4 + 2 / 1 + math.exp(2))


def test_it_learns_by_adam_as_torchs_adam_does():
    shape = SHAPE | {"n_layer": 1, "n_embd": 4}
    torch.manual_seed(3)
    model, tokens = GPT(**shape), [i * i % 13 for i in range(30)]
    weights = {name: plain.numbers_of(weight.tolist()) for name, weight in model.state_dict().items()}
    losses = plain.learn(tokens, weights, shape, steps=3, rate=0.05)
    adam = torch.optim.Adam(model.parameters(), lr=0.05, betas=plain.BETAS, eps=plain.EPS)
    for step, loss in enumerate(losses, 1):
        start = step * 61 % (len(tokens) - 7)
        piece = torch.tensor([tokens[start : start + 8]])
        adam.param_groups[0]["lr"] = 0.05 * (1 - (step - 1) / 3)
        adam.zero_grad()
        theirs = model.loss(piece[:, :-1], piece[:, 1:])
        theirs.backward()
        adam.step()
        assert loss == pytest.approx(theirs.item(), abs=1e-4)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_the_script_says_how_far_it_is_from_the_model(kind, tmp_path, capsys, monkeypatch):
    text = "def add(a, b):\n    return a + b\n"
    library = make_character_tokenizer(text) if kind == "char" else train_bpe_tokenizer([text] * 3, vocab_size=270)
    tokenizer = Tokenizer(library.to_str())
    model = random_model(SHAPE | {"vocab_size": tokenizer.vocab_size})
    save_model(tmp_path / "m.pt", model, tokenizer, {"steps": 1, "val_bits_per_byte": 2.0})
    plain.main(["--model", str(tmp_path / "m.pt"), "--prompt", "def add", "--show", "3"])
    out = capsys.readouterr().out
    assert out.count("fast:") == 3
    assert float(re.search(r"The largest difference among .* tokens is (.*)\.$", out, re.MULTILINE)[1]) < 1e-5
    monkeypatch.setattr(plain, "MOST_WEIGHTS", 100)
    with pytest.raises(UserError, match="weights are too many for lists"):
        plain.main(["--model", str(tmp_path / "m.pt")])


def test_the_script_trains_and_compares(capsys):
    plain.main(["--train", "--steps", "2"])
    out = capsys.readouterr().out
    assert "238 characters of 30 kinds, 1,536 weights" in out
    apart = re.findall(r"(\S+) apart$", out, re.MULTILINE)
    assert len(apart) == 2 and all(float(difference) <= 1e-6 for difference in apart)
