"""AdamW against a loop in numpy, Muon against an SVD and torch's, and the learning rate at the corners of a run."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from config import Training
from model.gpt import GPT
from model.storage.checkpoint import optimizer_shapes
from model.training import muon
from model.training.muon import muon_update, orthogonalise, update_scale
from model.training.optimizer import Optimizer
from model.training.schedule import learning_rate_at

in_any_time = settings(deadline=None)  # a busy machine is no failure


def tiny(tied: bool = False) -> GPT:
    torch.manual_seed(0)
    return GPT(vocab_size=13, block_size=8, n_layer=2, n_head=2, n_embd=8, tie_embeddings=tied)


def make(model: GPT, **changes) -> Optimizer:
    return Optimizer(model, replace(Training(beta1=0.8), **changes))


def hidden(name: str) -> bool:
    return name.startswith("blocks.") and name.split(".")[-2] in ("qkv", "output", "gate_up", "down")


def fill_gradients(model: GPT, generator: torch.Generator) -> None:
    for p in model.parameters():
        p.grad.copy_(torch.randn(p.shape, generator=generator))


# --- one vector -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_weights_and_gradients_are_views_of_two_vectors(tied):
    model = tiny(tied)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make(model)
    total = sum(p.numel() for p in model.parameters())
    assert len(optimizer.weights) == len(optimizer.grads) == total
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    model(torch.zeros(1, 3, dtype=torch.long)).sum().backward()
    assert optimizer.grads.norm() > 0
    for vector, pick in ((optimizer.weights, lambda p: p.data), (optimizer.grads, lambda p: p.grad)):
        spans = sorted((pick(p).storage_offset(), p.numel()) for p in model.parameters())
        assert all(pick(p).untyped_storage().data_ptr() == vector.data_ptr() for p in model.parameters())
        assert [start for start, _ in spans] == [0, *itertools.accumulate(size for _, size in spans)][:-1], "no gap"
    optimizer.zero_grad()
    assert all(p.grad.count_nonzero() == 0 for p in model.parameters())


def test_checkpoints_keep_the_order_of_the_state():
    """That of the versions before, whose checkpoints have no names in it."""
    model = tiny()
    make(model)
    names = {p.storage_offset(): name.removesuffix(".weight") for name, p in model.named_parameters()}
    attention = [f"blocks.{i}.attention.{name}" for i in (0, 1) for name in ("qkv", "output")]
    assert [names[at] for at in sorted(names)][:8] == [
        *attention, "blocks.0.mlp.gate_up", "blocks.1.mlp.gate_up", "blocks.0.mlp.down", "blocks.1.mlp.down",
    ]  # fmt: skip
    assert names[max(names)] == "head"


def test_clip_scales_all_gradients_together():
    model = tiny()
    optimizer = make(model)
    fill_gradients(model, torch.Generator().manual_seed(0))
    expected = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    before = optimizer.grads.clone()
    assert optimizer.clip(0.0) == pytest.approx(expected.item())
    assert torch.equal(optimizer.grads, before), "0 leaves them alone"
    optimizer.clip(2 * expected.item())
    assert torch.equal(optimizer.grads, before), "below the limit as well"
    optimizer.clip(0.5)
    torch.testing.assert_close(optimizer.grads, before * 0.5 / expected)


# --- steps ------------------------------------------------------------------------------------------------------------


def test_what_is_not_a_matrix_of_a_block_follows_adamw_by_hand():
    """Three steps, since the first depends on neither beta: its means, corrected for the start, are the gradient."""
    weight_decay, beta1, beta2, eps, peak = 0.2, 0.8, 0.95, 1e-8, 0.5
    model = tiny()
    optimizer = make(model, learning_rate=peak, weight_decay=weight_decay, beta1=beta1, beta2=beta2)
    by_hand = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters() if not hidden(name)}
    mean = {name: np.zeros_like(w) for name, w in by_hand.items()}
    square = {name: np.zeros_like(w) for name, w in by_hand.items()}
    generator = torch.Generator().manual_seed(0)
    assert {"embedding.weight", "head.weight", "norm.weight", "blocks.1.attention.key_norm.weight"} <= by_hand.keys()

    for step, fraction in enumerate([0.02, 0.06, 0.04], start=1):
        fill_gradients(model, generator)
        rate = fraction * peak
        for name, p in model.named_parameters():
            if hidden(name):
                continue
            gradient = p.grad.double().numpy()
            by_hand[name] -= rate * (weight_decay if name == "head.weight" else 0.0) * by_hand[name]
            mean[name] = beta1 * mean[name] + (1 - beta1) * gradient
            square[name] = beta2 * square[name] + (1 - beta2) * gradient**2
            corrected = square[name] / (1 - beta2**step)
            by_hand[name] -= rate * (mean[name] / (1 - beta1**step)) / (np.sqrt(corrected) + eps)
        optimizer.step(torch.tensor(fraction))

    weights = dict(model.named_parameters())
    for name in by_hand:
        np.testing.assert_allclose(weights[name].detach().numpy(), by_hand[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_tied_head_does_not_decay():
    model = tiny(tied=True)
    optimizer = make(model, weight_decay=0.5)
    before = model.embedding.weight.detach().clone()
    optimizer.zero_grad()
    optimizer.step(torch.tensor(1.0))
    assert torch.equal(model.embedding.weight, before)


def test_the_matrices_of_the_blocks_follow_muon_one_by_one():
    """The queries, keys and values of each head, gate and up are matrices of their own, although they lie fused in one
    weight."""
    model = tiny()
    optimizer = make(model, muon_rate=0.5, weight_decay=0.2, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    fused = {"qkv": 3 * 2, "output": 1, "gate_up": 2, "down": 1}  # two heads
    weights = {name: p for name, p in model.named_parameters() if hidden(name)}
    by_hand = {name: p.detach().clone() for name, p in weights.items()}
    means = {name: torch.zeros_like(p) for name, p in weights.items()}
    for fraction in (0.1, 0.3):
        fill_gradients(model, generator)
        for name, p in weights.items():
            means[name] = 0.9 * means[name] + 0.1 * p.grad
            look_ahead = 0.9 * means[name] + 0.1 * p.grad
            count = fused[name.split(".")[-2]]
            for matrix, weight in zip(look_ahead.chunk(count), by_hand[name].chunk(count), strict=True):
                update = orthogonalise(matrix[None])[0] * 0.2 * max(matrix.shape) ** 0.5
                weight.mul_(1 - 0.5 * fraction * 0.2).sub_(0.5 * fraction * update)
        optimizer.step(torch.tensor(fraction))
    for name, p in weights.items():
        torch.testing.assert_close(p.detach(), by_hand[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_saved_optimizer_goes_on_as_if_nothing_had_happened():
    def steps(optimizer, model, count, generator):
        for _ in range(count):
            fill_gradients(model, generator)
            optimizer.step(torch.tensor(0.7))

    whole, generator = tiny(), torch.Generator().manual_seed(0)
    optimizer = make(whole)
    steps(optimizer, whole, 2, generator)
    weights, state = copy.deepcopy(whole.state_dict()), copy.deepcopy(optimizer.state_dict())
    position = generator.get_state()
    steps(optimizer, whole, 2, generator)

    resumed = tiny()
    again = make(resumed)
    resumed.load_state_dict(weights)
    again.load_state_dict(state)
    generator.set_state(position)
    steps(again, resumed, 2, generator)
    assert torch.equal(optimizer.weights, again.weights)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_shapes_of_its_memory_are_known_without_it(tied):
    shapes = {name: (memory.shape, memory.dtype) for name, memory in make(tiny(tied)).state_dict().items()}
    assert shapes == {name: (memory.shape, memory.dtype) for name, memory in optimizer_shapes(tiny(tied)).items()}


def test_muon_in_bfloat16_is_nearly_the_same_step():
    moves = []
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny()
        optimizer = Optimizer(model, Training(beta1=0.8), dtype)
        fill_gradients(model, torch.Generator().manual_seed(0))
        before = optimizer.weights.clone()
        optimizer.step(torch.tensor(1.0))
        moves.append(optimizer.weights - before)
    exact, low = moves
    n = optimizer.n_hidden
    assert torch.equal(exact[n:], low[n:]), "AdamW stays fp32"
    assert 0 < (exact[:n] - low[:n]).norm() < 0.05 * exact[:n].norm()


# --- Muon -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 12, 40), (2, 40, 12)])
def test_orthogonalise_against_an_svd(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 1e-3  # the scale must not matter
    U, S, Vh = torch.linalg.svd(matrices, full_matrices=False)
    result = orthogonalise(matrices)
    assert result.shape == matrices.shape
    # Singular values above a thousandth of the norm come near 1, and the singular vectors stay.
    values = (U.mT @ result @ Vh.mT).diagonal(dim1=1, dim2=2)
    large = 3e-3 * torch.linalg.matrix_norm(matrices)[:, None] < S
    assert large.float().mean() > 0.8
    assert (values[large] - 1).abs().max() < 0.15
    off_diagonal = U.mT @ result @ Vh.mT - torch.diag_embed(values)
    assert off_diagonal.abs().max() < 1e-3


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 13, 40), (2, 40, 13)])
def test_orthogonalise_in_blocks(monkeypatch, shape):
    """As large matrices are on a CPU: the same, also where the last block is a smaller one."""
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    whole = orthogonalise(matrices)
    chosen, in_blocks = [], muon.in_blocks
    monkeypatch.setattr(muon, "LARGE", 4)
    monkeypatch.setattr(muon, "in_blocks", lambda x: chosen.append(in_blocks(x)) or chosen[-1])
    torch.testing.assert_close(orthogonalise(matrices), whole, rtol=1e-4, atol=1e-5)
    assert chosen and all(chosen)


def test_fewer_polynomials():
    """To try out how many it takes."""
    matrices = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(2))
    for few in (muon.POLAR_EXPRESS[:count] for count in (1, 2, 3)):
        exact = orthogonalise(matrices.double(), few).float()
        torch.testing.assert_close(orthogonalise(matrices, few), exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("blocks", [False, True], ids=["whole", "in blocks"])
@pytest.mark.parametrize("smallest", [1e-2, 1e-5, 1e-10, 0.0])
def test_wide_matrices_go_through_their_gram_matrix(monkeypatch, smallest, blocks):
    """Which has the squares of the singular values: 1e-20 is far below the rounding of fp32. The reference multiplies
    the matrices themselves, in double precision."""
    generator = torch.Generator().manual_seed(5)
    U, V = (torch.linalg.qr(torch.randn(2, n, 24, generator=generator, dtype=torch.float64)).Q for n in (24, 70))
    values = torch.logspace(0, np.log10(smallest), 24) if smallest else (torch.arange(24) < 3).double()
    matrices = U * values @ V.mT
    taken, through_gram = [], muon.through_gram
    monkeypatch.setattr(muon, "LARGE", 4 if blocks else 10**9)
    monkeypatch.setattr(muon, "through_gram", lambda x, steps: taken.append(x) or through_gram(x, steps))
    exact = orthogonalise(matrices)
    assert not taken
    torch.testing.assert_close(orthogonalise(matrices.float()).double(), exact, rtol=0, atol=1e-4)
    assert len(taken) == 2


@pytest.mark.parametrize("shape", [(400, 8, 8), (100, 16, 16), (20, 12, 40)])
def test_orthogonalise_stays_bounded_in_bfloat16(shape):
    """Without the margin at each step, one small square matrix in a hundred comes out with values in the thousands."""
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(4)).bfloat16()
    assert torch.linalg.svdvals(orthogonalise(matrices).float()).max() < 1.2
    if shape[1] == shape[2]:
        assert torch.linalg.svdvals(orthogonalise(matrices, margin=1.0).float()).max() > 10


def test_orthogonalise_takes_each_matrix_of_a_stack_for_itself():
    matrices = torch.randn(4, 6, 9, generator=torch.Generator().manual_seed(2))
    one_by_one = torch.cat([orthogonalise(matrix[None]) for matrix in matrices])
    torch.testing.assert_close(orthogonalise(matrices), one_by_one)
    assert orthogonalise(torch.zeros(1, 3, 3)).count_nonzero() == 0, "no gradient, no update, and no nan"


@pytest.mark.parametrize("shape", [(16, 16), (12, 40), (40, 12)])
def test_muon_against_torch(shape):
    """The whole update against torch.optim.Muon, given its polynomial; it computes in bfloat16, hence the tolerance."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.nn.Parameter(torch.randn(shape, generator=generator))
    ours, mean = weight.detach().clone(), torch.zeros(shape)
    coefficients = (3.4445, -4.7750, 2.0315)
    options = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9, "nesterov": True, "adjust_lr_fn": "match_rms_adamw"}
    theirs = torch.optim.Muon([weight], ns_coefficients=coefficients, ns_steps=5, **options)
    for _ in range(3):
        weight.grad = torch.randn(shape, generator=generator)
        before = ours.clone()
        update = orthogonalise(muon_update(weight.grad, mean, 0.9)[None], [coefficients] * 5, margin=1.0)[0]
        ours = ours * (1 - 0.1 * 0.1) - 0.1 * update_scale(*shape) * update
        theirs.step()
        assert torch.linalg.norm(ours - weight.detach()) < 0.05 * torch.linalg.norm(ours - before)


