"""Several processes that train one model together, as torchrun starts them: who does what, and how they agree.

    torchrun --standalone --nproc_per_node=4 train.py

Each process runs train.py from its first line to its last and has a device of its own. Of every batch it computes the
rows of its rank; then the gradients are averaged over all processes, so that all of them take the same step. Only the
first one prints and writes. What depends on a clock, a file or a signal, the first decides for all, or all decide
together: processes that do not do the same things in the same order wait for each other for ever.

Without torchrun there is one process, which is the first, and every function here says or does the obvious.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from model.gpt import GPT
from model.training.muon import orthogonalise
from plumbing.errors import UsageError, UserError

# === who ==============================================================================================================


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if size() > 1 else 0


def first() -> bool:
    return rank() == 0


def local_rank() -> int:
    """Number of this process among those of its machine, which is the number of its GPU, too."""
    return int(os.environ["LOCAL_RANK"]) if size() > 1 else 0


def restarts() -> int:
    """How often torchrun has started this process again after one had died (--max-restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def own_device(name: str) -> str:
    """The name of this process's device: with several processes, the GPU of its number, or the CPU for all."""
    if size() == 1 or name == "cpu":
        return name
    if name not in ("auto", "cuda"):
        raise UsageError(f"With several processes, --device is auto, cpu or cuda (each its own GPU), not {name!r}.")
    return f"cuda:{local_rank()}" if name == "cuda" or torch.cuda.is_available() else "cpu"


# === beginning and end ================================================================================================

STARTED_BY_TORCHRUN = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}


@contextmanager
def together(device: str) -> Iterator[None]:
    """Around a training: join the processes that torchrun has started. NCCL carries what is on GPUs, gloo the rest.

    All but the first are silent. An error that all of them run into, the first one tells. An error of one process ends
    it, and so the run, because torchrun ends the others; where the first outlives another, it says what has happened.
    """
    if not os.environ.keys() >= STARTED_BY_TORCHRUN:
        yield
        return
    on_gpus = device != "cpu" and torch.cuda.is_available()
    store, number, processes = next(rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        # After a restart, torchrun's store still says where the processes of before could be reached
        # (pytorch/pytorch#135712). Machines do not count restarts alike: for several, the README names a variable.
        store = dist.PrefixStore(f"start {restarts()}", store)
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=processes)
    if on_gpus and local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    try:
        with nullcontext() if first() else silence():
            # None begins before all are connected: one that ended at once would leave others waiting for its address.
            dist.all_reduce(torch.zeros(1))
            yield
    except Exception as error:
        if not first():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(2)  # if the first one has failed as well, torchrun ends this process here
        if isinstance(error, UserError) and not first():
            raise type(error)(f"Process {rank()}: {error}") from None
        if of_a_lost_process(error):
            raise UserError(
                "Another process of this run has ended, and without it there is no going on. Announced checkpoints are "
                "safe: the same command goes on from the newest; torchrun --max-restarts=3 ... does so by itself."
            ) from None
        raise
    dist.destroy_process_group()


@contextmanager
def silence() -> Iterator[None]:
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def of_a_lost_process(error: Exception) -> bool:
    """Whether an error is what waiting for a process gives that is there no more."""
    signs = ("gloo/transport", "Connection closed", "Connection reset", "Broken pipe")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    )


# === agreeing =========================================================================================================


def of_first(value):
    """What the first process has for this, on all of them: any plain value."""
    if size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]


def checkpoint_of_first(content: dict | None) -> dict | None:
    """of_first() for the content of a checkpoint, whose tensors are sent one by one."""
    if size() == 1:
        return content
    shapes = content and {
        key: {name: t.to("meta") for name, t in part.items()} if key in ("model", "optimizer") else part
        for key, part in content.items()
    }
    shapes = of_first(shapes)
    if shapes is None:
        return None
    if not first():
        content = shapes | {
            key: {name: torch.empty_like(t, device="cpu") for name, t in shapes[key].items()}
            for key in ("model", "optimizer")
        }
    for key in ("model", "optimizer"):
        for tensor in content[key].values():
            dist.broadcast(tensor, 0)
    return content


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if size() == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def wait_for_all() -> None:
    """Return when all processes have come to this line."""
    any_of(False)


