"""Training one model with several processes, as torchrun starts them.

    torchrun --standalone --nproc_per_node=4 train.py

Each process runs all of train.py on its own device. It computes its own rows of every batch, then the gradients are
averaged over all processes, so all of them take the same step. Only the first process prints and writes. Whatever
depends on a clock, a file or a signal is decided by the first process, or by all of them together: processes that do
not make the same calls in the same order wait for each other forever.

Without torchrun there is one process, the first, and every function here does the obvious thing.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from model.gpt import GPT
from model.training.muon import orthogonalise
from plumbing.errors import UsageError, UserError

# === which process is this? ===========================================================================================


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_first() -> bool:
    return rank() == 0


def local_rank() -> int:
    """Number of this process among those of its machine, which is also the number of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if world_size() > 1 else 0


def restart_count() -> int:
    """How often torchrun has restarted this run after a process died (--max-restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def own_device(name: str) -> str:
    """The name of this process's device. Of several processes, each has its own GPU, or all use the CPU."""
    if world_size() == 1 or name == "cpu":
        return name
    if name not in ("auto", "cuda"):
        raise UsageError(f"With several processes, --device is auto, cpu or cuda (one GPU for each), not {name!r}.")
    return f"cuda:{local_rank()}" if name == "cuda" or torch.cuda.is_available() else "cpu"


# === start and end ====================================================================================================

STARTED_BY_TORCHRUN = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Around a training: connect the processes that torchrun started.

    Only the first process prints. If all processes run into the same error, the first one reports it. An error in one
    process ends that process, and torchrun ends the others; if the first survives another one, it says so.
    """
    if not os.environ.keys() >= STARTED_BY_TORCHRUN:
        yield
        return
    connect(on_gpus=device != "cpu" and torch.cuda.is_available())
    try:
        with nullcontext() if is_first() else silenced():
            # Wait until all are connected: a process that ended at once would leave others waiting for its address.
            dist.all_reduce(torch.zeros(1))
            yield
    except Exception as error:
        if not is_first():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(2)  # if the first process failed as well, torchrun ends this one now
        if isinstance(error, UserError) and not is_first():
            raise type(error)(f"Process {rank()}: {error}") from None
        if is_lost_connection(error):
            raise UserError(
                "Another process of this run has ended, so the training cannot continue. Announced checkpoints are "
                "safe: the same command resumes from the newest. torchrun --max-restarts=3 ... does so by itself."
            ) from None
        raise
    dist.destroy_process_group()


def connect(on_gpus: bool) -> None:
    """Join the process group. NCCL carries what is on GPUs, gloo everything else."""
    store, own_rank, processes = next(rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        # After a restart, torchrun's store still has the old processes' addresses (pytorch/pytorch#135712), so each
        # start gets its own prefix. Machines may count restarts differently: docs/scaling.md has a variable for that.
        store = dist.PrefixStore(f"start {restart_count()}", store)
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=processes)
    if on_gpus and local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())


@contextmanager
def silenced() -> Iterator[None]:
    with open(os.devnull, "w", encoding="utf-8") as discard, redirect_stdout(discard), redirect_stderr(discard):
        yield


def is_lost_connection(error: Exception) -> bool:
    """Whether this is an error of communicating with a process that no longer exists."""
    signs = ("gloo/transport", "Connection closed", "Connection reset", "Broken pipe")
    told = isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    return told or isinstance(error, dist.DistError)


# === agreement ========================================================================================================


def broadcast(value):
    """The first process's value, in all processes. Any plain value."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, 0)
    return values[0]


def broadcast_checkpoint(content: dict | None) -> dict | None:
    """broadcast() for the content of a checkpoint, without the numbers in its large tensors: but for the first process
    these are on the device "meta", which has shapes only. from_first() fetches one when it is needed."""
    if world_size() == 1:
        return content
    shapes = None
    if content is not None:
        keys = "model", "optimizer"
        shapes = content | {key: {name: t.to("meta") for name, t in content[key].items()} for key in keys}
    received = broadcast(shapes)
    return content if is_first() else received


