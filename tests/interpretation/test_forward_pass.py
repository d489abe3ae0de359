"""A forward pass taken apart, against plain PyTorch one head at a time, and components ablated."""

import math

import pytest
import torch
import torch.nn.functional as F

from model import device
from model.generation.one_token import OneToken
from model.generation.sampling import read
from model.gpt import GPT
from model.interpretation.ablation import ablated, switch_off
from model.interpretation.forward_pass import attribution, logit_lens, trace_forward
from model.interpretation.heads import attention_pattern, entropy
from model.layers import rotate
from plumbing.errors import UserError

V, BLOCK, LAYERS, HEADS, C = 31, 20, 3, 4, 24
D = C // HEADS


def random_model(**more) -> GPT:
    """A model in which every weight says something."""
    torch.manual_seed(5)
    model = GPT(V, block_size=BLOCK, n_layer=LAYERS, n_head=HEADS, n_embd=C, rotary_base=30.0, **more)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(mean=1.0 if weight.dim() == 1 else 0.0, std=0.3)
    return model.eval()


IDS = torch.randint(V, (15,), generator=torch.Generator().manual_seed(2)).tolist()


@torch.no_grad()
def plain(model: GPT, off: tuple = ()):
    """The same pass in plain PyTorch, head by head; `off` names components that add nothing. Returns (what each
    component adds, the attention of each head, the residual streams, the logits)."""

    def norm(x, module):
        return F.rms_norm(x, (x.size(-1),), module.weight, module.eps)

    x = F.embedding(torch.tensor(IDS), model.embedding.weight)
    added, shares, streams = {"embedding": x}, [], [x]
    for layer, block in enumerate(model.blocks):
        normed = norm(x, block.attention_norm)
        for head in range(HEADS):
            q, k, v = (
                F.linear(normed, block.attention.qkv.weight[part * C + head * D : part * C + (head + 1) * D])
                for part in range(3)
            )
            q = rotate(norm(q, block.attention.query_norm), model.cos[: len(IDS)], model.sin[: len(IDS)])
            k = rotate(norm(k, block.attention.key_norm), model.cos[: len(IDS)], model.sin[: len(IDS)])
            scores = (q @ k.T / math.sqrt(D)).masked_fill(torch.ones(len(IDS), len(IDS)).triu(1).bool(), -math.inf)
            share = scores.softmax(-1)
            name = f"L{layer}H{head}"
            added[name] = F.linear(share @ v, block.attention.output.weight[:, head * D : (head + 1) * D])
            shares.append(share)
            if name in off:
                added[name] = torch.zeros_like(x)
        x = x + sum(added[f"L{layer}H{head}"] for head in range(HEADS))
        gate, up = F.linear(norm(x, block.mlp_norm), block.mlp.gate_up.weight).chunk(2, dim=-1)
        added[f"L{layer}MLP"] = F.linear(F.silu(gate) * up, block.mlp.down.weight) * (f"L{layer}MLP" not in off)
        x = x + added[f"L{layer}MLP"]
        streams.append(x)
    return added, torch.stack(shares), torch.stack(streams), F.linear(norm(x, model.norm), model.head.weight)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_every_number_is_that_of_plain_pytorch(tied):
    model = random_model(tie_embeddings=tied)
    forward = trace_forward(model, IDS)
    added, shares, streams, logits = plain(model)
    assert forward.components == list(added)
    for i, name in enumerate(forward.components):
        close(forward.outputs[i], added[name])
    close(forward.attention.flatten(0, 1), shares)
    close(forward.residual, streams)
    close(forward.logits, logits)
    close(forward.logits, model(torch.tensor([IDS]))[0].detach())  # and by the path that training takes
    close(forward.outputs.sum(0), streams[-1])
    for layer in range(LAYERS + 1):
        close(logit_lens(model, forward.residual[layer]), F.linear(
            F.rms_norm(streams[layer], (C,), model.norm.weight, model.norm.eps), model.head.weight
        ).detach())  # fmt: skip
    close(logit_lens(model, forward.residual[-1]), logits)


def test_what_does_not_fit_into_memory_is_refused_before_it_is_computed(monkeypatch):
    """A model file of 400 KB can ask for 1,000 layers."""
    model = GPT(5, block_size=64, n_layer=3, n_head=2, n_embd=4).eval()
    numbers = (3 * 4 + 2) * 10 * 4 + 3 * 2 * 10 * 10 + 10 * 5  # of 10 tokens; each has 4 bytes, and a copy
    monkeypatch.setattr(device, "free_memory", lambda: 8 * numbers)
    assert len(trace_forward(model, [1] * 10).residual) == 4
    with pytest.raises(UserError, match="To follow 11 tokens through 3 layers with 2 heads needs about"):
        trace_forward(model, [1] * 11)


@torch.no_grad()
def test_attributions_add_up_to_the_logits():
    model = random_model()
    forward = trace_forward(model, IDS)
    added = torch.stack([attribution(model, forward, i) for i in range(len(forward.components))])
    close(added.sum(0), forward.logits)
    scale = forward.residual[-1].square().mean(-1).add(model.norm.eps).rsqrt()
    by_hand = (forward.outputs[3, 7] * model.norm.weight * scale[7]) @ model.head.weight[11]
    assert added[3, 7, 11].item() == pytest.approx(by_hand.item(), abs=1e-5)


def test_patterns_and_entropy_by_hand():
    shares = torch.tensor([[1.0, 0, 0], [0.25, 0.75, 0], [0.5, 0.25, 0.25]])
    close(attention_pattern(shares), torch.tensor([(0.25 + 0.25) / 2, (0.75 + 0.25) / 2, (0.25 + 0.5) / 2]))
    assert attention_pattern(torch.ones(2, 4, 1, 1)).tolist() == [[[0.0] * 3] * 4] * 2
    bits = [0.0, -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75)), 1.5]
    assert entropy(shares).item() == pytest.approx(sum(bits) / 3, abs=1e-6)


# --- ablated -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", ["L0H0", "L2H3", "L1MLP", "l1h2"])
def test_an_ablated_component_adds_nothing(off):
    model = random_model()
    *_, expected = plain(model, (off.upper(),))
    before = model(torch.tensor([IDS])).detach()
    with ablated(model, off):
        close(model(torch.tensor([IDS]))[0].detach(), expected)
        cache = model.new_cache()
        one_token = OneToken(model, cache)  # and so by the way that generating takes
        close(torch.stack([torch.from_numpy(one_token(token).copy()) for token in IDS]), expected)
        assert not torch.allclose(before[0], expected, atol=1e-3)
    assert torch.equal(model(torch.tensor([IDS])).detach(), before)
    switch_off(model, off)
    close(read(model, IDS, model.new_cache()), expected)


def test_a_layer_is_all_its_components():
    model = random_model()
    *_, expected = plain(model, (*(f"L1H{head}" for head in range(HEADS)), "L1MLP"))
    with ablated(model, "L1"):
        close(model(torch.tensor([IDS]))[0].detach(), expected)


def test_components_come_back_after_an_error():
    model = random_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(RuntimeError), ablated(model, "L0"):
        raise RuntimeError
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("H2", "not a component"), ("L1X2", "not a component"), ("", "not a component"),
        ("L3", "layer 3"), ("L0H4", "head 4"), ("L9MLP", "layer 9"),
    ],
)  # fmt: skip
def test_components_that_do_not_exist(name, reason):
    with pytest.raises(ValueError, match=reason):
        switch_off(random_model(), name)
