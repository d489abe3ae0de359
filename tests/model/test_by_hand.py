"""The backward passes written by hand against autograd's, part by part and through a whole model."""

import pytest
import torch
import torch.nn.functional as F

from model import gpt, layers
from model.by_hand import HeadLossByHand
from model.gpt import GPT
from model.layers import Attention, RMSNorm, SwiGLU, rotary_table

SHAPES = [
    {"vocab_size": 31, "block_size": 24, "n_layer": 2, "n_head": 4, "n_embd": 32},
    {"vocab_size": 31, "block_size": 7, "n_layer": 1, "n_head": 16, "n_embd": 32},  # a head size of 2
    {"vocab_size": 5, "block_size": 130, "n_layer": 1, "n_head": 1, "n_embd": 6, "tie_embeddings": True},
]


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    """No weight at zero or one, where wrong gradients could hide."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3 + (weight.dim() == 1))
    return module


def results(module: torch.nn.Module, x: torch.Tensor, *args) -> list[torch.Tensor]:
    """Output, gradient of the input and of every weight, for some loss that is different for every output."""
    module.zero_grad()
    x = x.clone().requires_grad_() if x.is_floating_point() else x
    y = module(x, *args)
    (y * torch.linspace(-1, 2, y.numel(), device=y.device).view(y.shape)).sum().backward()
    return [y.detach(), *([x.grad] if x.is_floating_point() else []), *(p.grad.clone() for p in module.parameters())]


def compare(monkeypatch, module, x, *args) -> None:
    hand = results(module, x, *args)
    with monkeypatch.context() as patch:
        patch.setattr(layers, "by_hand", lambda x: False)
        plain = results(module, x, *args)
    assert len(hand) == len(plain)
    for ours, autograds in zip(hand, plain, strict=True):
        assert autograds.abs().max() > 0
        torch.testing.assert_close(ours, autograds, rtol=1e-4, atol=1e-5 * autograds.abs().max().item())


def test_rms_norm(monkeypatch):
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
    x[0, 0] *= 1e-3  # where eps counts
    compare(monkeypatch, randomise(RMSNorm(12)), x)


@pytest.mark.parametrize(("n_embd", "n_head", "T"), [(24, 3, 9), (8, 4, 6), (16, 1, 1)])
def test_attention(monkeypatch, n_embd, n_head, T):
    x = torch.randn(2, T, n_embd, generator=torch.Generator().manual_seed(2))
    module = randomise(Attention(n_embd, n_head, dropout=0.0))
    if T == 1:  # one token looks at itself alone: queries and keys have no say and no gradient
        hand = results(module, x, *rotary_table(T, n_embd // n_head, 100.0))
        assert hand[0].abs().max() > 0
        assert all(g.abs().max() < 1e-5 for g in (module.query_norm.weight.grad, module.key_norm.weight.grad))
    else:
        compare(monkeypatch, module, x, *rotary_table(T, n_embd // n_head, 100.0))


def test_swiglu(monkeypatch):
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(3)) * 3
    compare(monkeypatch, randomise(SwiGLU(12)), x)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "-".join(map(str, s.values())))
def test_a_whole_model(monkeypatch, shape):
    model = randomise(GPT(**shape))
    idx = torch.randint(shape["vocab_size"], (2, shape["block_size"]), generator=torch.Generator().manual_seed(4))
    compare(monkeypatch, model, idx)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_the_loss(monkeypatch, dtype, tied):
    """Loss and gradients against autograd's; in chunks of 32 tokens, the last one shorter."""
    monkeypatch.setattr(HeadLossByHand, "CHUNK_LOGITS", 31 * 32)
    monkeypatch.setattr(HeadLossByHand, "MIN_TOKENS", 1)
    model = randomise(GPT(31, block_size=50, n_layer=1, n_head=2, n_embd=16, tie_embeddings=tied)).compute_in(dtype)
    idx, targets = torch.randint(31, (2, 3, 50), generator=torch.Generator().manual_seed(5))
    results = []
    for hand in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(gpt, "by_hand", lambda x, hand=hand: hand)
            model.zero_grad()
            loss = model.loss(idx, targets) * 3
            loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for ours, autograds in zip(*results, strict=True):
        assert autograds.abs().max() > 0
        assert (ours - autograds).norm() < (1e-5 if dtype == torch.float32 else 0.02) * autograds.norm()
    with torch.no_grad():
        assert model.loss(idx, targets) == pytest.approx(results[0][0].item() / 3, rel=1e-5)


def test_a_whole_model_in_bfloat16(monkeypatch):
    """Both ways round differently, so each is as far from the gradient in fp32 as the other."""
    shape = SHAPES[0]
    model = randomise(GPT(**shape))
    idx = torch.randint(shape["vocab_size"], (2, shape["block_size"]), generator=torch.Generator().manual_seed(4))
    exact = results(model, idx)
    model.compute_in(torch.bfloat16)
    hand = results(model, idx)
    monkeypatch.setattr(layers, "by_hand", lambda x: False)
    plain = results(model, idx)
    for ours, autograds, reference in zip(hand, plain, exact, strict=True):
        error, usual = ((x.float() - reference).norm() / reference.norm() for x in (ours, autograds))
        assert 0 < error < 1.5 * usual + 0.01


def test_which_path_is_taken(monkeypatch):
    """By hand on a CPU; plain for the compiler, with dropout, with a cache, to look inside and in long blocks."""
    calls = []
    for name in ("RMSNormByHand", "AttentionByHand", "SwiGLUByHand"):
        apply = getattr(layers, name).apply
        stand_in = type(name, (), {"apply": staticmethod(lambda *a, n=name, f=apply: calls.append(n) or f(*a))})
        monkeypatch.setattr(layers, name, stand_in)

    def taken(model, idx, **kwargs):
        calls.clear()
        model(idx, **kwargs)
        return set(calls)

    shape, idx = {**SHAPES[0], "n_layer": 1}, torch.zeros(1, 24, dtype=torch.long)
    assert taken(GPT(**shape), idx) == {"RMSNormByHand", "AttentionByHand", "SwiGLUByHand"}
    assert taken(GPT(**shape, dropout=0.1), idx) == {"RMSNormByHand", "SwiGLUByHand"}
    assert taken(GPT(**shape).compute_in(torch.bfloat16), idx) == {"RMSNormByHand", "AttentionByHand", "SwiGLUByHand"}
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert taken(GPT(**shape), idx) == set()
    with torch.no_grad():
        model = GPT(**shape)
        assert taken(model, idx) == {"RMSNormByHand", "AttentionByHand", "SwiGLUByHand"}
        assert taken(model, idx, cache=model.new_cache()) == {"RMSNormByHand", "SwiGLUByHand"}
        assert taken(model, idx, weights=[]) == {"RMSNormByHand", "SwiGLUByHand"}
    monkeypatch.setattr(layers, "EXPLICIT_UP_TO", 23)
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append("fused") or fused(*a, **k))
    assert taken(GPT(**shape), idx) == {"RMSNormByHand", "SwiGLUByHand", "fused"}