def from_first(tensor: Tensor) -> Tensor:
    """The first process's tensor, in CPU memory. The others know its shape."""
    if world_size() > 1:
        tensor = tensor if is_first() else torch.empty_like(tensor, device="cpu")
        dist.broadcast(tensor, 0)
    return tensor


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return sum_over_processes(flag)[0] > 0


def wait_for_all() -> None:
    """Return when all processes have reached this line."""
    sum_over_processes(0)


def sum_over_processes(*numbers: float) -> list[float]:
    """The sum of each number over all processes."""
    sums = torch.tensor(numbers, dtype=torch.float64)
    if world_size() > 1:
        dist.all_reduce(sums)
    return sums.tolist()


def mean_over_processes(number: Tensor) -> Tensor:
    """The mean of a tensor over all processes."""
    if world_size() > 1:
        number = number.clone()
        dist.all_reduce(number)
    return number / world_size()


# === dividing the work ================================================================================================


def batch_rows(batch_size: int) -> slice:
    """The rows of a batch that this process computes: the same number for each process, in the order of their ranks."""
    count = batch_size // world_size()
    return slice(rank() * count, (rank() + 1) * count)


def seed_random_numbers(seed: int, step: int) -> None:
    """With several processes, seed dropout before each step from (seed, step, rank): each process drops different
    activations, and a resumed run drops the same ones as if it had never stopped."""
    if world_size() > 1:
        torch.manual_seed(int(np.random.SeedSequence((seed, step, rank())).generate_state(1, np.uint64)[0]))


def orthogonalise_together(matrices: Tensor) -> Tensor:
    """muon.orthogonalise() of a stack (k, m, n) that all processes have. Each computes some matrices and receives the
    others."""
    if world_size() == 1:
        return orthogonalise(matrices)
    count = -(-len(matrices) // world_size())
    own = matrices[rank() * count : (rank() + 1) * count]
    padded = matrices.new_zeros(count, *matrices.shape[1:])  # the last processes may have fewer matrices, or none
    if len(own):
        padded[: len(own)] = orthogonalise(own)
    result = matrices.new_empty(count * world_size(), *matrices.shape[1:])
    dist.all_gather_into_tensor(result, padded)
    return result[: len(matrices)]


def average(vector: Tensor) -> None:
    """Replace a vector by its mean over all processes."""
    if world_size() > 1:
        dist.all_reduce(vector)
        vector /= world_size()


# === a shard of the weights in each process ===========================================================================


def shard_model(whole: GPT, device: torch.device) -> GPT:
    """The model with its shard of every weight (a slice of its rows) in each process, on the device. A block's weights
    are gathered before it computes and freed afterwards: fully_shard, once for each block and once for the rest. Only
    the first process needs the `whole` model; elsewhere it may be on the device "meta".

    Zhao et al. 2023, PyTorch FSDP (arXiv:2304.11277); Rajbhandari et al. 2019, ZeRO (arXiv:1910.02054), stage 3.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    with torch.device("meta"):
        model = GPT(**whole.architecture)
    mesh = init_device_mesh(device.type, (world_size(),))
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh)
        if device.type == "cpu":  # gloo can sum but not average
            module.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(model, "loss")
    model.to_empty(device=device)
    model.cos.copy_(whole.cos)
    model.sin.copy_(whole.sin)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, whole.state_dict() if is_first() else {}, options=options)
    # The first unshard() allocates buffers. If that happened during an evaluation, under inference_mode(), training
    # could not use them.
    for module in (*model.blocks, model):
        module.unshard()
        module.reshard()
    return model


def gather_weights(model: GPT) -> dict[str, Tensor]:
    """The model's state_dict. If the model is sharded, all processes must call this; the first gets everything, in CPU
    memory, and the others get nothing."""
    if not model.is_sharded:
        return model.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
