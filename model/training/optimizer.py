"""The update: Muon for the matrices inside the blocks, AdamW for all other weights, and the learning rate over a run.

All weights are laid one behind the other in one long vector, and so are their gradients; each parameter and its .grad
become views into them. So AdamW is a handful of operations, however many layers there are, and the matrices of equal
shape lie in stacks, which Muon orthogonalises with one batched product each:

    [ (C, C) matrices | (hidden, C) matrices | (C, hidden) matrices | norms, embedding | head ]
      `------------------------ Muon ----------------------------'   `-------- AdamW -------'
"""

import torch
from torch import Tensor, nn

from model.training.muon import muon_update, orthogonalise, update_scale


class Optimizer:
    """Muon and AdamW on the weights of a GPT. Make it when the model is on its device.

    Between zero_grad() and step() comes loss.backward(), which adds to the gradients in place. Whatever changes from
    step to step is a tensor on the device, so that a GPU never waits for Python. `dtype` is the precision of Muon's
    products, `orthogonalise` what does them (several processes share them out: distributed.py).
    """

    def __init__(
        self,
        model: nn.Module,
        learning_rate,
        muon_rate,
        weight_decay,
        beta1,
        beta2,
        momentum,
        dtype=torch.float32,
        orthogonalise=orthogonalise,
    ):
        self.dtype, self.orthogonalise = dtype, orthogonalise
        self.learning_rate, self.muon_rate, self.weight_decay = learning_rate, muon_rate, weight_decay
        self.beta1, self.beta2, self.momentum = beta1, beta2, momentum
        self.arrange(model)

    def arrange(self, model: nn.Module) -> None:
        stacks, others, heads = parameter_layout(model)
        hidden = [weight for stack in stacks.values() for weight in stack]
        self.weights, self.grads = flatten(hidden + others + heads)
        self.shapes = [(sum(w.numel() for w in stack) // (m * n), m, n) for (m, n), stack in stacks.items()]
        self.n_hidden = sum(w.numel() for w in hidden)  # Muon's, the rest is AdamW's
        self.n_head = sum(w.numel() for w in heads)
        self.mean = torch.zeros_like(self.weights)  # moving mean of the gradients, for both
        self.square = torch.zeros_like(self.weights[self.n_hidden :])  # of their squares, for AdamW
        self.steps = torch.zeros((), device=self.weights.device)

    def tensors(self) -> list[Tensor]:
        """All that step() changes: the weights, and what is remembered."""
        return [self.weights, self.mean, self.square, self.steps]

    def zero_grad(self) -> None:
        self.grads.zero_()

    def clip(self, limit: float) -> Tensor:
        """Scale all gradients down to at most this norm together (0: not at all). Returns the norm before, 0-dim."""
        norm = torch.linalg.vector_norm(self.grads)
        if limit > 0:
            self.grads.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @torch.no_grad()
    def step(self, fraction: Tensor) -> None:
        """Move the weights, at this fraction (0-dim, on the device) of the peak rates (learning_rate_at)."""
        self.steps += 1
        n = self.n_hidden
        self._muon(self.weights[:n], self.grads[:n], self.mean[:n], fraction * self.muon_rate)
        rate = fraction * self.learning_rate
        if self.n_head:
            self.weights[-self.n_head :].mul_(1 - rate * self.weight_decay)
        self.adamw(self.weights[n:], self.grads[n:], self.mean[n:], self.square, rate)

    def _muon(self, weights: Tensor, grads: Tensor, mean: Tensor, rate: Tensor) -> None:
        weights.mul_(1 - rate * self.weight_decay)
        update = muon_update(grads, mean, self.momentum)
        sizes = [k * m * n for k, m, n in self.shapes]
        for weight, part, shape in zip(weights.split(sizes), update.split(sizes), self.shapes, strict=True):
            orthogonal = self.orthogonalise(part.view(shape).to(self.dtype)).to(weight.dtype)
            weight.view(shape).addcmul_(orthogonal, rate, value=-update_scale(*shape[1:]))

    def adamw(self, weights: Tensor, grads: Tensor, mean: Tensor, square: Tensor, rate: Tensor) -> None:
        """Loshchilov and Hutter 2017, Decoupled Weight Decay Regularization (arXiv:1711.05101), algorithm 2, after the
        decay: of these weights, only the head decays. Norm weights have their place at 1, not at 0, and an embedding
        row whose token is rare would decay at every step and learn at few.
        """
        mean.lerp_(grads, 1 - self.beta1)
        square.mul_(self.beta2).addcmul_(grads, grads, value=1 - self.beta2)
        mean_scale, square_scale = 1 - self.beta1**self.steps, 1 - self.beta2**self.steps  # both began at zero
        root = square.sqrt().mul_(square_scale.rsqrt()).add_(1e-8)
        weights.addcdiv_(mean, root.mul_(mean_scale / rate), value=-1)

    def state_dict(self) -> dict:
        return {"mean": self.mean, "square": self.square, "steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


def parameter_layout(model: nn.Module) -> tuple[dict[tuple[int, int], list[Tensor]], list[Tensor], list[Tensor]]:
    """The weights in the order in which they are laid: Muon's in stacks by (m, n), fused weights counting as the
    matrices they hold; others; the head, unless it is the embedding."""
    stacks: dict[tuple[int, int], list[Tensor]] = {}
    for weight, parts in model.hidden_matrices():
        stacks.setdefault((weight.size(0) // parts, weight.size(1)), []).append(weight)
    heads = [model.head.weight] if model.head.weight is not model.embedding.weight else []
    taken = {id(weight) for weight in (*heads, *(weight for stack in stacks.values() for weight in stack))}
    return stacks, [weight for weight in model.parameters() if id(weight) not in taken], heads


def flatten(parameters: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Lay parameters into one vector (total,), and zeroed gradients into another. Each parameter and its gradient are
    views of them from then on.
    """
    values = torch.cat([p.detach().reshape(-1) for p in parameters])
    grads = torch.zeros_like(values)
    sizes = [p.numel() for p in parameters]
    for p, value, grad in zip(parameters, values.split(sizes), grads.split(sizes), strict=True):
        p.data, p.grad = value.view_as(p), grad.view_as(p)
    return values, grads


def learning_rate_at(step: int, max_steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """The learning rate of a step, counted from 0, as a fraction of its peak: a linear climb, a plateau, a linear fall
    to zero at max_steps.

    The last `decay_fraction` of the run falls; where climb and fall would meet in a short run, the lower one holds.
    """
    climb = (step + 1) / (warmup_steps + 1)
    fall = (max_steps - step) / max(1.0, decay_fraction * max_steps)
    return min(1.0, climb, fall)
