"""What scripts/inspect_step.py shows of a training step, in the terminal and as scripts/pages/inspect_step.html.

Everything is computed here, from training_step.py. Shapes use the notation of model/layers.py.
"""

import math
import re

import numpy as np
import torch
from torch import Tensor

from model.interpretation import training_step as ts
from model.interpretation.training_step import TrainingStep
from model.tokenization.display import token_text
from plumbing.errors import UsageError

MOST_TOKENS = 16_384  # of the batch that a page holds; it shows the first sequences of larger batches
NUDGES = (0.1, 0.03, 0.01, 0.003, 0.001)  # by which the chosen weights are nudged, all others by the middle one
CONTRIBUTIONS = 8  # tokens that contribute most to the gradient of a weight
CHANGED = 5  # predictions that the step changed most
CONTEXT = 8  # tokens before a target, to show where it is
POINTS = 19  # of the curve over learning rates
LOWEST, HIGHEST = 0.1, 30.0  # times the step's learning rate, the ends of the curve
SINGULAR = 24  # singular values that are shown of a matrix, evenly spread


def step_data(step: TrainingStep, chosen: str | None) -> dict:
    """Everything, ready for JSON but for arrays. `chosen` names a weight, such as "head.weight[275,8]"; by default a
    weight of AdamW and one of Muon are chosen."""
    run, (losses, best) = step.run, ts.batch_predictions(step)
    inputs, targets = held_out(step)
    after = ts.batch_predictions(step, step.after)[0], ts.other_losses(step, inputs, targets, step.after)
    other = ts.other_losses(step, inputs, targets)
    names = matrices(step)
    picked = [parse_weight(step, chosen)] if chosen else default_weights(step)
    more = [(name, *ts.strongest_weight(step, name)) for name in offered(step)]
    weights = [weight_data(step, losses, *at, NUDGES) for at in picked]
    weights += [weight_data(step, losses, *at, NUDGES[2:3]) for at in more if at not in picked]
    return {
        "step": run.step + 1,
        "max_steps": max(run.max_steps, run.step + 1),
        "fraction": step.fraction,
        "loss": step.loss,
        "norm": step.norm,
        "clipped_to": step.clipped_to,
        "grad_clip": run.settings.grad_clip,
        "streams": step.streams.norm(dim=(1, 2)).tolist(),
        "layers": [f"layer {i}" for i in range(len(run.model.blocks))],
        "matrices": [matrix_data(step, name) for name in names],
        "weights": weights,
        "curve": curve_data(step, inputs, targets),
        "bought": [
            {"of": "this batch", "before": losses.mean().item(), "after": after[0].mean().item(),
             "changed": changed(step, step.inputs, step.targets, losses, after[0])},
            {"of": "the held-out paragraph", "before": other.mean().item(), "after": after[1].mean().item(),
             "changed": changed(step, inputs, targets, other, after[1])},
        ],
        **batch_data(step, losses, best),
    }  # fmt: skip


def held_out(step: TrainingStep) -> tuple[Tensor, Tensor]:
    """The first block of the validation file: inputs and targets, (1, T) each."""
    tokens = step.run.val_data.tokens[: step.run.model.block_size + 1].astype(np.int64)
    window = torch.from_numpy(tokens).to(step.run.device)[None]
    return window[:, :-1], window[:, 1:]


