"""The model against transformers' Qwen3, number by number, and against what a language model must and must not do."""

import math
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from models import SMALL, random_model
from torch import nn

from config import Model, Training
from model.gpt import GPT
from model.layers import RMSNorm, causal_mask, mlp_size, rotary_table, rotate
from model.storage.huggingface import qwen3_config, to_qwen3
from model.training.optimizer import Optimizer

# Far positions. With a small base even slow channels have turned so far that the angle's rounding in fp32 would show.
FAR = {"rotary_base": 10_000.0}
SHAPES = [
    SMALL,
    {**SMALL, "tie_embeddings": True},
    {**SMALL, "n_head": 16},  # a head size of 2: one pair of channels to rotate
    {**SMALL, "n_head": 1, "n_embd": 6, "n_layer": 3},  # one head, and a width that is no power of two
    {**SMALL, "n_head": 3, "n_embd": 60, "n_layer": 1, "block_size": 130, "tie_embeddings": True, **FAR},
    {**SMALL, "rotary_base": 50.0},
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "-".join(map(str, s.values())))


def random_ids(model: GPT, batch: int, length: int, seed: int = 2) -> torch.Tensor:
    return torch.randint(model.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert a.isfinite().all()
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# --- parity with Qwen3 ------------------------------------------------------------------------------------------------


def as_qwen3(model: GPT):  # -> Qwen3ForCausalLM, which takes seconds to import
    """transformers' model with our weights, in its plain (eager) implementation of attention."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**qwen3_config(model.architecture, end_of_text_id=0), attn_implementation="eager")
    reference = Qwen3ForCausalLM(config).eval()
    tied = {"lm_head.weight": model.head.weight} if model.architecture["tie_embeddings"] else {}
    reference.load_state_dict({**to_qwen3(model), **tied})  # strict: every name on both sides
    return reference


@shapes
@torch.no_grad()
def test_logits_equal_qwen3(shape):
    model = random_model(shape)
    reference = as_qwen3(model)
    idx = random_ids(model, 3, model.block_size)
    logits = model(idx)
    assert logits.shape == (3, model.block_size, model.vocab_size)
    assert logits.std() > 0.5, "logits near zero would be close to anything"
    close(logits, reference(idx).logits)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in reference.parameters())


@shapes
@torch.no_grad()
def test_parts_equal_qwen3(shape):
    """Each part alone, so that a failure says where."""
    from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

    model = random_model(shape)
    ours, theirs = model.blocks[0], as_qwen3(model).model
    layer, T = theirs.layers[0], model.block_size
    x = torch.randn(2, T, shape["n_embd"], generator=torch.Generator().manual_seed(3))

    close(ours.attention_norm(x), layer.input_layernorm(x))
    close(ours.mlp(x), layer.mlp(x))

    cos, sin = theirs.rotary_emb(x, torch.arange(T)[None])  # (1, T, D)
    close(model.cos, cos[0])
    close(model.sin, sin[0])
    q, k = torch.randn(2, 2, shape["n_head"], T, model.cos.size(1), generator=torch.Generator().manual_seed(4))
    rotated_q, rotated_k = apply_rotary_pos_emb(q, k, cos, sin)
    close(rotate(q, model.cos, model.sin), rotated_q)
    close(rotate(k, model.cos, model.sin), rotated_k)

    look_ahead = torch.full((T, T), float("-inf")).triu(1)[None, None]
    expected, expected_weights = layer.self_attn(x, (cos, sin), look_ahead)
    close(ours.attention(x, model.cos, model.sin), expected)
    weights = []
    close(ours.attention(x, model.cos, model.sin, weights=weights), expected)
    close(weights[0], expected_weights)

    close(ours(x, model.cos, model.sin), layer(x, attention_mask=look_ahead, position_embeddings=(cos, sin)))


# --- known answers ----------------------------------------------------------------------------------------------------


def test_rms_norm_by_hand():
    norm = RMSNorm(2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 10.0]))
    # mean(3^2, 4^2) = 12.5: 3 / sqrt(12.5) = 0.848528 and 4 / sqrt(12.5) = 1.131371
    close(norm(torch.tensor([3.0, 4.0])), torch.tensor([0.848528, 11.31371]))
    assert norm(torch.zeros(2)).tolist() == [0.0, 0.0]  # eps keeps the division finite


def test_rms_norm_computes_in_fp32():
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(5)).bfloat16()
    y = RMSNorm(64)(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, RMSNorm(64)(x.float()).bfloat16())


def test_rotary_positions_by_hand():
    cos, sin = rotary_table(5, 4, 10_000.0)
    # Channels 0 and 2 are the first pair and turn by 1 radian a position; 1 and 3 by 10000^(-2/4) = 0.01.
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(1, 1, 5, 4)
    expected = [[math.cos(p), -math.sin(p / 100), math.sin(p), math.cos(p / 100)] for p in range(5)]
    close(rotate(x, cos, sin)[0, 0], torch.tensor(expected))


def test_rotary_products_depend_on_distance_only():
    cos, sin = rotary_table(40, 8, 10_000.0)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(6))
    q, k = rotate(q.expand(1, 1, 40, 8), cos, sin)[0, 0], rotate(k.expand(1, 1, 40, 8), cos, sin)[0, 0]
    near, far = q[3] @ k[1], q[3] @ k[0]
    assert abs(near - far) > 0.01
    close(q[37] @ k[35], near)
    close(q[37] @ k[34], far)


def test_causal_mask_by_hand():
    assert causal_mask(2, 4, "cpu").int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_mlp_size_by_hand():
    # 8/3 of n_embd, up to the next multiple of 32: 341.3, 1024, 2048, 16, 256 and 258.7
    assert [mlp_size(n) for n in (128, 384, 768, 6, 96, 97)] == [352, 1024, 2048, 32, 256, 288]


# --- attention looks back only, on every path -------------------------------------------------------------------------


@shapes
@torch.no_grad()
def test_a_later_token_changes_no_earlier_logits(shape):
    model = random_model(shape)
    idx = random_ids(model, 2, model.block_size)
    before = model(idx)
    for place in (1, model.block_size // 2, model.block_size - 1):
        changed = idx.clone()
        changed[:, place] = (changed[:, place] + 1) % model.vocab_size
        after = model(changed)
        close(after[:, :place], before[:, :place], 1e-6)
        moved = (after - before).abs().amax(dim=(0, 2))  # (T,)
        assert moved[place] > 1e-2
        assert (moved[place:] > 1e-6).all(), "every later token looks back at the changed one"


@shapes
@torch.no_grad()
def test_explicit_attention_equals_fused(shape):
    model = random_model(shape)
    idx, weights = random_ids(model, 2, 17), []
    close(model(idx, weights=weights), model(idx))
    assert len(weights) == shape["n_layer"]
    for w in weights:
        assert w.shape == (2, shape["n_head"], 17, 17)
        close(w.sum(dim=-1), torch.ones(2, shape["n_head"], 17))
        assert (w >= 0).all()
        assert (w.triu(1) == 0).all()


def test_both_attention_paths_of_training_give_the_same_gradients(monkeypatch):
    """A CPU trains on the explicit path, other devices and long blocks on the fused kernel."""
    model, gradients = random_model(SMALL), []
    idx = random_ids(model, 2, 24)
    fused = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: fused.append(1) or real(*a, **k))
    for limit in (512, 24, 23):
        monkeypatch.setattr("model.layers.EXPLICIT_UP_TO", limit)
        model.zero_grad()
        model(idx).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert len(fused) == SMALL["n_layer"], "fused only where the block is longer than the limit"
    close(gradients[0], gradients[1])
    close(gradients[0], gradients[2])


@torch.no_grad()
def test_explicit_attention_with_a_cache():
    """Rows are the tokens fed now, columns all tokens: the weights of a chunk are the last rows of the whole."""
    model = random_model(SMALL)
    idx, whole, chunk = random_ids(model, 2, 11), [], []
    logits = model(idx, weights=whole)
    cache = model.new_cache(batch=2)
    model(idx[:, :7], cache)
    close(model(idx[:, 7:], cache, chunk), logits[:, 7:])
    for all_rows, last_rows in zip(whole, chunk, strict=True):
        assert last_rows.shape == (2, 4, 4, 11)
        close(last_rows, all_rows[:, :, 7:])


# --- the key-value cache ----------------------------------------------------------------------------------------------


@shapes
@pytest.mark.parametrize("cuts", [[1] * 24, [24], [5, 1, 1, 10, 7], [1, 23], [23, 1]], ids=str)
@torch.no_grad()
def test_cache_gives_the_logits_of_full_computation(shape, cuts):
    model = random_model(shape)
    idx = random_ids(model, 3, 24)
    cache = model.new_cache(batch=3)
    pieces = [model(chunk, cache) for chunk in idx.split(cuts, dim=1)]
    assert cache.length == 24
    close(torch.cat(pieces, dim=1), model(idx))


@torch.no_grad()
def test_a_cache_that_starts_again_forgets():
    model = random_model(SMALL)
    cache = model.new_cache()
    model(random_ids(model, 1, 24, seed=7), cache)
    cache.length = 0
    idx = random_ids(model, 1, 9)
    close(model(idx, cache), model(idx))


def test_the_cache_works_with_gradients_on_as_well():
    """Who tries it in an interactive session does not think of no_grad first."""
    model = random_model(SMALL)
    idx, cache = random_ids(model, 1, 9), model.new_cache()
    close(torch.cat([model(chunk, cache) for chunk in idx.split([4, 1, 4], dim=1)], dim=1), model(idx))


# --- errors -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_too_many_tokens_for_the_block():
    model = random_model(SMALL)
    with pytest.raises(ValueError, match=r"25 tokens do not fit a block of 24"):
        model(random_ids(model, 1, 25))
    cache = model.new_cache()
    model(random_ids(model, 1, 20), cache)
    with pytest.raises(ValueError, match=r"25 tokens do not fit a block of 24"):
        model(random_ids(model, 1, 5), cache)
    assert cache.length == 20, "a refused call leaves the cache as it was"


@pytest.mark.parametrize(("n_embd", "n_head"), [(32, 5), (30, 4), (12, 4), (9, 1)])
def test_heads_that_do_not_fit_the_width(n_embd, n_head):
    with pytest.raises(ValueError, match=f"must be an even integer, not {n_embd} / {n_head}"):
        GPT(**{**SMALL, "n_embd": n_embd, "n_head": n_head})


# --- the untrained model, and one that learns -------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    ("vocab_size", "n_layer", "n_head", "n_embd"),
    [(65, 2, 2, 32), (96, 4, 4, 128), (256, 6, 6, 384), (4096, 2, 4, 64), (50257, 1, 2, 32), (65, 1, 12, 768)],
)
@torch.no_grad()
def test_loss_at_step_0_is_ln_of_the_vocabulary(vocab_size, n_layer, n_head, n_embd, tied):
    torch.manual_seed(0)
    model = GPT(vocab_size, block_size=32, n_layer=n_layer, n_head=n_head, n_embd=n_embd, tie_embeddings=tied)
    idx, targets = torch.randint(vocab_size, (2, 4, 32))
    loss = F.cross_entropy(model(idx).flatten(0, 1), targets.flatten()).item()
    assert loss == pytest.approx(math.log(vocab_size), rel=0.01)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("n_embd", [16, 128, 768])
@torch.no_grad()
def test_loss_at_step_0_on_text_that_repeats_itself(n_embd, tied):
    """Indentation is the same token over and over, and a tied head must not know that: a third of the targets here
    are the token before them."""
    torch.manual_seed(0)
    model = GPT(96, block_size=32, n_layer=2, n_head=2, n_embd=n_embd, tie_embeddings=tied)
    idx, targets = torch.randint(96, (2, 16, 32))
    targets = torch.where(torch.rand(16, 32) < 1 / 3, idx, targets)
    loss = F.cross_entropy(model(idx).flatten(0, 1), targets.flatten()).item()
    assert loss == pytest.approx(math.log(96), rel=0.01)


@torch.no_grad()
def test_every_block_starts_as_the_identity():
    torch.manual_seed(0)
    model = GPT(**SMALL)
    x = torch.randn(2, 24, 32)
    assert torch.equal(model.blocks[1](x, model.cos, model.sin), x)


def test_the_seed_decides_the_initial_weights():
    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in GPT(**SMALL).parameters()])

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_one_batch_is_learned_by_heart(tied):
    """Gradients reach all the weights, and the weights suffice: random targets can only be memorised."""
    torch.manual_seed(0)
    model = GPT(**{**SMALL, "tie_embeddings": tied})
    initial = {name: weight.clone() for name, weight in model.state_dict().items()}
    optimizer = Optimizer(model, Training(muon_rate=0.01, weight_decay=0.0, beta2=0.99))
    idx, targets = torch.randint(model.vocab_size, (2, 4, 24))
    for _ in range(150):
        loss = F.cross_entropy(model(idx).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(torch.tensor(1.0))
    assert loss.item() < 0.1
    for name, weight in model.state_dict().items():
        assert not torch.equal(weight, initial[name]), f"{name} has not learned"


def test_dropout_acts_in_training_only():
    plain, dropping = random_model(SMALL), random_model({**SMALL, "dropout": 0.5})
    idx = random_ids(plain, 2, 24)
    assert torch.equal(dropping(idx), plain(idx)), "eval mode drops nothing"
    dropping.train()
    first, second = dropping(idx), dropping(idx)
    assert (first - second).abs().max() > 0.1
    plain.train()
    assert torch.equal(plain(idx), plain(idx))


def test_dropout_acts_in_each_of_its_places():
    """On attention weights, on what attention adds to the stream, and on what SwiGLU adds: each with the others off."""

    def varies(silent: str, attention_dropout: float) -> bool:
        model = random_model({**SMALL, "dropout": 0.5})
        block, x = model.blocks[0].train(), torch.randn(2, 24, 32)
        block.attention.dropout = attention_dropout
        nn.init.zeros_(block.get_submodule(silent).weight)
        return not torch.equal(block(x, model.cos, model.sin), block(x, model.cos, model.sin))

    assert varies("attention.output", 0.0), "SwiGLU"
    assert varies("mlp.down", 0.0), "attention"
    attention, x = random_model({**SMALL, "dropout": 0.5}).blocks[0].attention.train(), torch.randn(2, 24, 32)
    cos, sin = rotary_table(24, 8, 10_000.0)
    assert not torch.equal(attention(x, cos, sin), attention(x, cos, sin)), "attention weights"


# --- what the model says of itself ------------------------------------------------------------------------------------


@shapes
def test_parameter_counts_add_up(shape):
    model = GPT(**shape)
    parts = model.parameter_counts()
    assert sum(parts.values()) == sum(p.numel() for p in model.parameters())


def test_parameter_counts_by_hand():
    parts = GPT(**{**SMALL, "n_embd": 32, "n_head": 4, "n_layer": 2}).parameter_counts()
    assert parts == {
        "embedding": 31 * 32,
        "attention": 2 * (4 * 32 * 32 + 2 * 8),  # Q, K, V and output; two norms over the head size
        "mlp": 2 * 3 * 32 * 96,
        "norms": (2 * 2 + 1) * 32,
        "head": 31 * 32,
    }
    assert GPT(**{**SMALL, "tie_embeddings": True}).parameter_counts()["head"] == 0


OTHER = {
    "vocab_size": 37,
    "block_size": 10,
    "n_layer": 3,
    "n_head": 2,
    "n_embd": 12,
    "rotary_base": 50.0,
    "dropout": 0.25,
    "tie_embeddings": True,
}


def test_architecture_rebuilds_the_model():
    defaults = asdict(Model())
    for name, value in OTHER.items():
        assert name == "vocab_size" or value != defaults[name]
    model = random_model(OTHER)
    assert model.architecture == OTHER
    assert set(model.architecture) == {"vocab_size", *defaults}, (
        "a field that is not recorded would be lost in the file"
    )

    rebuilt = GPT(**model.architecture)
    rebuilt.load_state_dict(model.state_dict())
    idx = random_ids(model, 2, 10)
    assert torch.equal(rebuilt.eval()(idx), model(idx))
    torch.manual_seed(3)
    dropped = rebuilt.train()(idx)
    torch.manual_seed(3)
    assert torch.equal(dropped, model.train()(idx)), "the same dropout"
    assert not torch.equal(dropped, model.eval()(idx))


def test_every_field_of_the_architecture_is_taken_up():
    model = GPT(**OTHER)
    assert model.embedding.weight.shape == (37, 12)
    assert model.head.weight is model.embedding.weight
    assert model.cos.shape == (10, 12 // 2)
    assert len(model.blocks) == 3
    assert [block.attention.n_head for block in model.blocks] == [2, 2, 2]
    assert [(block.attention.dropout, block.drop.p) for block in model.blocks] == [(0.25, 0.25)] * 3
    assert model.new_cache(batch=5).store.shape == (3, 2, 5, 2, 10, 6)
