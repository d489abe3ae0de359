"""The one-token step on a GPU against the model in torch: the same logits, the same cache.

Run by test_one_token_gpu.py. Where there is no GPU, Triton's interpreter runs the kernels in numpy: slowly, so the
shapes are small.
"""

import numpy as np
import pytest
import torch
from test_one_token import random_model

from model.generation import one_token_gpu
from model.generation.sampling import read

# What lies outside of a tensor is computed and masked.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [
    {"n_layer": 1, "n_head": 1, "n_embd": 2},
    {"n_layer": 2, "n_head": 4, "n_embd": 24, "tie_embeddings": True},
    {"n_layer": 1, "n_head": 3, "n_embd": 66, "rotary_base": 30.0},
]


@pytest.fixture
def gpu_step(monkeypatch):
    """The module, its kernels cut so small that a text of 20 tokens needs several of everything."""
    for name, value in {"CHUNK": 4, "CHUNKS": 2, "PROGRAMS": 2}.items():
        monkeypatch.setattr(one_token_gpu, name, value)
    return one_token_gpu


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=str)
def test_logits_and_cache_are_the_models(gpu_step, shape, dtype, allowed):
    """In bfloat16 the model rounds after every product, and the step only what it reads: both differ from fp32."""
    ids = torch.randint(31, (20,), generator=torch.Generator().manual_seed(1)).tolist()
    exact = random_model(**shape).to(DEVICE)
    model = random_model(**shape).to(DEVICE).compute_in(dtype)
    cache, reference = model.new_cache(), exact.new_cache()
    one_token = gpu_step.OneTokenOnGPU(model, cache)
    read(exact, ids[:15], reference)
    cache.store[:, :, :, :, :15] = reference.store[:, :, :, :, :15]
    cache.length = 15
    for token in ids[15:]:  # position 15 ends a chunk, 16 begins one
        expected = read(exact, [token], reference)[-1].cpu().numpy()
        assert np.abs(one_token(token) - expected).max() < allowed * np.abs(expected).max()
    assert cache.length == 20
    torch.testing.assert_close(
        cache.store.float(), reference.store, rtol=0, atol=allowed * reference.store.max().item()
    )
    with pytest.raises(ValueError, match="21 tokens do not fit a block of 20"):
        one_token(0)


def test_the_first_token_needs_no_prompt(gpu_step):
    model = random_model(**SHAPES[1]).to(DEVICE)
    one_token = gpu_step.OneTokenOnGPU(model, model.new_cache())
    expected = read(model, [3], model.new_cache())[-1].cpu().numpy()
    np.testing.assert_allclose(one_token(3), expected, rtol=1e-4, atol=1e-5)


def test_a_product_is_cut_into_enough_programs(gpu_step, monkeypatch):
    monkeypatch.setattr(gpu_step, "PROGRAMS", 256)
    for outputs, inputs in [(2304, 768), (768, 768), (768, 2048), (50257, 768), (5, 2)]:
        (programs,), sizes = gpu_step.cut(outputs, inputs)
        assert programs * sizes["ROWS"] >= outputs > (programs - 1) * sizes["ROWS"]
        assert sizes["COLUMNS"] >= inputs
        assert programs >= min(256, outputs)
