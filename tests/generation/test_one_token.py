"""The one-token step in numpy and in C against the model in torch: the same logits, the same cache, for many shapes."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from config import CHAR
from model.compile_c import ONE_TOKEN, c_compiler, compiled_library
from model.generation import one_token as one_token_module
from model.generation.one_token import OneToken, fast_one_token
from model.generation.one_token_c import OneTokenInC
from model.generation.sampling import find_candidates, generate, read
from model.gpt import GPT

SHAPES = [
    {"n_layer": 1, "n_head": 1, "n_embd": 2},
    {"n_layer": 2, "n_head": 4, "n_embd": 24, "tie_embeddings": True},
    {"n_layer": 3, "n_head": 2, "n_embd": 64, "rotary_base": 30.0},
    {"n_layer": 2, "n_head": 2, "n_embd": 256},  # large enough for threads in numpy's products
]
IN_C = pytest.mark.skipif(c_compiler() is None, reason="needs a C compiler")


def in_c(threads: int):
    return lambda model, cache: OneTokenInC(model, cache, compiled_library(ONE_TOKEN), threads)


every_step = pytest.mark.parametrize(
    "step",
    [OneToken, pytest.param(in_c(1), marks=IN_C), pytest.param(in_c(3), marks=IN_C)],
    ids=["numpy", "C", "C, 3 threads"],
)


def random_model(block_size: int = 20, vocab_size: int = 31, norms: float = 1.0, **shape) -> GPT:
    """A model in which every weight says something: the norms' are spread about `norms` and negative at times."""
    torch.manual_seed(3)
    model = GPT(vocab_size, block_size=block_size, **shape)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(mean=norms if weight.dim() == 1 else 0.0, std=0.6 if weight.dim() == 1 else 0.1)
    return model.eval()


def compare(step, model: GPT, prompt: list[int], tokens: list[int]) -> None:
    """Feed the prompt to the model and the tokens to both; compare the logits at each one, the caches at the end."""
    cache, reference = model.new_cache(), model.new_cache()
    one_token = step(model, cache)
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


@every_step
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("read_before", [0, 1, 7])
def test_logits_and_cache_are_the_models(step, shape, read_before):
    ids = torch.randint(31, (20,), generator=torch.Generator().manual_seed(1)).tolist()
    compare(step, random_model(**shape), ids[:read_before], ids[read_before:])  # until the block is full


@every_step
def test_scores_that_would_overflow(step):
    """With large weights in QK-norm, exp of a score is more than fp32 holds: the largest is subtracted first."""
    model = random_model(n_layer=2, n_head=2, n_embd=64, rotary_base=10_000.0, norms=8.0)
    for attention in (block.attention for block in model.blocks):
        norms = attention.query_norm.weight.abs().max() * attention.key_norm.weight.abs().max()
        assert norms * 32**0.5 > 88  # of the largest score; e^89 is more than fp32 holds
    compare(step, model, [1, 2], [3, 4, 5, 6])


@every_step
def test_gates_that_would_overflow(step):
    model = random_model(n_layer=1, n_head=1, n_embd=16)
    with torch.no_grad():
        model.blocks[0].mlp.gate_up.weight.mul_(1000)
    compare(step, model, [], [3, 4, 5, 6])


