"""AdamW with its groups against a loop in numpy, and the learning rate at the corners of a run."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.gpt import GPT
from model.optimizer import learning_rate_at, make_optimizer

in_any_time = settings(deadline=None)  # a busy machine is no failure


def tiny(tied: bool = False) -> GPT:
    torch.manual_seed(0)
    return GPT(vocab_size=13, block_size=8, n_layer=2, n_head=2, n_embd=8, tie_embeddings=tied)


# --- groups -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_every_parameter_is_in_exactly_one_group(tied):
    model = tiny(tied)
    optimizer = make_optimizer(model, weight_decay=0.1, beta1=0.9, beta2=0.99)
    ids = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_only_the_matrices_of_blocks_and_head_decay(tied):
    model = tiny(tied)
    optimizer = make_optimizer(model, weight_decay=0.1, beta1=0.8, beta2=0.95)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    matrices = ["attention.qkv", "attention.output", "mlp.gate_up", "mlp.down"]
    expected = {f"blocks.{layer}.{name}.weight" for layer in range(2) for name in matrices}
    if not tied:
        expected.add("head.weight")  # a tied head is the embedding, which does not decay
    assert {name for name, p in model.named_parameters() if decay[id(p)] == 0.1} == expected
    assert {name for name, p in model.named_parameters() if decay[id(p)] not in (0.0, 0.1)} == set()
    assert all(group["betas"] == (0.8, 0.95) for group in optimizer.param_groups)
    assert all(group["lr"] == 0.0 for group in optimizer.param_groups), "the rate comes from learning_rate_at"


# --- steps ------------------------------------------------------------------------------------------------------------


def test_steps_equal_adamw_by_hand():
    """Three steps, since the first depends on neither beta: its means, corrected for the start, are the gradient."""
    weight_decay, beta1, beta2, eps = 0.2, 0.8, 0.95, 1e-8
    model = tiny()
    optimizer = make_optimizer(model, weight_decay, beta1, beta2)
    rng = np.random.default_rng(0)
    by_hand = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    mean = {name: np.zeros_like(w) for name, w in by_hand.items()}
    square = {name: np.zeros_like(w) for name, w in by_hand.items()}

    for step, rate in enumerate([0.01, 0.03, 0.02], start=1):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, p in model.named_parameters():
            gradient = rng.normal(size=tuple(p.shape))
            p.grad = torch.from_numpy(gradient).float()
            decays = p.dim() == 2 and name != "embedding.weight"
            by_hand[name] -= rate * (weight_decay if decays else 0.0) * by_hand[name]
            mean[name] = beta1 * mean[name] + (1 - beta1) * gradient
            square[name] = beta2 * square[name] + (1 - beta2) * gradient**2
            corrected = square[name] / (1 - beta2**step)
            by_hand[name] -= rate * (mean[name] / (1 - beta1**step)) / (np.sqrt(corrected) + eps)
        optimizer.step()

    for name, p in model.named_parameters():
        np.testing.assert_allclose(p.detach().numpy(), by_hand[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_first_step_moves_each_weight_by_the_learning_rate():
    """Without decay, AdamW's first step is rate * sign(gradient), whatever the gradient's size."""
    model = tiny()
    optimizer = make_optimizer(model, weight_decay=0.0, beta1=0.9, beta2=0.99)
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    before = model.head.weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.full_like(p, -0.003)
    optimizer.step()
    torch.testing.assert_close(model.head.weight.detach(), before + 0.5, rtol=0, atol=1e-5)


# --- the learning rate ------------------------------------------------------------------------------------------------


def rates(max_steps: int, warmup_steps: int, decay_fraction: float, peak: float = 1.0) -> list[float]:
    return [learning_rate_at(step, max_steps, peak, warmup_steps, decay_fraction) for step in range(max_steps)]


def test_learning_rate_by_hand():
    # 3 steps of climb in quarters, a plateau, and the last 5 of 10 steps fall in fifths: step 10 would be at zero.
    expected = [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    assert rates(10, warmup_steps=3, decay_fraction=0.5) == pytest.approx(expected)
    assert rates(10, warmup_steps=3, decay_fraction=0.5, peak=3e-3) == pytest.approx([3e-3 * e for e in expected])
    assert learning_rate_at(10, 10, 1.0, 3, 0.5) == 0.0


def test_learning_rate_at_the_corners_of_a_long_run():
    def rate(step: int) -> float:
        return learning_rate_at(step, max_steps=2000, peak=3e-3, warmup_steps=50, decay_fraction=0.6)

    assert 0 < rate(0) == pytest.approx(3e-3 / 51)
    assert rate(49) < rate(50) == rate(400) == rate(800) == 3e-3
    assert rate(801) < 3e-3
    assert rate(1400) == pytest.approx(1.5e-3)  # half way down
    assert 0 < rate(1999) == pytest.approx(3e-3 / 1200)
    falls = [rate(step) - rate(step + 1) for step in range(800, 2000)]
    assert falls == pytest.approx([3e-3 / 1200] * 1200), "a straight line"


def test_learning_rate_without_climb_or_fall():
    assert rates(5, warmup_steps=0, decay_fraction=0.0) == [1.0] * 5
    assert rates(4, warmup_steps=0, decay_fraction=1.0) == [1.0, 0.75, 0.5, 0.25]


def test_learning_rate_of_short_runs():
    assert rates(1, warmup_steps=50, decay_fraction=0.6) == pytest.approx([1 / 51])
    # Climb to 1/5, 2/5, 3/5, 4/5; fall from 4/4 by quarters: the lower one holds.
    assert rates(4, warmup_steps=4, decay_fraction=1.0) == pytest.approx([0.2, 0.4, 0.5, 0.25])


@in_any_time
@given(st.integers(1, 200), st.integers(0, 300), st.floats(0, 1), st.floats(1e-6, 1))
def test_learning_rate_rises_then_falls_and_stays_in_bounds(max_steps, warmup_steps, decay_fraction, peak):
    all_rates = rates(max_steps, warmup_steps, decay_fraction, peak)
    assert all(0 < rate <= peak for rate in all_rates)
    top = all_rates.index(max(all_rates))
    assert all(a <= b for a, b in itertools.pairwise(all_rates[: top + 1]))
    assert all(a >= b for a, b in itertools.pairwise(all_rates[top:]))
