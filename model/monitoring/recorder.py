"""The time machine: what training notes of itself on the way, so that one can look back at how it learned.

At steps 0, 1, 2, 4, 8, ... and at each evaluation, a line of log.jsonl gets a "record": what the model writes, how
surprised it is by a held-out paragraph that stays the same, what it expects at a few places of it, its loss by kind of
Python token, gradients and updates by layer, and how widely each head looks. scripts/plot_training.py shows them.

Training is none the wiser: a record draws no random number of torch's, and leaves weights and gradients as they are. It
costs about as much as a training step, and there are few of them. With --eval-every 0 there are none.
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
from model.monitoring.python_tokens import KINDS, kinds_of
from model.tokenization.display import token_text
from model.tokenization.tokenizer import Tokenizer

TOKENS = 512  # held-out tokens that a record looks at, in blocks; the first block is the paragraph

PLACES = 4  # of the paragraph, at which the five likeliest tokens are kept


class Recorder:
    """Writes the records of a run to its log. `sample` gives the text that the model writes now; `rungs` are what the
    loss will be compared with (ladder.py).

    before(step) and after(step, norm) go around the training step that ends at `step`; due(step) says whether they do
    anything. seconds: what the records have cost so far.
    """

    def __init__(
        self,
        model: GPT,
        val: TokenFile,
        tokenizer: Tokenizer,
        log,
        every: int,
        grad_clip: float,
        sample: Callable,
        rungs: dict,
    ):
        self.model, self.log, self.every = model, log, every
        self.grad_clip, self.sample = grad_clip, sample
        self.last = 0  # the step at which the run ends, when that is known
        self.seconds, self.weights_before = 0.0, None
        if not every:
            return
        start = time.perf_counter()
        self.layers = parameters_by_layer(model)
        self.idx, self.targets, starts = held_out_blocks(val, model.block_size)
        kinds = [kinds_of(val, tokenizer, start, self.idx.shape[1]) for start in starts]
        self.kinds = np.stack(kinds) if all(kind is not None for kind in kinds) else None  # (blocks, T), of the targets
        T = self.idx.shape[1]
        self.places = [T * (place + 1) // (PLACES + 1) for place in range(PLACES)]
        self.about = {
            "vocab_size": model.vocab_size,
            "ladder": rungs,
            "val_tokens_per_byte": val.tokens_per_byte if val.facts["utf8_bytes"] else None,
            "n_head": model.blocks[0].attention.n_head,
            "paragraph": [token_text(tokenizer, token) for token in [self.idx[0, 0], *self.targets[0]]],
            "places": self.places,
            "kinds": {} if self.kinds is None else {name: int((self.kinds == i).sum()) for i, name in enumerate(KINDS)},
        }
        self.text_of = lambda token: token_text(tokenizer, token)
        self.seconds += time.perf_counter() - start

    def due(self, step: int) -> bool:
        """Whether the log wants a record of this step and has none."""
        wanted = (
            step & (step - 1) == 0 or step == self.last or (self.every and step % self.every == 0)
        )  # 0, 1, 2, 4, ...
        return bool(self.every and wanted) and step not in self.log.recorded

    def before(self, step: int) -> None:
        """Keep the weights from which the training step that ends at `step` sets out."""
        if self.due(step):
            start = time.perf_counter()
            self.weights_before = {name: [w.detach().clone() for w in ws] for name, ws in self.layers.items()}
            self.seconds += time.perf_counter() - start

    def after(self, step: int, norm: Tensor | None = None) -> dict | None:
        """Write the record of a step and return it, where it is due; `norm` is its gradient's, before clipping."""
        if not self.due(step):
            return None
        start = time.perf_counter()
        if self.log.about is None:
            self.log.about = self.about
            self.log.write(step=step, about=self.about)
        record = self.look()
        if self.weights_before is not None:
            record |= self.movement(norm)
        self.weights_before = None
        record["sample"] = self.sample()
        self.log.write(step=step, record=record)
        self.log.recorded.add(step)
        self.seconds += time.perf_counter() - start
        return record

    @torch.inference_mode()
    def look(self) -> dict:
        """What the model makes of the held-out blocks: one forward pass, by the path that shows attention."""
        model, weights, bits, inside = self.model.eval(), [], [], {}
        hooks = [
            block.mlp.down.register_forward_pre_hook(lambda _, h, name=f"layer {i}": inside.update({name: h[0]}))
            for i, block in enumerate(model.blocks)
        ]
        x = model.features(torch.from_numpy(self.idx).to(model.device), weights=weights)  # (blocks, T, C)
        for hook in hooks:
            hook.remove()
        for i, targets in enumerate(self.targets):  # a block's logits at a time: a large vocabulary's are many
            log_p = model.head(x[i]).float().log_softmax(-1)  # (T, V)
            own = log_p.gather(1, torch.from_numpy(targets).to(model.device)[:, None])[:, 0]
            bits.append(metrics.bits(-own).cpu().numpy())
            if i == 0:
                top = log_p[self.places].exp().topk(min(5, model.vocab_size))
        model.train()
        bits = np.stack(bits)  # (blocks, T)
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        kinds = {}
        if self.kinds is not None:
            kinds = {
                name: round(float(bits[self.kinds == i].mean()), 4)
                for i, name in enumerate(KINDS)
                if (self.kinds == i).any()
            }
        return {
            "surprise_bits": [round(float(b), 3) for b in bits[0]],
            "expected": [[[self.text_of(t), round(p, 4)] for t, p in zip(*pair, strict=True)] for pair in pairs],
            "kind_bits": kinds,
            "silent_units": {name: round(silent(hidden), 4) for name, hidden in inside.items()},
            "entropy_bits": [[round(h, 4) for h in entropy(layer).mean(0).tolist()] for layer in weights],
        }

    def movement(self, norm: Tensor) -> dict:
        """How the last step moved each layer: the norm of its gradient before clipping, and the length of the update
        over that of the weights."""
        clipped = min(1.0, self.grad_clip / (norm.item() + 1e-6)) if self.grad_clip > 0 else 1.0
        sizes = {"gradient_norm": {}, "update_to_weight": {}}
        for name, weights in self.layers.items():
            before = self.weights_before[name]
            update = length([w.detach() - b for w, b in zip(weights, before, strict=True)])
            sizes["gradient_norm"][name] = length([w.grad for w in weights]) / clipped
            sizes["update_to_weight"][name] = update / max(length(before), 1e-30)
        return sizes


