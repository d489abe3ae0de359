"""One training step taken apart: against plain autograd, torch's optimizers and an SVD, and against the run itself."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from runs import same

from model import gpt, layers
from model.interpretation import training_step as ts
from model.interpretation.open_step import open_before
from model.interpretation.step_page import step_data
from model.storage.checkpoint import checkpoint_path, save_checkpoint
from model.storage.model_file import save_model
from model.tokenization.tokenizer import BareIds
from model.training.muon import MARGIN, POLAR_EXPRESS, orthogonalise
from model.training.run import open_run
from plumbing.errors import UsageError, UserError
from train import train_step

VARIANTS = {
    "plain": {},
    "clipped, in micro-batches": {"accumulate": 2, "grad_clip": 0.05},
    "tied": {"tie_embeddings": True},
}


def close(a, b, atol=1e-5):
    a, b = (torch.as_tensor(value, dtype=torch.float64) for value in (a, b))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=atol)


@pytest.fixture(params=VARIANTS)
def step(char, request):
    """A step of a run that is under way: no weight and no moving mean at its initial value."""
    settings = replace(char, dropout=0.0, learning_rate=0.05, debug=False, **VARIANTS[request.param])
    with open_run(settings, False, "char", None, None, False) as run:
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for weight in run.model.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3 + (weight.dim() == 1))
        optimizer, run.step = run.optimizer, 3
        optimizer.mean.copy_(torch.randn(optimizer.mean.shape, generator=generator) * 0.01)
        optimizer.square.copy_(torch.rand(optimizer.square.shape, generator=generator) * 1e-4)
        optimizer.steps.fill_(3)
        yield ts.trace_training_step(run, train_step)


@pytest.fixture
def plain(step, monkeypatch):
    """The same batch by plain autograd, module by module: the loss of each token, the gradient of the stream after the
    embedding and each layer, and of each parameter."""
    monkeypatch.setattr(layers, "by_hand", lambda x: False)
    monkeypatch.setattr(gpt, "by_hand", lambda x: False)
    model = step.run.model
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}

    def run():
        streams = [model.embedding(step.inputs)]
        for block in model.blocks:
            streams.append(block(streams[-1], model.cos[: step.inputs.size(1)], model.sin[: step.inputs.size(1)]))
        logits = model.head(model.norm(streams[-1]))
        losses = F.cross_entropy(logits.flatten(0, 1), step.targets.flatten(), reduction="none")
        return losses, torch.autograd.grad(losses.mean(), [*streams, *model.parameters()])

    losses, gradients = run()
    count = len(model.blocks) + 1
    return losses.view(step.inputs.shape), gradients[:count], dict(zip(weights, gradients[count:], strict=True))


def test_losses_and_gradients_are_those_of_plain_autograd(step, plain):
    losses, streams, gradients = plain
    close(ts.batch_predictions(step)[0], losses)
    close(step.loss, losses.mean())
    close(step.streams, torch.stack(streams).flatten(1, 2))
    assert step.gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 1e-4, name
        close(step.gradients[name], gradient)
    close(step.norm, torch.cat([gradient.flatten() for gradient in gradients.values()]).norm())
    limit = step.run.settings.grad_clip
    assert step.clipped_to == pytest.approx(min(1.0, limit / step.norm), rel=1e-4)


def test_a_gradient_is_the_sum_of_its_tokens_and_the_slope_of_the_loss(step, plain):
    gradients = plain[2]
    for name, gradient in gradients.items():
        if gradient.dim() == 2:
            row, column = ts.strongest_weight(step, name)
            assert gradient[row, column].abs() == pytest.approx(gradient.abs().max().item(), rel=1e-4)
            x, dy = ts.contributions(step, name, row, column)
            close((x * dy).double().sum(), gradient[row, column])
            slope = ts.slope_by_nudging(step, name, row, column, 0.003)
            assert slope == pytest.approx(gradient[row, column].item(), rel=2e-3), name
    assert ts.agreeing_digits(1.2345, 1.2349) == 3
    assert ts.agreeing_digits(1.0, -1.0) == 0 and ts.agreeing_digits(0.5, 0.5) == 7


def test_what_adamw_updates_is_what_torchs_adamw_would_make_of_it(step, plain):
    run, settings = step.run, step.run.settings
    for name, p in run.model.named_parameters():
        if ts.is_muons(step, name):
            continue
        weight = step.weight(name, step.before).clone().requires_grad_()
        decay = settings.weight_decay if name == "head.weight" else 0.0
        options = {"betas": (settings.beta1, settings.beta2), "eps": 1e-8, "weight_decay": decay}
        theirs = torch.optim.AdamW([weight], lr=step.fraction * settings.learning_rate, **options)
        at, n = step.offset(name), run.optimizer.n_hidden
        mean, square = (v[a : a + p.numel()].view_as(p) for v, a in ((step.before[1], at), (step.before[2], at - n)))
        theirs.state[weight] = {"step": torch.tensor(3.0), "exp_avg": mean.clone(), "exp_avg_sq": square.clone()}
        weight.grad = plain[2][name] * step.clipped_to
        theirs.step()
        close(step.weight(name, step.after), weight.detach())
        if p.dim() == 2:
            row, column = ts.strongest_weight(step, name)
            u = ts.update_of(step, name, row, column)
            close(u["after"], weight[row, column].item())
            close(u["weight"] * (1 - u["rate"] * u["decay"]) - u["rate"] * u["direction"], weight[row, column].item())
            close(u["square"], theirs.state[weight]["exp_avg_sq"][row, column], atol=1e-9)


def test_what_muon_updates_is_its_svd_with_the_singular_values_brought_near_one(step, plain):
    settings = step.run.settings
    for weight, fused in step.run.model.hidden_matrices():
        (name,) = [name for name, p in step.run.model.named_parameters() if p is weight]
        gradient, at = plain[2][name] * step.clipped_to, step.offset(name)
        mean = step.before[1][at : at + weight.numel()].view_as(weight) * 0.9 + gradient * 0.1
        before, after = ts.singular_values(step, name)
        pieces = zip(
            (mean * 0.9 + gradient * 0.1).chunk(fused),
            step.weight(name, step.before).chunk(fused),
            step.weight(name, step.after).chunk(fused),
            strict=True,
        )
        for k, (direction, was, became) in enumerate(pieces):
            U, s, V = np.linalg.svd(direction.double().numpy(), full_matrices=False)
            close(before[k], s)
            x = s / (np.linalg.norm(s) * MARGIN)
            for i, (a, b, c) in enumerate(POLAR_EXPRESS, 1):
                m = MARGIN if i < len(POLAR_EXPRESS) else 1.0
                x = a * x / m + b * (x / m) ** 3 + c * (x / m) ** 5
            close(after[k], np.sort(x)[::-1].copy(), atol=1e-4)
            rate, scale = step.fraction * settings.muon_rate, 0.2 * max(direction.shape) ** 0.5
            close(became, was * (1 - rate * settings.weight_decay) - rate * scale * torch.from_numpy((U * x) @ V))
        row, column = ts.strongest_weight(step, name)
        u = ts.update_of(step, name, row, column)
        moved = u["weight"] * (1 - u["rate"] * u["decay"]) - u["rate"] * u["scale"] * u["orthogonal"]
        close(moved, step.weight(name, step.after)[row, column].item())


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_with_its_polynomial_it_is_torchs_muon(step, plain, monkeypatch):
    """Which computes in bfloat16, so the two are compared where an update is 100 times the tolerance."""
    run, settings, coefficients = step.run, step.run.settings, (3.4445, -4.7750, 2.0315)
    monkeypatch.setattr(
        run.optimizer, "orthogonalise", partial(orthogonalise, coefficients=[coefficients] * 5, margin=1.0)
    )
    monkeypatch.setattr(run.optimizer, "dtype", torch.bfloat16)
    tensors = ts.updated(step, 0.1)
    name = "blocks.1.attention.output.weight"
    weight = step.weight(name, step.before).clone().requires_grad_()
    options = {"momentum": settings.momentum, "nesterov": True, "adjust_lr_fn": "match_rms_adamw"}
    theirs = torch.optim.Muon(
        [weight], lr=0.1 * step.fraction * settings.muon_rate, weight_decay=settings.weight_decay,
        ns_coefficients=coefficients, ns_steps=5, **options,
    )  # fmt: skip
    mean = step.before[1][step.offset(name) :][: weight.numel()].view_as(weight).clone()
    theirs.state[weight] = {"momentum_buffer": mean}
    weight.grad = plain[2][name] * step.clipped_to
    theirs.step()
    moved = (weight.detach() - step.weight(name, step.before)).abs().max()
    assert moved > 5e-4
    close(step.weight(name, tensors), weight.detach())


def test_what_the_step_bought(step):
    """Losses after it, at its own and at other learning rates; and nothing of all that is left behind."""
    inputs, targets = step.targets[:1], step.inputs[:1]
    curve = ts.rate_curve(step, [0.0, 1.0, 3.0], inputs, targets)
    assert same(step.run.optimizer.tensors(), step.before)
    close(curve[0][0], step.loss)
    model = step.run.model
    for tensors, losses in ((step.before, curve[0]), (step.after, curve[1])):
        ts.put_back(step, tensors)
        with torch.no_grad():
            close(losses[0], model.loss(step.inputs, step.targets))
            close(losses[1], model.loss(inputs, targets))
    ts.put_back(step)
    assert model.training


# --- the run itself ---------------------------------------------------------------------------------------------------


def test_it_is_the_very_step_of_the_run(finished_run, interrupted_run):
    """Step 10 from the checkpoint of step 5, with dropout: bit for bit the weights that the run ended with."""
    run, about = open_before(interrupted_run.checkpoint_dir, 10, interrupted_run, train_step)
    assert run.step == 9 and about.endswith("step_00000005.pt, 4 steps taken again")
    step = ts.trace_training_step(run, train_step)
    weights = {name: step.weight(name, step.after) for name, _ in run.model.named_parameters()}
    assert same(weights, {name: finished_run.last["model"][name] for name in weights})
    assert same(dict(zip(("mean", "square", "steps"), step.after[1:], strict=True)), finished_run.last["optimizer"])
    assert same(step.run.optimizer.tensors(), step.before)
    close(ts.batch_predictions(step)[0].mean(), step.loss)  # the same activations dropped
    for folder in (interrupted_run.checkpoint_dir, finished_run.settings.checkpoint_dir):  # the latter with 5 and 10
        assert open_before(folder, None, interrupted_run, train_step)[0].step == 5
    end, _ = open_before(checkpoint_path(folder, 10), None, interrupted_run, train_step)
    assert ts.trace_training_step(end, train_step).fraction == ts.RATE_AFTER_THE_END


def test_a_model_gets_an_optimizer_without_memory(finished_run):
    settings = finished_run.settings
    run, about = open_before(settings.model_file, None, settings, train_step)
    assert about.endswith("a finished model: an optimizer without memory")
    step = ts.trace_training_step(run, train_step)
    assert step.before[1].count_nonzero() == 0 and step.fraction == ts.RATE_AFTER_THE_END
    assert same(step.weight("head.weight", step.before), finished_run.last["model"]["head.weight"])


def test_what_cannot_be_opened_is_refused_with_a_way_out(finished_run, interrupted_run, tmp_path):
    settings = finished_run.settings
    last = checkpoint_path(settings.checkpoint_dir, 10)
    for path, step, expected in (
        (tmp_path / "none", None, "There is no checkpoint"),
        (last, 3, "It has none from before step 3"),
        (interrupted_run.checkpoint_dir, 11, "--step must be at most 10"),
    ):
        with pytest.raises((UserError, UsageError), match=expected):
            open_before(path, step, settings, train_step)
    damaged = save_checkpoint(tmp_path / "damaged", 5, finished_run.first, keep=2)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be used"):
        open_before(tmp_path / "damaged", None, settings, train_step)


def test_an_old_checkpoint_finds_its_tokenizer_among_the_files(finished_run, tmp_path):
    old = {name: value for name, value in finished_run.first.items() if name != "tokenizer"}
    save_checkpoint(tmp_path / "old", 5, old, keep=2)
    run, _ = open_before(tmp_path / "old", None, finished_run.settings, train_step)
    assert run.tokenizer.kind == "char" and run.step == 5
    with pytest.raises(UserError, match="does not hold its tokenizer. Name it with --tokenizer-file"):
        lost = replace(finished_run.settings, tokenizer_file=tmp_path / "none")
        open_before(tmp_path / "old", None, lost, train_step)


def test_bare_ids_have_no_tokenizer_file(finished_run, tmp_path):
    """Their texts are their ids."""
    settings, ids = finished_run.settings, finished_run.last["model"]["embedding.weight"].shape[0]
    run, _ = open_before(settings.model_file, None, settings, train_step)
    save_model(tmp_path / "bare.pt", run.model, BareIds(ids), {"steps": 3, "val_bits_per_byte": None})
    given = replace(settings, tokenizer_file=tmp_path / "none.json")
    run, _ = open_before(tmp_path / "bare.pt", None, given, train_step)
    assert run.tokenizer.kind == "none"


def test_a_run_in_bfloat16_can_be_opened(char):
    """Its numbers are coarser: two to three digits."""
    settings = replace(char, dropout=0.0, dtype="bfloat16", debug=False)
    with open_run(settings, False, "char", None, None, False) as run:
        with torch.no_grad():
            for weight in run.model.parameters():
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
        data = step_data(ts.trace_training_step(run, train_step), None)
    assert run.dtype == torch.bfloat16
    for weight in data["weights"]:
        assert weight["sum"] == pytest.approx(weight["update"]["gradient"], rel=0.03), weight["name"]