@every_step
@pytest.mark.parametrize(
    "name", ["embedding", "blocks.0.attention.qkv", "blocks.1.mlp.gate_up", "blocks.2.mlp.down", "head"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_seen(step, name, value):
    """Wherever NaN comes from, or an infinity that becomes NaN, the logits say so."""
    model = random_model(**SHAPES[2])
    with torch.no_grad():
        model.get_parameter(f"{name}.weight")[::2] = value
    one_token = step(model, model.new_cache())
    with np.errstate(invalid="ignore"):
        for token in (2, 4):
            logits = one_token(token)
    assert not np.isfinite(logits).all()


@every_step
def test_a_full_block_is_refused(step):
    model = random_model(block_size=3, **SHAPES[0])
    one_token = step(model, model.new_cache())
    for token in (1, 2, 3):
        one_token(token)
    with pytest.raises(ValueError, match="4 tokens do not fit a block of 3"):
        one_token(4)


@every_step
def test_a_token_that_is_not_in_the_vocabulary_is_refused(step):
    model = random_model(**SHAPES[0])
    with pytest.raises(IndexError):
        step(model, model.new_cache())(31)


@every_step
def test_the_model_goes_on_from_what_the_step_has_written(step):
    model = random_model(**SHAPES[1])
    cache, reference = model.new_cache(), model.new_cache()
    one_token = step(model, cache)
    read(model, [1, 2], cache)
    one_token(3)
    torch.testing.assert_close(
        read(model, [4, 5], cache), read(model, [1, 2, 3, 4, 5], reference)[3:], rtol=1e-4, atol=1e-5
    )


@every_step
def test_the_models_weights_are_left_alone(step):
    model = random_model(**SHAPES[2])
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    cache = model.new_cache()
    step(model, cache)(1)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


@IN_C
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_seed_is_one_text(shape):
    """In numpy and in C, also after the block was full; and in C the very same numbers with any number of threads."""
    model, settings = random_model(**shape), replace(CHAR, tokens=50, temperature=0.8, top_k=20)
    texts, logits = [], []
    for step in (OneToken, in_c(1), in_c(2), in_c(5)):
        cache = model.new_cache()
        one_token = step(model, cache)
        steps = generate(model, [1, 2], read(model, [1, 2], cache)[-1], cache, settings, one_token)
        texts.append([each.token for (each,) in steps])
        logits.append(one_token(3).tobytes())
    assert texts[0] == texts[1] == texts[2] == texts[3]
    assert logits[1] == logits[2] == logits[3]


@IN_C
@pytest.mark.parametrize("n", [1, 5, 31])
def test_candidates_in_c_are_those_of_the_logits(n):
    """Those that numpy finds, equal logits in the order of their ids, very unlikely tokens included."""
    model = random_model(**SHAPES[2])
    with torch.no_grad():
        model.head.weight[7::4] = model.head.weight[7]
        model.head.weight[12] *= 1000
    one_token = in_c(1)(model, model.new_cache())
    for token in (3, 4, 5):
        ids, logits, log_sum, mean = one_token.candidates(n, token)
        all_logits = one_token.logits.copy()
        assert np.ptp(all_logits) > 100 and len(set(all_logits.tolist())) < 31
        expected = find_candidates(all_logits, replace(CHAR, top_k=n))
        assert ids[0].tolist() == expected.ids.tolist() and logits[0].tolist() == expected.logits.tolist()
        np.testing.assert_allclose([log_sum[0], mean[0]], expected[3:5], rtol=1e-5, atol=1e-6)


@IN_C
@pytest.mark.parametrize("place", [0, 2, 20])
def test_candidates_in_c_of_logits_that_are_not_finite(place):
    """NaN and infinity make the sums NaN, so the chosen token's p is no number either; minus infinity is p = 0."""
    model = random_model(**SHAPES[2])
    one_token = in_c(1)(model, model.new_cache())
    for value in (np.nan, np.inf, -np.inf):
        one_token(3)
        one_token.cache.length, one_token.logits[place] = 0, value
        one_token.select(one_token.address, 4, *one_token.selected)
        if value == -np.inf:
            expected = find_candidates(one_token.logits, replace(CHAR, top_k=4, show=4))
            assert one_token.ids[:4].tolist() == expected.ids.tolist()
            np.testing.assert_allclose(one_token.sums, expected[3:5], rtol=1e-5)
        else:
            assert np.isnan(one_token.sums).all()


@IN_C
@pytest.mark.parametrize(
    ("settings", "selected"),
    [
        ({"top_k": 20}, True),
        ({"top_k": 0}, False),
        ({"top_k": 101}, False),
        ({"top_k": 20, "repetition_penalty": 1.2}, False),
    ],
)
def test_who_selects_the_candidates(monkeypatch, settings, selected):
    asked = []
    select = OneTokenInC.candidates
    monkeypatch.setattr(OneTokenInC, "candidates", lambda *args: asked.append(1) or select(*args))
    model = random_model(vocab_size=150, **SHAPES[0])
    cache = model.new_cache()
    settings = replace(CHAR, tokens=3, **settings)
    list(generate(model, [1], read(model, [1], cache)[-1], cache, settings, in_c(1)(model, cache)))
    assert len(asked) == (2 if selected else 0)


@IN_C
def test_numbers_near_zero_stay_what_they_are():
    """Some compilers make a library round denormal numbers to 0 in whatever process loads it."""
    model = random_model(**SHAPES[0])
    in_c(2)(model, model.new_cache())(1)
    assert np.float32(1e-40) * np.float32(1) != 0
    assert torch.tensor([1e-40]) * 1 != 0


def test_numpy_where_there_is_no_compiler(monkeypatch):
    model = random_model(**SHAPES[0])
    monkeypatch.setattr(one_token_module, "compiled_library", lambda source: None)
    assert type(fast_one_token(model, model.new_cache())) is OneToken


@IN_C
def test_c_where_there_is_a_compiler_with_more_threads_for_more_weights(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for shape, threads in ((SHAPES[0], 1), (SHAPES[3], 1), ({"n_layer": 3, "n_head": 4, "n_embd": 256}, 2)):
        model = random_model(**shape)
        step = fast_one_token(model, model.new_cache())
        assert type(step) is OneTokenInC
        assert step.model.threads == threads


def test_the_step_that_fits_the_device(monkeypatch, capsys):
    """On a GPU Triton's where it works, with a word where it does not; on Apple's none."""

    class Elsewhere:
        device, is_sharded = torch.device("mps"), False

    assert fast_one_token(Elsewhere, None) is None
    Elsewhere.device = torch.device("cuda")

    def broken(model, cache):
        raise RuntimeError("no C compiler\nand more")

    monkeypatch.setitem(sys.modules, "model.generation.one_token_gpu", type("Module", (), {"OneTokenOnGPU": broken}))
    assert fast_one_token(Elsewhere, None) is None
    assert capsys.readouterr().err == (
        "The fast step for a GPU does not work here, so generating is slower: no C compiler\n"
    )