def length(tensors: list[Tensor]) -> float:
    """The root of the sum of the squares of all numbers in some tensors."""
    return float(torch.stack([tensor.float().square().sum() for tensor in tensors]).sum()) ** 0.5


def silent(hidden: Tensor) -> float:
    """The share of an MLP's units (..., hidden) that stay below a thousandth of the usual for every token."""
    loudest = hidden.float().abs().flatten(0, -2).amax(0)  # (hidden)
    return float((loudest <= 1e-3 * loudest.mean()).float().mean())


def parameters_by_layer(model: GPT) -> dict[str, list[Tensor]]:
    """The weights of each layer, the embedding's before them, the last norm's and the head's after them."""
    tied = model.head.weight is model.embedding.weight
    head = [] if tied else [model.head.weight]
    return {
        "embedding and head" if tied else "embedding": [model.embedding.weight],
        **{f"layer {i}": list(block.parameters()) for i, block in enumerate(model.blocks)},
        "last norm" if tied else "head": [model.norm.weight, *head],
    }


def held_out_blocks(val: TokenFile, block_size: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """About TOKENS tokens of a file in blocks that are evenly spread, the first at its beginning: idx and targets, both
    (blocks, T), and where the blocks begin."""
    T = min(block_size, len(val) - 1)
    count = max(1, min(TOKENS // T, (len(val) - 1) // T))
    starts = [i * (len(val) - 1 - T) // max(1, count - 1) for i in range(count)]
    tokens = val.tokens
    window = np.stack([tokens[start : start + T + 1] for start in starts]).astype(np.int64)
    return window[:, :-1], window[:, 1:], starts
