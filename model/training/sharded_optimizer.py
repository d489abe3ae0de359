"""The update of a model in parts (train.py --shard-model): the same as optimizer.py's, where each process holds a slice
of the rows of every weight, of its gradient, and of what the optimizer remembers of it.

AdamW works element by element and does not mind. Muon needs whole matrices: each process takes its slices of the
gradients into their means, then the matrices of equal shape are gathered, orthogonalised in shares, and each process
takes its slices of the result. What the optimizer remembers goes into a checkpoint, and comes out of it, as one whole:
in the order and the shapes of optimizer.py, so a run can be in parts today and tomorrow not.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from model.training.muon import muon_update, update_scale
from model.training.optimizer import Optimizer, parameter_layout


class ShardedOptimizer(Optimizer):
    """As Optimizer, for a model after distributed.shard(). All its methods but zero_grad() are for all processes at
    once."""

    def arrange(self, model: nn.Module) -> None:
        self.stacks, self.others, self.heads = parameter_layout(model)
        self.hidden = [weight for stack in self.stacks.values() for weight in stack]
        self.weights = self.hidden + self.others + self.heads
        self.mean = [torch.zeros_like(weight) for weight in self.weights]
        self.square = [torch.zeros_like(weight) for weight in self.others + self.heads]
        self.steps = torch.zeros((), device=local(self.weights[0]).device)

    def tensors(self) -> list[Tensor]:
        return [*map(local, (*self.weights, *self.mean, *self.square)), self.steps]

    def zero_grad(self) -> None:
        for weight in self.weights:
            weight.grad = None

    def clip(self, limit: float) -> Tensor:
        grads = [local(weight.grad) for weight in self.weights]
        norm = sum(torch.linalg.vector_norm(grad).square() for grad in grads)
        dist.all_reduce(norm)
        norm = norm.sqrt()
        if limit > 0:
            torch._foreach_mul_(grads, (limit / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @torch.no_grad()
    def step(self, fraction: Tensor) -> None:
        self.steps += 1
        mean = iter(self.mean)
        for shape, stack in self.stacks.items():
            self.move_stack(shape, stack, [next(mean) for _ in stack], fraction * self.muon_rate)
        rate = fraction * self.learning_rate
        for weight in self.heads:
            local(weight).mul_(1 - rate * self.weight_decay)
        for weight, square in zip(self.others + self.heads, self.square, strict=True):
            self.adamw(local(weight), local(weight.grad), local(next(mean)), local(square), rate)

    def move_stack(self, shape: tuple[int, int], stack: list[DTensor], means: list[DTensor], rate: Tensor) -> None:
        """Muon, on all matrices of a shape (m, n)."""
        updates = []
        for weight, mean in zip(stack, means, strict=True):
            local(weight).mul_(1 - rate * self.weight_decay)
            update = muon_update(local(weight.grad), local(mean), self.momentum).to(self.dtype)
            updates.append(whole(update, weight).view(-1, *shape))
        orthogonal = self.orthogonalise(torch.cat(updates))
        for weight, matrices in zip(stack, orthogonal.split(list(map(len, updates))), strict=True):
            update = part(matrices.reshape(weight.shape), weight).to(weight.dtype)
            local(weight).addcmul_(update, rate, value=-update_scale(*shape))

    def state_dict(self) -> dict:
        """As Optimizer's, in the CPU's memory."""
        vectors = {"mean": self.mean, "square": self.square}
        whole_ones = {
            name: torch.cat([t.full_tensor().reshape(-1).cpu() for t in parts]) for name, parts in vectors.items()
        }
        return {**whole_ones, "steps": self.steps.cpu()}

    def load_state_dict(self, state: dict) -> None:
        self.steps.copy_(state["steps"])
        for parts, vector in ((self.mean, state["mean"]), (self.square, state["square"])):
            for tensor, piece in zip(parts, vector.split([t.numel() for t in parts]), strict=True):
                local(tensor).copy_(part(piece.view(tensor.shape).to(self.steps.device), tensor))


def local(tensor: DTensor) -> Tensor:
    """This process's rows of a tensor in parts."""
    return tensor.to_local().detach()


def whole(rows: Tensor, like: DTensor) -> Tensor:
    """The whole of a tensor of which each process has its rows, split as `like` is."""
    return DTensor.from_local(
        rows, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    ).full_tensor()


def part(tensor: Tensor, like: DTensor) -> Tensor:
    """This process's rows of a tensor that all processes have, split as `like` is."""
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None).to_local()
