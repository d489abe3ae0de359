"""AdamW for the weights, and the learning rate over a run."""

import torch
from torch import nn


def make_optimizer(model: nn.Module, weight_decay: float, beta1: float, beta2: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2017, arXiv:1711.05101), fused: one kernel instead of one an operation.

    Only the matrices of the blocks and the head decay. Norm weights have their place at 1, not at 0, and an embedding
    row whose token is rare would decay at every step and learn at few.
    """
    embedding = {id(model.embedding.weight)}
    decay = [p for p in model.parameters() if p.dim() >= 2 and id(p) not in embedding]
    no_decay = [p for p in model.parameters() if p.dim() < 2 or id(p) in embedding]
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
    device = next(model.parameters()).device.type
    return torch.optim.AdamW(groups, lr=0.0, betas=(beta1, beta2), fused=device in ("cpu", "cuda", "mps"))


def learning_rate_at(step: int, max_steps: int, peak: float, warmup_steps: int, decay_fraction: float) -> float:
    """The learning rate of a step, counted from 0: a linear climb, a plateau, a linear fall to zero at max_steps.

    The last `decay_fraction` of the run falls; where climb and fall would meet in a short run, the lower one holds.
    """
    climb = (step + 1) / (warmup_steps + 1)
    fall = (max_steps - step) / max(1.0, decay_fraction * max_steps)
    return peak * min(1.0, climb, fall)
