"""One training step, taken apart: the loss of each token, the gradient on its way back, the update of each weight.

trace_training_step() takes the step with the run's own code and keeps what passes by: hooks on the modules see the
input of each matrix and the gradient of its output, and the weights and the optimizer's state are copied before and
after. It leaves the run as it was before the step, so the questions below can be asked of the same step repeatedly.

Shapes use the notation of model/layers.py, with N = B T tokens in the batch. Gradients are those before clipping.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.gpt import GPT
from model.layers import Linear
from model.training.muon import muon_update, update_scale
from model.training.run import Run
from model.training.schedule import learning_rate_at

CHUNK = 4096  # tokens whose logits are computed at once
RATE_AFTER_THE_END = 0.1  # fraction of the peak learning rates where the run is over and has no rate left


@dataclass(frozen=True)
class TrainingStep:
    """What a step computed. `before` and `after` are copies of Optimizer.tensors(): all weights, the moving means of
    gradients and of their squares, and the number of steps."""

    run: Run
    fraction: float  # of the peak learning rates
    inputs: Tensor  # (B, T)
    targets: Tensor  # (B, T)
    loss: float  # nats per token
    norm: float  # of the whole gradient
    streams: Tensor  # (L + 1, N, C) gradient of the residual stream: of the embedding, and after each layer
    products: dict[str, tuple[Tensor, Tensor]]  # per matrix: its input (N, in), and the gradient of its output (N, out)
    features: Tensor  # (N, C) what the head multiplies
    gradients: dict[str, Tensor]  # of each parameter
    before: list[Tensor]
    after: list[Tensor]
    random_state: tuple  # of the CPU's generator, and of the GPU's where the run is there

    @property
    def clipped_to(self) -> float:
        """The factor by which clipping shortened the gradient; 1 if it was short enough."""
        limit = self.run.settings.grad_clip
        return min(1.0, limit / (self.norm + 1e-6)) if limit > 0 else 1.0

    def offset(self, name: str, row: int = 0, column: int = 0) -> int:
        """The position of an element of a parameter in the optimizer's vectors."""
        weight = self.run.model.get_parameter(name)
        return weight.storage_offset() + row * weight.size(-1) + column

    def weight(self, name: str, of: list[Tensor]) -> Tensor:
        """A parameter as it is in `before` or `after`."""
        weight = self.run.model.get_parameter(name)
        return of[0][self.offset(name) :][: weight.numel()].view_as(weight)


def trace_training_step(run: Run, train_step: Callable) -> TrainingStep:
    """Take the run's next step and take it back."""
    optimizer, settings = run.optimizer, run.settings
    scheduled = learning_rate_at(run.step, run.max_steps, settings.warmup_steps, settings.decay_fraction)
    fraction = scheduled if scheduled > 0 else RATE_AFTER_THE_END
    before, random_state = [tensor.clone() for tensor in optimizer.tensors()], generator_states(run)
    inputs, targets = run.batches(run.step)
    with watched(run.model) as seen:
        rate = torch.full((), fraction, device=run.device)
        loss, norm = train_step(run, run.model.loss, optimizer.step, inputs, targets, rate)
    after = [tensor.clone() for tensor in optimizer.tensors()]
    gradients = {name: p.grad.clone() for name, p in run.model.named_parameters()}
    values = {name: torch.cat(outputs).flatten(0, 1).detach() for name, outputs in seen["input"].items()}
    slopes = {name: torch.cat([y.grad for y in outputs]).flatten(0, 1) for name, outputs in seen["output"].items()}
    names = ["embedding", *(f"blocks.{i}" for i in range(len(run.model.blocks)))]
    streams = torch.stack([slopes.pop(name).float() for name in names])
    products = {f"{name}.weight": (values[name], slopes[name]) for name in slopes}
    step = TrainingStep(
        run, fraction, inputs, targets, loss.item(), norm.item(), streams, products, values["norm"], gradients,
        before, after, random_state,
    )  # fmt: skip
    for gradient in gradients.values():
        gradient.div_(step.clipped_to)
    put_back(step)
    return step


@contextmanager
def watched(model: GPT) -> Iterator[dict[str, dict[str, list[Tensor]]]]:
    """Keep what passes through the modules while the block runs, one tensor per micro-batch: "input" of the matrices in
    the blocks, and of the head as "norm"; "output" of those matrices, the embedding and the blocks, whose .grad a
    backward pass fills."""
    seen, hooks = {"input": defaultdict(list), "output": defaultdict(list)}, []

    for name, module in model.blocks.named_modules(prefix="blocks"):
        if isinstance(module, Linear):
            hooks += [module.register_forward_pre_hook(lambda _, x, name=name: seen["input"][name].append(x[0]))]
        if isinstance(module, Linear) or name.count(".") == 1:
            hooks += [module.register_forward_hook(lambda _, x, y, name=name: keep(seen, name, y))]
    hooks += [model.embedding.register_forward_hook(lambda _, x, y: keep(seen, "embedding", y))]
    hooks += [model.norm.register_forward_hook(lambda _, x, y: seen["input"]["norm"].append(y))]
    yield seen
    for hook in hooks:
        hook.remove()