def batch_data(step: TrainingStep, losses: Tensor, best: Tensor) -> dict:
    """The batch token by token: how bad each prediction was, what was predicted, and how hard it pushes: the norm of
    the gradient that it alone sends into the stream after the last layer, times N."""
    rows = max(1, MOST_TOKENS // step.inputs.size(1))
    inputs, targets, best = step.inputs[:rows], step.targets[:rows], best[:rows]
    push = step.streams[-1].float().norm(dim=-1).view(step.inputs.shape) * step.inputs.numel()
    shown = {*inputs.flatten().tolist(), *targets.flatten().tolist(), *best.flatten().tolist()}
    return {
        "texts": {token: token_text(step.run.tokenizer, token) for token in sorted(shown)},
        "shape": list(inputs.shape),
        "sequences": step.inputs.size(0),
        "inputs": inputs.cpu().numpy().astype(np.uint16),
        "targets": targets.cpu().numpy().astype(np.uint16),
        "best": best.cpu().numpy().astype(np.uint16),
        "losses": losses[:rows].numpy().astype(np.float32),
        "push": push[:rows].cpu().numpy().astype(np.float32),
    }


def context(step: TrainingStep, inputs: Tensor, b: int, t: int) -> str:
    """The text that ends with input token (b, t)."""
    tokens = inputs[b, max(0, t + 1 - CONTEXT) : t + 1].tolist()
    return "".join(token_text(step.run.tokenizer, token) for token in tokens)


# === matrices and weights =============================================================================================


def matrices(step: TrainingStep) -> list[str]:
    """The names of all matrices in the order of the forward pass."""
    return [name for name, gradient in step.gradients.items() if gradient.dim() == 2]


def offered(step: TrainingStep) -> list[str]:
    """The matrices of which the page offers a weight: all outside the blocks, and those of the first, the middle and
    the last block."""
    last = len(step.run.model.blocks) - 1
    shown = {f"blocks.{i}." for i in (0, last // 2, last)}
    return [name for name in matrices(step) if not name.startswith("blocks.") or name.startswith(tuple(shown))]


def default_weights(step: TrainingStep) -> list[tuple[str, int, int]]:
    """The strongest gradient of the head, and of the queries, keys and values of the middle layer."""
    head = "head.weight" if "head.weight" in step.gradients else "embedding.weight"
    middle = (len(step.run.model.blocks) - 1) // 2
    return [(name, *ts.strongest_weight(step, name)) for name in (head, f"blocks.{middle}.attention.qkv.weight")]


def parse_weight(step: TrainingStep, text: str) -> tuple[str, int, int]:
    """ "head.weight[275,8]" gives ("head.weight", 275, 8). Raises UsageError."""
    found = re.fullmatch(r"([\w.]+)\[(\d+), *(\d+)\]", text)
    names = matrices(step)
    if not found or found[1] not in names:
        known = ", ".join(dict.fromkeys(re.sub(r"\d+", "0", name) for name in names))
        raise UsageError(f"--weight is a matrix with a row and a column, such as head.weight[0,0]; there are {known}.")
    at, shape = (int(found[2]), int(found[3])), step.gradients[found[1]].shape
    if at[0] >= shape[0] or at[1] >= shape[1]:
        raise UsageError(f"{found[1]} has {shape[0]} rows and {shape[1]} columns, counted from 0.")
    return found[1], *at


def matrix_data(step: TrainingStep, name: str) -> dict:
    gradient, muon = step.gradients[name], ts.is_muons(step, name)
    before = step.weight(name, step.before)
    data = {
        "name": name.removesuffix(".weight"),
        "gradient": gradient.norm().item(),
        "weight": before.norm().item(),
        "update": (step.weight(name, step.after) - before).norm().item(),
    }
    if muon:
        values = ts.singular_values(step, name)
        data["singular"] = [[spread_out(row.tolist()) for row in stack] for stack in values]
    return data


def spread_out(values: list[float]) -> list[float]:
    """At most SINGULAR of some values, first and last included."""
    count = min(SINGULAR, len(values))
    return [values[round(i * (len(values) - 1) / max(1, count - 1))] for i in range(count)]


def weight_data(step: TrainingStep, losses: Tensor, name: str, row: int, column: int, nudges) -> dict:
    """One weight: its gradient as a sum over tokens, checked by nudging it, and its update."""
    x, dy = ts.contributions(step, name, row, column)
    parts = (x * dy).double()
    top = parts.abs().topk(min(CONTRIBUTIONS, len(parts))).indices.tolist()
    T, N = step.inputs.size(1), step.inputs.numel()
    tokens = []
    for i in top:
        b, t = divmod(i % N, T)
        tokens.append(
            {"context": context(step, step.inputs, b, t), "x": x[i].item(), "dy": dy[i].item(),
             "target": token_text(step.run.tokenizer, step.targets[b, t].item()), "part": parts[i].item()}
        )  # fmt: skip
    slopes = [ts.slope_by_nudging(step, name, row, column, nudge) for nudge in nudges]
    gradient = step.gradients[name][row, column].item()
    return {
        "name": f"{name}[{row},{column}]",
        "meaning": meaning(step, name, row, column),
        "optimizer": "Muon" if ts.is_muons(step, name) else "AdamW",
        "sum": parts.sum().item(),
        "nonzero": int((parts != 0).sum()),
        "tokens": tokens,
        "nudges": [
            [nudge, slope, ts.agreeing_digits(slope, gradient)] for nudge, slope in zip(nudges, slopes, strict=True)
        ],
        "update": ts.update_of(step, name, row, column),
    }


def meaning(step: TrainingStep, name: str, row: int, column: int) -> str:
    """What a weight multiplies and what it adds to, in words."""
    model = step.run.model
    C, heads = model.architecture["n_embd"], model.architecture["n_head"]
    if name == "embedding.weight":
        tied = "; the same number is in the head" if model.head.weight is model.embedding.weight else ""
        return f"channel {column} of the vector of token {token_text(step.run.tokenizer, row)}{tied}"
    if name == "head.weight":
        return f"from channel {column} to the logit of token {token_text(step.run.tokenizer, row)}"
    layer, kind = name.split(".")[1], name.split(".")[-2]
    if kind == "qkv":
        which, at = ("query", "key", "value")[row // C], row % C
        return f"layer {layer}: from channel {column} to the {which} of head {at // (C // heads)}"
    if kind == "output":
        return f"layer {layer}: from what head {column // (C // heads)} has read to channel {row}"
    hidden = model.blocks[0].mlp.down.weight.size(1)
    if kind == "gate_up":
        return (
            f"layer {layer}: from channel {column} to {'gate' if row < hidden else 'value'} of MLP unit {row % hidden}"
        )
    return f"layer {layer}: from MLP unit {column} to channel {row}"


# === what it bought ===================================================================================================


def changed(step: TrainingStep, inputs: Tensor, targets: Tensor, before: Tensor, after: Tensor) -> list[dict]:
    """The predictions whose probability of the target changed most."""
    p = (-before).exp(), (-after).exp()
    found = []
    for i in (p[1] - p[0]).abs().flatten().topk(min(CHANGED, p[0].numel())).indices.tolist():
        b, t = divmod(i, inputs.size(1))
        found.append(
            {"context": context(step, inputs, b, t), "target": token_text(step.run.tokenizer, targets[b, t].item()),
             "before": p[0][b, t].item(), "after": p[1][b, t].item()}
        )  # fmt: skip
    return found


def curve_data(step: TrainingStep, inputs: Tensor, targets: Tensor) -> dict:
    """The loss after the step over multiples of its learning rates, up to HIGHEST times or, late in a run, ten times
    the peak rates. None where the loss is not finite."""
    high = max(HIGHEST, 10 / step.fraction)
    multiples = [LOWEST * (high / LOWEST) ** (i / (POINTS - 1)) for i in range(POINTS)]
    multiples = sorted({1.0, *multiples})
    losses = ts.rate_curve(step, multiples, inputs, targets)
    return {
        "multiples": multiples,
        "batch": [batch if math.isfinite(batch) else None for batch, _ in losses],
        "held_out": [other if math.isfinite(other) else None for _, other in losses],
    }
