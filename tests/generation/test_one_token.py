"""The one-token step in numpy against the model in torch: the same logits, the same cache, for many shapes."""

import numpy as np
import pytest
import torch

from model.generation.one_token import OneToken
from model.generation.sampling import read
from model.gpt import GPT

SHAPES = [
    {"n_layer": 1, "n_head": 1, "n_embd": 2},
    {"n_layer": 2, "n_head": 4, "n_embd": 24, "tie_embeddings": True},
    {"n_layer": 3, "n_head": 2, "n_embd": 64, "rotary_base": 30.0},
    {"n_layer": 2, "n_head": 2, "n_embd": 256},  # large enough for threads in its products
    {"n_layer": 1, "n_head": 3, "n_embd": 384},  # two of its products are made a little larger, for the same
]


def random_model(block_size: int = 20, vocab_size: int = 31, norms: float = 1.0, **shape) -> GPT:
    """A model in which every weight says something: the norms' are spread about `norms` and negative at times."""
    torch.manual_seed(3)
    model = GPT(vocab_size, block_size=block_size, **shape)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(mean=norms if weight.dim() == 1 else 0.0, std=0.6 if weight.dim() == 1 else 0.1)
    return model.eval()


def compare(model: GPT, prompt: list[int], tokens: list[int]) -> None:
    """Feed the prompt to the model and the tokens to both; compare the logits at each one, the caches at the end."""
    cache, reference = model.new_cache(), model.new_cache()
    one_token = OneToken(model, cache)
    for each in (cache, reference):
        if prompt:
            read(model, prompt, each)
    for token in tokens:
        expected = read(model, [token], reference)[-1].numpy()
        error = np.abs(one_token(token) - expected).max() / np.abs(expected).max()
        assert error < 1e-5
    assert cache.length == reference.length == len(prompt) + len(tokens)
    filled = (slice(None),) * 4 + (slice(cache.length),)
    torch.testing.assert_close(cache.store[filled], reference.store[filled], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("read_before", [0, 1, 7])
def test_logits_and_cache_are_the_models(shape, read_before):
    ids = torch.randint(31, (20,), generator=torch.Generator().manual_seed(1)).tolist()
    compare(random_model(**shape), ids[:read_before], ids[read_before:])  # until the block is full


def test_scores_that_would_overflow():
    """With large weights in QK-norm, exp of a score is more than fp32 holds: the largest is subtracted first."""
    model = random_model(n_layer=2, n_head=2, n_embd=64, rotary_base=10_000.0, norms=8.0)
    one_token = OneToken(model, model.new_cache())
    assert not any(bounded for _, (*_, bounded) in one_token.layers)
    compare(model, [1, 2], [3, 4, 5, 6])


def test_gates_that_would_overflow():
    model = random_model(n_layer=1, n_head=1, n_embd=16)
    with torch.no_grad():
        model.blocks[0].mlp.gate_up.weight.mul_(1000)
    compare(model, [], [3, 4, 5, 6])


def test_a_full_block_is_refused():
    model = random_model(block_size=3, **SHAPES[0])
    one_token = OneToken(model, model.new_cache())
    for token in (1, 2, 3):
        one_token(token)
    with pytest.raises(ValueError, match="4 tokens do not fit a block of 3"):
        one_token(4)


def test_the_model_goes_on_from_what_the_step_has_written():
    model = random_model(**SHAPES[1])
    cache, reference = model.new_cache(), model.new_cache()
    one_token = OneToken(model, cache)
    read(model, [1, 2], cache)
    one_token(3)
    torch.testing.assert_close(
        read(model, [4, 5], cache), read(model, [1, 2, 3, 4, 5], reference)[3:], rtol=1e-4, atol=1e-5
    )


def test_the_models_weights_are_left_alone():
    model = random_model(**SHAPES[2])
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    cache = model.new_cache()
    OneToken(model, cache)(1)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