def keep(seen: dict, name: str, output: Tensor) -> None:
    output.retain_grad()
    seen["output"][name].append(output)


def generator_states(run: Run) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(run.device) if run.device.type == "cuda" else None


def put_back(step: TrainingStep, tensors: list[Tensor] | None = None) -> None:
    """Give the run the weights, optimizer's state and random numbers from before the step, or other `tensors`. The
    gradients stay those of the step, clipped."""
    for tensor, was in zip(step.run.optimizer.tensors(), tensors or step.before, strict=True):
        tensor.copy_(was)
    of_cpu, of_gpu = step.random_state
    torch.set_rng_state(of_cpu)
    if of_gpu is not None:
        torch.cuda.set_rng_state(of_gpu, step.run.device)


# === the loss =========================================================================================================


@torch.no_grad()
def losses_of(model: GPT, inputs: Tensor, targets: Tensor, micro_batches: int = 1) -> tuple[Tensor, Tensor]:
    """-ln p of each target (B, T), in nats and in fp64, and the likeliest token at its place (B, T)."""
    losses, best = [], []
    for x, y in zip(inputs.chunk(micro_batches), targets.chunk(micro_batches), strict=True):
        for features, target in zip(
            model.features(x).flatten(0, 1).split(CHUNK), y.flatten().split(CHUNK), strict=True
        ):
            logits = model.head(features).float()
            losses.append(F.cross_entropy(logits, target, reduction="none").cpu().double())
            best.append(logits.argmax(-1))
    return torch.cat(losses).view(inputs.shape), torch.cat(best).view(inputs.shape)


