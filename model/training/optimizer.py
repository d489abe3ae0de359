"""The optimizer: Muon (muon.py) for the matrices inside the blocks, AdamW for all other weights.

All weights are stored end to end in one long vector, and their gradients in a second one; every parameter and its .grad
are views into these. AdamW is then a handful of operations, however many layers there are:

    [ attention's matrices | (hidden, C) matrices | (C, hidden) matrices | norms, embedding | head ]
      `------------------------------ Muon ---------------------------'   `-------- AdamW -------'

Muon orthogonalises all matrices of one shape in one batched product. The queries, keys and values of a head are
matrices of their own, (D, C): no head's gradient is weighed against another's, and small matrices cost next to nothing.
The report on GLM-5 (2026, "from Vibe Coding to Agentic Engineering") calls it Muon Split. The order is that of
checkpoints from before, when a layer's four matrices (C, C) were neighbours.
"""

import torch
from torch import Tensor, nn

from config import Training
from model.training.muon import muon_update, orthogonalise, update_scale


class Optimizer:
    """Muon and AdamW for a GPT. Create it after the model has moved to its device.

    Call zero_grad(), loss.backward() (which adds to the gradients in place), clip(), step(). Everything that changes
    from step to step is a tensor on the device, so a GPU never waits for Python. `dtype` is the precision of Muon's
    products and `orthogonalise` computes them: with several processes, distributed.orthogonalise_together.
    """

    def __init__(self, model: nn.Module, settings: Training, dtype=torch.float32, orthogonalise=orthogonalise):
        self.settings, self.dtype, self.orthogonalise = settings, dtype, orthogonalise
        self.allocate(model)

    def allocate(self, model: nn.Module) -> None:
        hidden, others, heads = parameter_layout(model)
        self.weights, self.grads = flatten([weight for weight, _ in hidden] + others + heads)
        self.groups: dict[tuple[int, int], list[slice]] = {}  # where in the long vector there are matrices of a shape
        self.n_hidden = 0  # weights of Muon's; AdamW takes the rest
        for weight, shape in hidden:
            begin, self.n_hidden = self.n_hidden, self.n_hidden + weight.numel()
            places = self.groups.setdefault(shape, [])
            if places and places[-1].stop == begin:  # neighbours are one place
                begin = places.pop().start
            places.append(slice(begin, self.n_hidden))
        self.n_output = sum(w.numel() for w in heads)
        self.mean = torch.zeros_like(self.weights)  # moving mean of the gradients, for Muon and AdamW
        self.square = torch.zeros_like(self.weights[self.n_hidden :])  # moving mean of their squares, for AdamW
        self.steps = torch.zeros((), device=self.weights.device)

    def tensors(self) -> list[Tensor]:
        """Everything that step() changes: the weights and the optimizer's state."""
        return [self.weights, self.mean, self.square, self.steps]

    def zero_grad(self) -> None:
        self.grads.zero_()

    def clip(self, limit: float) -> Tensor:
        """Scale all gradients so that their joint norm is at most `limit` (0: off). Returns the norm before, 0-dim."""
        norm = torch.linalg.vector_norm(self.grads)
        if limit > 0:
            self.grads.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @torch.no_grad()
    def step(self, fraction: Tensor) -> None:
        """Update the weights at this fraction (0-dim, on the device) of the peak learning rates (schedule.py)."""
        self.steps += 1
        n = self.n_hidden
        self.muon(self.weights[:n], self.grads[:n], self.mean[:n], fraction * self.settings.muon_rate)
        rate = fraction * self.settings.learning_rate
        if self.n_output:
            self.weights[-self.n_output :].mul_(1 - rate * self.settings.weight_decay)
        self.adamw(self.weights[n:], self.grads[n:], self.mean[n:], self.square, rate)

    def muon(self, weights: Tensor, grads: Tensor, mean: Tensor, rate: Tensor) -> None:
        """Weight decay, momentum, then an orthogonalised update for all matrices of a shape (m, n) at once."""
        weights.mul_(1 - rate * self.settings.weight_decay)
        update = muon_update(grads, mean, self.settings.momentum).to(self.dtype)
        for shape, places in self.groups.items():
            directions = [update[at].view(-1, *shape) for at in places]  # (k, m, n) each
            orthogonal = self.orthogonalise(torch.cat(directions)).to(weights.dtype).split([len(d) for d in directions])
            for at, matrices in zip(places, orthogonal, strict=True):
                weights[at].view(-1, *shape).addcmul_(matrices, rate, value=-update_scale(*shape))

    def adamw(self, weights: Tensor, grads: Tensor, mean: Tensor, square: Tensor, rate: Tensor) -> None:
        """Loshchilov and Hutter 2017 (arXiv:1711.05101), algorithm 2, without the decay. Of these weights only the head
        decays, in step(): norm weights belong near 1, and the embedding of a rare token would decay at every step but
        learn only when the token occurs."""
        beta1, beta2 = self.settings.beta1, self.settings.beta2
        mean.lerp_(grads, 1 - beta1)
        square.mul_(beta2).addcmul_(grads, grads, value=1 - beta2)
        mean_scale, square_scale = 1 - beta1**self.steps, 1 - beta2**self.steps  # bias correction: both start at zero
        root = square.sqrt().mul_(square_scale.rsqrt()).add_(1e-8)
        weights.addcdiv_(mean, root.mul_(mean_scale / rate), value=-1)

    def state_dict(self) -> dict:
        return {"mean": self.mean, "square": self.square, "steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


def parameter_layout(model: nn.Module) -> tuple[list[tuple[Tensor, tuple[int, int]]], list[Tensor], list[Tensor]]:
    """The parameters in the order of the long vector: the hidden ones, each with the shape (m, n) of the matrices that
    are stacked in it; all others; the head. A head tied to the embedding is left out."""
    hidden = [(weight, (weight.size(0) // stacked, weight.size(1))) for weight, stacked in model.hidden_matrices()]
    heads = [model.head.weight] if model.head.weight is not model.embedding.weight else []
    placed = {id(weight) for weight in (*heads, *(weight for weight, _ in hidden))}
    return hidden, [weight for weight in model.parameters() if id(weight) not in placed], heads


def flatten(parameters: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Copy the parameters into one vector (total,) and make a zeroed vector for the gradients. From then on, each
    parameter and its gradient are views into these."""
    values = torch.cat([p.detach().reshape(-1) for p in parameters])
    grads = torch.zeros_like(values)
    sizes = [p.numel() for p in parameters]
    for p, value, grad in zip(parameters, values.split(sizes), grads.split(sizes), strict=True):
        p.data, p.grad = value.view_as(p), grad.view_as(p)
    return values, grads
