"""Before a training starts: what it will take, in memory, arithmetic and time, and whether the data suffice."""

import torch
from torch import Tensor

from model.gpt import GPT
from model.training import distributed
from model.training.optimizer import Optimizer
from plumbing.text import bar, duration

TOKENS_A_PARAMETER = 20  # Hoffmann et al. 2022, Training Compute-Optimal Large Language Models (arXiv:2203.15556)


def kept_for_backward(model: GPT, idx: Tensor, targets: Tensor) -> int:
    """The bytes that the forward pass of a batch (B, T) keeps for the backward pass, weights aside. Counted, not
    estimated: autograd is asked about each tensor that it saves."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), torch.random.fork_rng():
        model.loss(idx, targets)
    return sum(kept.values())


def memory_by_kind(model: GPT, optimizer: Optimizer, idx: Tensor, targets: Tensor) -> dict[str, int]:
    """Bytes of each kind of memory that training holds; a few copies for a moment come on top."""

    def size(*tensors: Tensor) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    return {
        "weights": size(optimizer.weights),
        "gradients": size(optimizer.grads),
        "optimizer": size(*optimizer.state_dict().values()),
        "activations": kept_for_backward(model, idx, targets),
    }


def flops_a_token(model: GPT) -> int:
    """Floating-point operations of training on one token: 6 for each weight that is multiplied (a product and a sum, in
    the forward pass once, in the backward pass twice), and 12 L T C for attention, T the block. Chowdhery et al. 2022,
    PaLM (arXiv:2204.02311), appendix B. The embedding is looked up, not multiplied."""
    a = model.architecture
    multiplied = sum(weight.numel() for weight in model.parameters() if weight.dim() == 2)
    if not a["tie_embeddings"]:
        multiplied -= model.embedding.weight.numel()
    return 6 * multiplied + 12 * a["n_layer"] * a["block_size"] * a["n_embd"]


def show(
    model: GPT,
    optimizer: Optimizer,
    batch: tuple[Tensor, Tensor],
    tokens_a_step: int,
    train_tokens: int,
    max_steps: int,
    seconds_a_step: float,
    other_seconds: float,
) -> str:
    """The plan of a run, as lines: memory, data, arithmetic, time, and a warning where there is one to give. `batch` is
    what a process computes at once; a step may be several of these, and of several processes."""
    memory = memory_by_kind(model, optimizer, *batch)
    whole = sum(memory.values())
    who = "It" if distributed.world_size() == 1 else "Each process"
    lines = [f"{who} needs about {whole / 1e6:,.0f} MB of memory, besides Python and torch themselves:"]
    for name, size in memory.items():
        lines.append(f"  {name:18} {size / 1e6:>10,.1f} MB {bar(size / whole)} {size / whole:6.1%}")
    total, tokens = sum(model.parameters_by_part().values()), max_steps * tokens_a_step
    flops = flops_a_token(model)
    lines += [
        "What it learns from:",
        f"  {'tokens':18} {tokens:>12,} in {max_steps:,} steps: {tokens / train_tokens:.2f} times the data",
        f"  {'a parameter':18} {tokens / total:>12.1f} tokens; {TOKENS_A_PARAMETER} make the best of the work",
        "What it computes:",
        f"  {'a token':18} {flops / 1e6:>12,.1f} million operations, {tokens * flops / 1e12:,.1f} trillion in all",
        f"  {'speed':18} {tokens_a_step / seconds_a_step:>12,.0f} tokens/s, "
        f"{flops * tokens_a_step / seconds_a_step / 1e9:,.1f} GFLOP/s, from 20 steps",
        f"  {'time':18} {duration(max_steps * seconds_a_step + other_seconds):>12} in all: "
        f"{duration(max_steps * seconds_a_step)} of steps of {1000 * seconds_a_step:.1f} ms, "
        f"{duration(other_seconds)} of evaluations and samples",
    ]
    if total > train_tokens:
        lines.append(
            f"Warning: the model has {total:,} parameters and the training data {train_tokens:,} tokens. It can learn "
            "them by heart. Get more text, or make it smaller (--n-embd, --n-layer, --vocab-size of the tokenizer)."
        )
    return "\n".join(lines)
