"""The optimizer of a sharded model (train.py --shard-model). The update is that of optimizer.py, but each process holds
only its rows of every weight, of its gradient and of the optimizer's state.

AdamW works element by element, so each process updates its own rows. Muon needs whole matrices: each process updates
the momentum of its rows, the matrices of one shape are gathered, each process orthogonalises some of them and takes its
rows of the result. A checkpoint contains the whole state in the order and shapes of optimizer.py, so a run can resume
with or without --shard-model.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from model.training import distributed
from model.training.muon import muon_update, update_scale
from model.training.optimizer import Optimizer, parameter_layout


class ShardedOptimizer(Optimizer):
    """Optimizer for a model after distributed.shard_model(). All processes must call its methods together."""

    def allocate(self, model: nn.Module) -> None:
        hidden, self.others, self.heads = parameter_layout(model)
        self.members: dict[tuple[int, int], list[int]] = {}  # which of the weights hold matrices of a shape
        for i, (_, shape) in enumerate(hidden):
            self.members.setdefault(shape, []).append(i)
        self.hidden_count = len(hidden)
        self.weights = [weight for weight, _ in hidden] + self.others + self.heads
        self.mean = [torch.zeros_like(weight) for weight in self.weights]
        self.square = [torch.zeros_like(weight) for weight in self.others + self.heads]
        self.steps = torch.zeros((), device=local_rows(self.weights[0]).device)

    def tensors(self) -> list[Tensor]:
        return [*map(local_rows, (*self.weights, *self.mean, *self.square)), self.steps]

    def zero_grad(self) -> None:
        for weight in self.weights:
            weight.grad = None

    def clip(self, limit: float) -> Tensor:
        grads = [local_rows(weight.grad) for weight in self.weights]
        norm = sum(torch.linalg.vector_norm(grad).square() for grad in grads)
        dist.all_reduce(norm)
        norm = norm.sqrt()
        if limit > 0:
            torch._foreach_mul_(grads, (limit / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @torch.no_grad()
    def step(self, fraction: Tensor) -> None:
        self.steps += 1
        for shape, group in self.members.items():
            weights, means = ([tensors[i] for i in group] for tensors in (self.weights, self.mean))
            self.muon_group(shape, weights, means, fraction * self.settings.muon_rate)
        rate = fraction * self.settings.learning_rate
        for weight in self.heads:
            local_rows(weight).mul_(1 - rate * self.settings.weight_decay)
        for weight, mean, square in zip(
            self.others + self.heads, self.mean[self.hidden_count :], self.square, strict=True
        ):
            self.adamw(local_rows(weight), local_rows(weight.grad), local_rows(mean), local_rows(square), rate)

    def muon_group(self, shape: tuple[int, int], group: list[DTensor], means: list[DTensor], rate: Tensor) -> None:
        """Optimizer.muon() for all matrices of one shape (m, n)."""
        updates = []
        for weight, mean in zip(group, means, strict=True):
            local_rows(weight).mul_(1 - rate * self.settings.weight_decay)
            update = muon_update(local_rows(weight.grad), local_rows(mean), self.settings.momentum)
            updates.append(gather_rows(update.to(self.dtype), like=weight).view(-1, *shape))
        orthogonal = self.orthogonalise(torch.cat(updates)).split([len(update) for update in updates])
        for weight, matrices in zip(group, orthogonal, strict=True):
            update = select_rows(matrices.reshape(weight.shape), like=weight).to(weight.dtype)
            local_rows(weight).addcmul_(update, rate, value=-update_scale(*shape))

    def state_dict(self) -> dict:
        """As Optimizer's, in the CPU memory of the first process; the others get nothing."""
        state = {"mean": gather_state(self.mean), "square": gather_state(self.square), "steps": self.steps.cpu()}
        return state if distributed.is_first() else {}

    def load_state_dict(self, state: dict) -> None:
        """Only the first process needs the numbers."""
        self.steps.copy_(distributed.from_first(state["steps"]))
        for tensors, vector in ((self.mean, state["mean"]), (self.square, state["square"])):
            for tensor, values in zip(tensors, vector.split([t.numel() for t in tensors]), strict=True):
                whole = distributed.from_first(values).view(tensor.shape).to(self.steps.device)
                local_rows(tensor).copy_(select_rows(whole, like=tensor))


def local_rows(tensor: DTensor) -> Tensor:
    """This process's rows of a sharded tensor."""
    return tensor.to_local().detach()


def gather_state(tensors: list[DTensor]) -> Tensor | None:
    """The whole tensors, end to end, in the CPU memory of the first process, which needs no more than that."""
    result = torch.empty(sum(tensor.numel() for tensor in tensors)) if distributed.is_first() else None
    begin = 0
    for tensor in tensors:
        whole = tensor.full_tensor()
        if result is not None:
            result[begin : begin + whole.numel()] = whole.flatten()
        begin += whole.numel()
    return result


def gather_rows(rows: Tensor, like: DTensor) -> Tensor:
    """The whole tensor, given this process's rows of it. It is sharded as `like` is."""
    return DTensor.from_local(
        rows, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    ).full_tensor()


def select_rows(tensor: Tensor, like: DTensor) -> Tensor:
    """This process's rows of a tensor that every process has whole, sharded as `like` is."""
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None).to_local()
