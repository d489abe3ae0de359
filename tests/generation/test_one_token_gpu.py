"""The one-token step on a GPU against the model in torch: the same logits, the same cache.

Where there is no GPU, Triton's interpreter runs the kernels in numpy: slowly, so the shapes are small.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_one_token import random_model

from config import CHAR

pytest.importorskip("triton", reason="Triton comes with torch on Linux only")

from model.generation import one_token_gpu, sampling
from model.generation.sampling import generate, read

# Numbers outside of a tensor are computed, then masked.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# One channel per half head; then sizes that are no powers of two, so that every kernel masks, two layers, tied weights.
CASES = [
    ({"n_layer": 1, "n_head": 1, "n_embd": 2}, torch.float32, 1e-5),
    ({"n_layer": 2, "n_head": 3, "n_embd": 30, "tie_embeddings": True}, torch.float32, 1e-5),
    ({"n_layer": 1, "n_head": 2, "n_embd": 12}, torch.bfloat16, 3e-2),
]
if DEVICE == "cuda":  # where larger ones take no longer
    LARGER = {"n_layer": 2, "n_head": 3, "n_embd": 66}
    CASES += [(LARGER, torch.float32, 1e-5), (LARGER, torch.bfloat16, 3e-2)]


@pytest.fixture
def gpu_step(monkeypatch):
    """The module, its kernels cut so small that a text of 5 tokens needs several programs and chunks of everything."""
    for name, value in {"CHUNK": 2, "CHUNKS": 2, "PROGRAMS": 2, "LOGITS": 4}.items():
        monkeypatch.setattr(one_token_gpu, name, value)
    return one_token_gpu


@pytest.mark.parametrize(("shape", "dtype", "allowed"), CASES, ids=str)
def test_logits_and_cache_are_the_models(gpu_step, shape, dtype, allowed):
    """In bfloat16 the model rounds after every product, and the step only what it reads: both differ from fp32."""
    ids = [3, 1, 4, 1, 5]
    exact = random_model(block_size=5, **shape).to(DEVICE)
    model = random_model(block_size=5, **shape).to(DEVICE).compute_in(dtype)
    cache, reference = model.new_cache(), exact.new_cache()
    one_token = gpu_step.OneTokenOnGPU(model, cache)
    read(exact, ids[:3], reference)
    cache.store[:, :, :, :, :3] = reference.store[:, :, :, :, :3]
    cache.length = 3
    for token in ids[3:]:  # position 3 ends a chunk; 4 begins one, and the second round of merging chunks
        expected = read(exact, [token], reference)[-1].cpu().numpy()
        assert np.abs(one_token(token) - expected).max() < allowed * np.abs(expected).max()
    assert cache.length == 5
    torch.testing.assert_close(
        cache.store.float(), reference.store, rtol=0, atol=allowed * reference.store.max().item()
    )
    with pytest.raises(ValueError, match="6 tokens do not fit a block of 5"):
        one_token(0)


def test_several_texts_at_once(gpu_step):
    """Each as the model continues it, over the border of a chunk."""
    texts = torch.tensor([[3, 1, 4], [9, 2, 6]], device=DEVICE)
    model = random_model(block_size=3, **CASES[1][0] | {"n_layer": 1}).to(DEVICE)
    cache = model.new_cache(2)
    one_token = gpu_step.OneTokenOnGPU(model, cache)
    with torch.inference_mode():
        for position in range(3):
            expected = model(texts[:, : position + 1])[:, -1].cpu().numpy()
            np.testing.assert_allclose(one_token(*texts[:, position].tolist()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("texts", [1, 2])
def test_candidates_are_those_of_the_logits(gpu_step, texts):
    """The text is the one that all logits lead to, token for token."""
    model = random_model(block_size=4, n_layer=1, n_head=2, n_embd=12).to(DEVICE)
    settings = replace(CHAR, tokens=5, samples=texts, top_k=4, temperature=2.0, show=6)
    written = []
    for step in (gpu_step.OneTokenOnGPU, lambda *_: None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sampling, "fast_one_token", step)
            cache = model.new_cache()
            logits = read(model, [3], cache)[-1]
            written.append(list(generate(model, [3], logits, cache, settings, step(model, cache))))
    for fast, plain in zip(*written, strict=True):
        for one, other in zip(fast, plain, strict=True):
            assert one.token == other.token and one.ids.tolist() == other.ids.tolist() and one.kept == other.kept
            for name in ("logits", "penalised", "tempered", "model_p", "sampled_p", "ends"):
                np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-5)


def test_the_first_token_needs_no_prompt(gpu_step):
    model = random_model(block_size=5, **CASES[2][0]).to(DEVICE)
    one_token = gpu_step.OneTokenOnGPU(model, model.new_cache())
    expected = read(model, [3], model.new_cache())[-1].cpu().numpy()
    np.testing.assert_allclose(one_token(3)[0], expected, rtol=1e-4, atol=1e-5)


def test_a_product_is_divided_into_enough_programs(gpu_step, monkeypatch):
    monkeypatch.setattr(gpu_step, "PROGRAMS", 256)
    for outputs, inputs in [(2304, 768), (768, 768), (768, 2048), (50257, 768), (5, 2)]:
        (programs, texts), sizes = gpu_step.tiling(3, outputs, inputs)
        assert texts == 3 and programs * sizes["ROWS"] >= outputs > (programs - 1) * sizes["ROWS"]
        assert sizes["COLUMNS"] >= inputs
        assert programs >= min(256, outputs)