# --- the learning rate ------------------------------------------------------------------------------------------------


def rates(max_steps: int, warmup_steps: int, decay_fraction: float) -> list[float]:
    return [learning_rate_at(step, max_steps, warmup_steps, decay_fraction) for step in range(max_steps)]


def test_learning_rate_by_hand():
    # 3 steps of climb in quarters, a plateau, and the last 5 of 10 steps fall in fifths: step 10 would be at zero.
    expected = [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    assert rates(10, warmup_steps=3, decay_fraction=0.5) == pytest.approx(expected)
    assert learning_rate_at(10, 10, 3, 0.5) == learning_rate_at(14, 10, 3, 0.5) == 0.0


def test_learning_rate_at_the_corners_of_a_long_run():
    def rate(step: int) -> float:
        return learning_rate_at(step, max_steps=2000, warmup_steps=50, decay_fraction=0.6)

    assert 0 < rate(0) == pytest.approx(1 / 51)
    assert rate(49) < rate(50) == rate(400) == rate(800) == 1
    assert rate(801) < 1
    assert rate(1400) == pytest.approx(0.5)  # half way down
    assert 0 < rate(1999) == pytest.approx(1 / 1200)
    falls = [rate(step) - rate(step + 1) for step in range(800, 2000)]
    assert falls == pytest.approx([1 / 1200] * 1200), "a straight line"


def test_learning_rate_without_climb_or_fall():
    assert rates(5, warmup_steps=0, decay_fraction=0.0) == [1.0] * 5
    assert rates(4, warmup_steps=0, decay_fraction=1.0) == [1.0, 0.75, 0.5, 0.25]


def test_learning_rate_of_short_runs():
    assert rates(1, warmup_steps=50, decay_fraction=0.6) == pytest.approx([1 / 51])
    # Climb to 1/5, 2/5, 3/5, 4/5; fall from 4/4 by quarters: the lower one holds.
    assert rates(4, warmup_steps=4, decay_fraction=1.0) == pytest.approx([0.2, 0.4, 0.5, 0.25])


@in_any_time
@given(st.integers(1, 200), st.integers(0, 300), st.floats(0, 1))
def test_learning_rate_rises_then_falls_and_stays_in_bounds(max_steps, warmup_steps, decay_fraction):
    all_rates = rates(max_steps, warmup_steps, decay_fraction)
    assert all(0 < rate <= 1 for rate in all_rates)
    top = all_rates.index(max(all_rates))
    assert all(a <= b for a, b in itertools.pairwise(all_rates[: top + 1]))
    assert all(a >= b for a, b in itertools.pairwise(all_rates[top:]))
