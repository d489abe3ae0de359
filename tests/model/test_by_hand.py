"""The backward passes by hand, in torch and in C, against autograd's: part by part and through a whole model."""

import itertools

import pytest
import torch

from model import by_hand, by_hand_c, gpt, layers
from model.by_hand import HeadLossByHand
from model.compile_c import c_compiler
from model.gpt import GPT
from model.layers import Attention, RMSNorm, SwiGLU, rotary_table

SHAPES = [
    {"vocab_size": 31, "block_size": 24, "n_layer": 2, "n_head": 4, "n_embd": 32},
    {"vocab_size": 31, "block_size": 7, "n_layer": 1, "n_head": 16, "n_embd": 32},  # a head size of 2
    {"vocab_size": 5, "block_size": 130, "n_layer": 1, "n_head": 1, "n_embd": 6, "tie_embeddings": True},
    {
        "vocab_size": 9,
        "block_size": 601,
        "n_layer": 1,
        "n_head": 2,
        "n_embd": 56,
    },  # panels, the last not whole
]


@pytest.fixture(autouse=True, params=["torch", "C"])
def hand(request):
    """The module under test."""
    if request.param == "C" and c_compiler() is None:
        pytest.skip("needs a C compiler")
    assert by_hand_c.use(request.param == "C") == (request.param == "C")
    return by_hand_c if request.param == "C" else by_hand


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


def test_which_path_is_taken(monkeypatch, hand):
    """By hand on a CPU; plain for the compiler, with dropout, with a cache and to look inside; in long blocks, in C."""
    calls = []
    for module, name in itertools.product((by_hand, by_hand_c), ("rms_norm", "attention", "swiglu")):
        key, function = (module, name), getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, k=key, f=function: calls.append(k) or f(*a))

    def taken(model, idx, **kwargs):
        calls.clear()
        model(idx, **kwargs)
        return set(calls)

    def of(module, *names):
        return {(module, name) for name in names}

    every = "rms_norm", "attention", "swiglu"
    shape, idx = {**SHAPES[0], "n_layer": 1}, torch.zeros(1, 24, dtype=torch.long)
    assert taken(GPT(**shape), idx) == of(hand, *every)
    assert taken(GPT(**shape, dropout=0.1), idx) == of(hand, "rms_norm", "swiglu")
    in_bfloat16 = taken(GPT(**shape).compute_in(torch.bfloat16), idx)
    assert in_bfloat16 == of(hand, "rms_norm") | of(by_hand, "attention", "swiglu")
    long = GPT(**{**shape, "block_size": 513}), torch.zeros(1, 513, dtype=torch.long)
    assert taken(*long) == of(hand, *(every if hand is by_hand_c else ("rms_norm", "swiglu")))
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert taken(GPT(**shape), idx) == set()
    with torch.no_grad():
        model = GPT(**shape)
        assert taken(model, idx) == of(hand, *every)
        assert taken(model, idx, cache=model.new_cache()) == of(hand, "rms_norm", "swiglu")
        assert taken(model, idx, weights=[]) == of(hand, "rms_norm", "swiglu")


def gradients(model: GPT) -> torch.Tensor:
    idx = torch.randint(model.vocab_size, (3, model.block_size), generator=torch.Generator().manual_seed(6))
    model.zero_grad()
    model.loss(idx, idx.flip(1)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_c_gives_the_same_bits_with_any_number_of_threads(hand):
    """The layers alone: how torch shares out its own products is its affair."""
    if hand is by_hand:
        pytest.skip("is about C")
    qkv = torch.randn(3, 40, 96, generator=torch.Generator().manual_seed(7), requires_grad=True)
    norms = torch.ones(2, 1, 16, requires_grad=True)
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            qkv.grad = norms.grad = None
            y = by_hand_c.attention(qkv, norms, *rotary_table(40, 16, 30.0), 2, 1e-6)
            y.square().sum().backward()
            found.append(torch.cat([y.flatten(), qkv.grad.flatten(), norms.grad.flatten()]))
    finally:
        torch.set_num_threads(threads)
    assert found[0].equal(found[1]) and found[0].equal(found[2])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(value):
    """A run stops at a loss that is no number, so the layers must hand one on."""
    model = randomise(GPT(**SHAPES[0]))
    with torch.no_grad():
        model.blocks[0].attention.qkv.weight[40, 3] = value  # of a key
    idx = torch.zeros(1, 24, dtype=torch.long)
    assert not model.loss(idx, idx).isfinite()
    with torch.no_grad():
        model.blocks[0].attention.qkv.weight[40, 3] = 1.0
        model.head.weight[7, 0] = value
    assert not model.loss(idx, idx).isfinite()
    assert not gradients(model).isfinite().all()