def batch_predictions(step: TrainingStep, tensors: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """losses_of() the batch with the weights before the step, or with others. Dropout drops what it dropped in the
    step."""
    put_back(step, tensors)
    found = losses_of(step.run.model, step.inputs, step.targets, step.run.settings.accumulate)
    put_back(step)
    return found


# === one weight =======================================================================================================


def contributions(step: TrainingStep, name: str, row: int, column: int) -> tuple[Tensor, Tensor]:
    """Why the gradient of a matrix's weight is what it is: for y = W x, the gradient of W[row, column] is the sum over
    all tokens of x[column], which the weight multiplies, times the gradient of y[row]. Returns both, (N) each.

    Of the embedding, x is 1 for the tokens whose row it is, else 0. A tied head gives 2 N: the embedding's N first.
    """
    model, inputs, targets = step.run.model, step.inputs.flatten(), step.targets.flatten()
    if name in step.products:
        x, dy = step.products[name]
        return x[:, column].float(), dy[:, row].float()
    x, dy = [], []
    if name == "embedding.weight":
        x, dy = [(inputs == row).float()], [step.streams[0, :, column]]
    if model.get_parameter(name) is model.head.weight:
        head = step.weight(name, step.before).to(model.head.compute)
        p = torch.cat(
            [(part.to(head.dtype) @ head.T).float().softmax(-1)[:, row] for part in step.features.split(CHUNK)]
        )
        x += [step.features[:, column].to(head.dtype).float()]
        dy += [(p - (targets == row).float()) / len(p)]
    return torch.cat(x), torch.cat(dy)


def slope_by_nudging(step: TrainingStep, name: str, row: int, column: int, nudge: float) -> float:
    """The gradient of a weight without any calculus: (loss with the weight + nudge - loss with weight - nudge) / (2
    nudge), the central difference. The losses of the tokens are subtracted one by one, which rounds least."""
    at, losses = step.offset(name, row, column), []
    for by in (nudge, -nudge):
        weights = step.before[0].clone()
        weights[at] += by
        losses.append((batch_predictions(step, [weights, *step.before[1:]])[0], weights[at].item()))
    (above, high), (below, low) = losses
    return (above - below).mean().item() / (high - low)


def agreeing_digits(a: float, b: float) -> int:
    """How many leading digits two numbers share, about: 1.2345 and 1.2349 share 3."""
    if a == b:
        return 7
    return max(0, min(7, math.floor(-math.log10(abs(a - b) / max(abs(a), abs(b))))))


def strongest_weight(step: TrainingStep, name: str) -> tuple[int, int]:
    """The element of a matrix with the largest gradient."""
    gradient = step.gradients[name]
    return divmod(gradient.abs().argmax().item(), gradient.size(1))


# === the update =======================================================================================================


def is_muons(step: TrainingStep, name: str) -> bool:
    return step.offset(name) < step.run.optimizer.n_hidden


def decays(step: TrainingStep, name: str) -> bool:
    """Whether weight decay pulls at this parameter: at Muon's matrices and the head."""
    return is_muons(step, name) or step.offset(name) >= len(step.before[0]) - step.run.optimizer.n_output


def update_of(step: TrainingStep, name: str, row: int, column: int) -> dict[str, float]:
    """The update of one weight in numbers: the terms of Optimizer.step(), and the weight before and after."""
    settings, at, muon = step.run.settings, step.offset(name, row, column), is_muons(step, name)
    peak = settings.muon_rate if muon else settings.learning_rate
    numbers = {
        "weight": step.before[0][at].item(),
        "gradient": step.gradients[name][row, column].item(),
        "clipped": step.gradients[name][row, column].item() * step.clipped_to,
        "rate": step.fraction * peak,
        "decay": settings.weight_decay if decays(step, name) else 0.0,
        "mean_before": step.before[1][at].item(),
        "mean": step.after[1][at].item(),
        "after": step.after[0][at].item(),
    }
    if muon:
        direction, orthogonal = directions(step, name)
        numbers["direction"], numbers["orthogonal"] = direction[row, column].item(), orthogonal[row, column].item()
        numbers["scale"] = update_scale(*matrix_shape(step, name))
        return numbers
    steps = step.after[3].item()
    numbers["square_before"], numbers["square"] = (
        s[2][at - step.run.optimizer.n_hidden].item() for s in (step.before, step.after)
    )
    numbers["mean_scale"], numbers["square_scale"] = 1 - settings.beta1**steps, 1 - settings.beta2**steps
    numbers["direction"] = (
        numbers["mean"] / numbers["mean_scale"] / (math.sqrt(numbers["square"] / numbers["square_scale"]) + 1e-8)
    )
    return numbers


def matrix_shape(step: TrainingStep, name: str) -> tuple[int, int]:
    """The shape of the matrices that are stacked in one of Muon's weights."""
    weights = {id(weight): fused for weight, fused in step.run.model.hidden_matrices()}
    rows, columns = step.run.model.get_parameter(name).shape
    return rows // weights[id(step.run.model.get_parameter(name))], columns


@torch.no_grad()
def directions(step: TrainingStep, name: str) -> tuple[Tensor, Tensor]:
    """What Muon makes of one of its weights' gradient: the look-ahead of momentum, and the same orthogonalised, both in
    the shape of the weight."""
    optimizer, shape = step.run.optimizer, matrix_shape(step, name)
    mean = step.before[1][step.offset(name) :][: step.gradients[name].numel()].view_as(step.gradients[name]).clone()
    direction = muon_update(step.gradients[name] * step.clipped_to, mean, optimizer.settings.momentum)
    orthogonal = optimizer.orthogonalise(direction.view(-1, *shape).to(optimizer.dtype)).float()
    return direction, orthogonal.reshape(direction.shape)


def singular_values(step: TrainingStep, name: str) -> tuple[Tensor, Tensor]:
    """The singular values (k, min(m, n)) of the k matrices in one of Muon's weights, largest first: of the direction
    before and after orthogonalising."""
    shape = matrix_shape(step, name)
    before, after = (torch.linalg.svdvals(matrix.view(-1, *shape).cpu()) for matrix in directions(step, name))
    return before, after


# === what it bought ===================================================================================================


def updated(step: TrainingStep, times: float) -> list[Tensor]:
    """The optimizer's tensors after the same step at `times` its learning rates."""
    put_back(step)
    step.run.optimizer.step(torch.full((), step.fraction * times, device=step.run.device))
    tensors = [tensor.clone() for tensor in step.run.optimizer.tensors()]
    put_back(step)
    return tensors


def rate_curve(
    step: TrainingStep, multiples: list[float], inputs: Tensor, targets: Tensor
) -> list[tuple[float, float]]:
    """What the step would have come to at multiples of its learning rates: the loss of its batch, and of other tokens
    (B, T) without dropout. Not finite where the model broke."""
    curve = []
    for times in multiples:
        tensors = updated(step, times)
        losses = batch_predictions(step, tensors)[0], other_losses(step, inputs, targets, tensors)
        curve.append(tuple(each.mean().item() for each in losses))
    return curve


def other_losses(step: TrainingStep, inputs: Tensor, targets: Tensor, tensors: list[Tensor] | None = None) -> Tensor:
    """The loss of each of some tokens that are not in the batch, (B, T), without dropout."""
    put_back(step, tensors)
    step.run.model.eval()
    losses, _ = losses_of(step.run.model, inputs, targets)
    step.run.model.train()
    put_back(step)
    return losses
