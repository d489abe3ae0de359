"""What training records of itself, so that one can look back at how the model learned.

At steps 0, 1, 2, 4, 8, ... and at each evaluation, a line of log.jsonl gets a "record": what the model writes, how
surprised it is by a held-out paragraph that stays the same, what it predicts at a few positions of it, its loss by kind
of Python token, gradients and updates by layer, and the entropy of each head's attention. scripts/plot_training.py
shows them.

Training is the same with records and without: a record draws no random number from torch and leaves weights and
gradients as they are. It costs about as much as a training step, and there are few. With --eval-every 0 there are none.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dataset import TokenFile
from model import metrics
from model.gpt import GPT
from model.interpretation.heads import entropy
from model.monitoring.log import Log
from model.monitoring.python_tokens import KINDS, kinds_of
from model.tokenization.display import token_text
from model.training.run import Run

TOKENS = 512  # held-out tokens that a record looks at, in blocks; the first block is the paragraph
POSITIONS = 4  # of the paragraph, at which the most likely tokens are kept
CANDIDATES = 5  # most likely tokens that are kept


class Recorder:
    """Writes the records of a run to its log. `baselines` go into its description there, and sample() gives the text
    that the model writes now.

    before(step) and after(step, norm) go around the training step that ends at `step`; due(step) says whether they do
    anything. `seconds` is what all records have taken.
    """

    def __init__(self, run: Run, log: Log, baselines: dict[str, float], sample: Callable[[], str]):
        self.run, self.log, self.sample = run, log, sample
        self.last = 0  # the step at which the run ends, once that is known
        self.seconds, self.weights_before = 0.0, None
        if not self.wanted:
            return
        start = time.perf_counter()
        self.layers = parameters_by_layer(run.model)
        self.inputs, self.targets, starts = held_out_blocks(run.val_data, run.model.block_size)
        T = self.inputs.shape[1]
        kinds = [kinds_of(run.val_data, run.tokenizer, start, T) for start in starts]
        if any(kind is None for kind in kinds):
            self.kinds = {}
        else:  # masks of the targets, (blocks, T)
            self.kinds = {name: np.stack(kinds) == i for i, name in enumerate(KINDS)}
        self.positions = [T * (i + 1) // (POSITIONS + 1) for i in range(POSITIONS)]
        self.about = {
            "ladder": baselines,  # the name is part of the log's format
            "val_tokens_per_byte": run.val_data.tokens_per_byte if run.val_data.facts["utf8_bytes"] else None,
            "paragraph": [token_text(run.tokenizer, token) for token in [self.inputs[0, 0], *self.targets[0]]],
            "places": self.positions,
            "kinds": {name: int(mask.sum()) for name, mask in self.kinds.items()},
        }
        self.seconds += time.perf_counter() - start

    @property
    def wanted(self) -> bool:
        return self.run.eval_every > 0 and not self.run.settings.shard_model  # one process must have all weights

    def due(self, step: int) -> bool:
        """Whether this step should have a record in the log and has none: 0, 1, 2, 4, ..., evaluations, the end."""
        if not self.wanted or step in self.log.recorded:
            return False
        return step & (step - 1) == 0 or step % self.run.eval_every == 0 or step == self.last

    def before(self, step: int) -> None:
        """Keep the weights as they are before the training step that ends at `step`."""
        if self.due(step):
            start = time.perf_counter()
            self.weights_before = copies_of(self.layers)
            self.seconds += time.perf_counter() - start

    def after(self, step: int, norm: Tensor | None = None) -> dict | None:
        """Write the record of a step and return it, if it is due. `norm` is that of its gradient before clipping."""
        if not self.due(step):
            return None
        start = time.perf_counter()
        if self.log.about is None:
            self.log.about = self.about
            self.log.write(step=step, about=self.about)
        before = self.weights_before
        moved = {} if before is None else update_sizes(self.layers, before, norm.item(), self.run.settings.grad_clip)
        self.weights_before = None
        record = self.predictions() | moved | {"sample": self.sample()}
        self.log.write(step=step, record=record)
        self.log.recorded.add(step)
        self.seconds += time.perf_counter() - start
        return record

    @torch.inference_mode()
    def predictions(self) -> dict:
        """How the model does on the held-out blocks, from one forward pass that keeps the attention weights."""
        model, weights, bits, hidden = self.run.model.eval(), [], [], {}
        hooks = [
            block.mlp.down.register_forward_pre_hook(lambda _, h, name=f"layer {i}": hidden.update({name: h[0]}))
            for i, block in enumerate(model.blocks)
        ]
        x = model.features(torch.from_numpy(self.inputs).to(model.device), weights=weights)  # (blocks, T, C)
        for hook in hooks:
            hook.remove()
        for i, targets in enumerate(self.targets):  # one block's logits at a time: a large vocabulary's are many
            log_p = model.head(x[i]).float().log_softmax(-1)  # (T, V)
            of_targets = log_p.gather(1, torch.from_numpy(targets).to(model.device)[:, None])[:, 0]  # (T)
            bits.append(metrics.bits(-of_targets).cpu().numpy())
            if i == 0:
                top = log_p[self.positions].exp().topk(min(CANDIDATES, model.vocab_size))
        model.train()
        bits = np.stack(bits)  # (blocks, T)
        return {
            "surprise_bits": [round(float(b), 3) for b in bits[0]],
            "expected": [
                [[token_text(self.run.tokenizer, token), round(p, 4)] for token, p in zip(ids, values, strict=True)]
                for ids, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            ],
            "kind_bits": {name: round(float(bits[at].mean()), 4) for name, at in self.kinds.items() if at.any()},
            "silent_units": {name: round(silent(h), 4) for name, h in hidden.items()},
            "entropy_bits": [[round(h, 4) for h in entropy(layer).mean(0).tolist()] for layer in weights],
        }


def update_sizes(layers: dict, before: dict, norm: float, grad_clip: float) -> dict:
    """How a step moved each layer: the norm of its gradient before clipping, and the norm of the update divided by that
    of the weights. `layers` as parameters_by_layer() gives them, `before` are copies from before the step, `norm` is
    that of the whole gradient."""
    clipped = min(1.0, grad_clip / (norm + 1e-6)) if grad_clip > 0 else 1.0
    sizes = {"gradient_norm": {}, "update_to_weight": {}}
    for name, weights in layers.items():
        update = norm_of([w.detach() - b for w, b in zip(weights, before[name], strict=True)])
        sizes["gradient_norm"][name] = norm_of([w.grad for w in weights]) / clipped
        sizes["update_to_weight"][name] = update / max(norm_of(before[name]), 1e-30)
    return sizes


def copies_of(layers: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    return {name: [weight.detach().clone() for weight in weights] for name, weights in layers.items()}


def norm_of(tensors: list[Tensor]) -> float:
    """The Euclidean norm of all numbers in some tensors."""
    return float(torch.stack([tensor.float().square().sum() for tensor in tensors]).sum()) ** 0.5


def silent(hidden: Tensor) -> float:
    """The fraction of an MLP's units (..., hidden) that stay below a thousandth of the mean for every token."""
    loudest = hidden.float().abs().flatten(0, -2).amax(0)  # (hidden)
    return float((loudest <= 1e-3 * loudest.mean()).float().mean())


def parameters_by_layer(model: GPT) -> dict[str, list[Tensor]]:
    """The weights of each layer, the embedding's before them, the last norm's and the head's after them."""
    tied = model.head.weight is model.embedding.weight
    return {
        "embedding and head" if tied else "embedding": [model.embedding.weight],
        **{f"layer {i}": list(block.parameters()) for i, block in enumerate(model.blocks)},
        "last norm" if tied else "head": [model.norm.weight, *([] if tied else [model.head.weight])],
    }


def held_out_blocks(val: TokenFile, block_size: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """About TOKENS tokens of a file in evenly spread blocks, the first at its start: inputs and targets, both (blocks,
    T), and the positions where the blocks begin."""
    T = min(block_size, len(val) - 1)
    count = max(1, min(TOKENS // T, (len(val) - 1) // T))
    starts = [i * (len(val) - 1 - T) // max(1, count - 1) for i in range(count)]
    tokens = val.tokens
    window = np.stack([tokens[start : start + T + 1] for start in starts]).astype(np.int64)
    return window[:, :-1], window[:, 1:], starts