def total(*numbers: float) -> list[float]:
    """The sum over all processes of each number."""
    sums = torch.tensor(numbers, dtype=torch.float64)
    if size() > 1:
        dist.all_reduce(sums)
    return sums.tolist()


def mean(number: Tensor) -> Tensor:
    """The mean over all processes of a 0-dim tensor."""
    if size() > 1:
        number = number.clone()
        dist.all_reduce(number)
    return number / size()


# === sharing the work =================================================================================================


def rows(batch_size: int) -> slice:
    """The rows of a batch that this process computes: as many as any other's, in the order of the ranks."""
    each = batch_size // size()
    return slice(rank() * each, (rank() + 1) * each)


def seed_random_numbers(seed: int, step: int) -> None:
    """Before a step of several processes: the random numbers that dropout draws follow from (seed, step, rank), so
    that no two processes drop the same, and a resumed run goes on as it would have gone."""
    if size() > 1:
        torch.manual_seed(int(np.random.SeedSequence((seed, step, rank())).generate_state(1, np.uint64)[0]))


def orthogonalise_together(matrices: Tensor) -> Tensor:
    """muon.orthogonalise() of a stack (k, m, n) that all processes hold: each does its share, and gets the others'."""
    if size() == 1:
        return orthogonalise(matrices)
    each = -(-len(matrices) // size())
    mine = matrices[rank() * each : (rank() + 1) * each]
    share = matrices.new_zeros(each, *matrices.shape[1:])  # the last processes' may be filled in part, or not at all
    if len(mine):
        share[: len(mine)] = orthogonalise(mine)
    stack = matrices.new_empty(each * size(), *matrices.shape[1:])
    dist.all_gather_into_tensor(stack, share)
    return stack[: len(matrices)]


def averaged(loss_of: Callable, model: GPT) -> tuple[Callable, Callable]:
    """(A loss like loss_of(idx, targets) whose backward() averages the gradients over all processes, a context in which
    it does not and only adds up). The second one is for all but the last piece of a step.

    DistributedDataParallel sends gradients while backward() is still computing others, and puts the means into the
    .grad that is there, which are views of the optimizer's long vector and stay so.
    """
    if size() == 1:
        return loss_of, nullcontext
    if is_sharded(model):  # which averages by itself

        @contextmanager
        def adding_up():
            model.set_requires_gradient_sync(False)
            yield
            model.set_requires_gradient_sync(True)

        return loss_of, adding_up
    where = {"device_ids": [local_rank()]} if model.device.type == "cuda" else {}
    parallel = DistributedDataParallel(Loss(loss_of, model), **where)
    return parallel, parallel.no_sync


class Loss(nn.Module):
    """A loss as the module that DistributedDataParallel wants: the weights, and as forward what is to be computed."""

    def __init__(self, loss_of: Callable, model: GPT):
        super().__init__()
        self.weights, self.forward = nn.ParameterList(model.parameters()), loss_of


# === a part of the weights each =======================================================================================


def shard(model: GPT, device: torch.device) -> None:
    """Leave each process its part of every weight (a slice of its rows), on the device: fully_shard, once for each
    block and once for the rest. Before a block computes, its weights are gathered, and let go after it.

    Zhao et al. 2023, PyTorch FSDP (arXiv:2304.11277); Rajbhandari et al. 2019, ZeRO (arXiv:1910.02054), stage 3.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (size(),))
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh)
        if device.type == "cpu":  # gloo can add, and cannot take the mean
            module.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(model, "loss")
    # The tensors to gather into are made at the first time. In evaluation, under inference_mode(), training could not
    # use them.
    for module in (*model.blocks, model):
        module.unshard()
        module.reshard()


def is_sharded(model: nn.Module) -> bool:
    return hasattr(model, "set_requires_gradient_sync")


def whole_weights(model: GPT) -> dict[str, Tensor]:
    """The state_dict of a model. Of one in parts, the first process gets all of it in the CPU's memory, the others get
    nothing, and all must call."""
    if not is_sharded(model):
        return model.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
