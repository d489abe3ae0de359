"""One token at a time on a CPU, in numpy: GPT.forward for B = T = 1.

To be read, to compare one_token.c with, and to generate with where there is no C compiler. The plain version is
model/layers.py and model/gpt.py; tests/generation/test_one_token.py compares logits and cache of all.

For a single token, PyTorch spends most of a small model's time on starting operations, and numpy starts one sooner. The
cache is the model's own memory, seen by numpy: the step and the model each continue what the other has written.
"""

import importlib.util
import sys
from collections.abc import Callable

import numpy as np
import torch

from model.compile_c import ONE_TOKEN, compiled_library
from model.generation.one_token_c import OneTokenInC
from model.gpt import GPT
from model.layers import TRITON_FAILS, KeyValueCache, Linear
from plumbing.errors import reason

WEIGHTS_PER_THREAD = 1_000_000  # in C. With fewer, two threads lose in waiting for each other what they gain.


class OneToken:
    """step(token) gives the logits (V,) that model(token, cache) gives, up to fp32 rounding; the cache grows by one.
    For fp32 weights on the CPU and a cache of one sequence. The matrices are copies, so the step does not see weights
    that change after it was made. Notation as in layers.py."""

    def __init__(self, model: GPT, cache: KeyValueCache):
        self.cache, self.block_size, self.eps, self.H = cache, model.block_size, model.norm.eps, cache.store.size(3)
        self.embedding, self.norm = model.embedding.weight.detach().numpy(), model.norm.weight.detach().numpy()
        self.head, self.layers = laid_out(model.head), []
        for block, (keys, values) in zip(model.blocks, cache.store[:, :, 0].numpy(), strict=True):  # (H, block_size, D)
            a, mlp = block.attention, block.mlp
            matrices = [laid_out(module) for module in (a.qkv, a.output, mlp.gate_up, mlp.down)]
            norms = [norm.weight.detach().numpy() for norm in (block.attention_norm, block.mlp_norm)]
            head_norms = torch.stack([a.query_norm.weight, a.key_norm.weight])[:, None].detach().numpy()  # (2, 1, D)
            self.layers.append((*matrices, *norms, head_norms, keys, values))
        self.cos, self.sin = model.cos.numpy(), model.sin.numpy().copy()
        self.half = self.sin.shape[1] // 2
        self.sin[:, : self.half] *= -1  # a pair (a, b) becomes (a cos - b sin, b cos + a sin)

    # exp(-gate) may be infinite; silu is then 0, as it should be. The caller looks for NaN in the logits.
    @np.errstate(over="ignore", invalid="ignore")
    def __call__(self, token: int) -> np.ndarray:
        position, end = self.cache.length, self.cache.length + 1
        if end > self.block_size:
            raise ValueError(f"{end} tokens do not fit a block of {self.block_size}.")
        x = self.embedding[token]
        for qkv, output, gate_up, down, attention_norm, mlp_norm, head_norms, keys, values in self.layers:
            # x + output(softmax(q k / sqrt(D)) v)
            heads = (qkv @ (self.normed(x) * attention_norm)).reshape(3, self.H, -1)  # (3, H, D)
            q, keys[:, position] = self.rotated(self.normed(heads[:2]) * head_norms, position)
            values[:, position] = heads[2]
            scores = keys[:, :end] @ q[:, :, None] * q.shape[1] ** -0.5  # (H, S, 1)
            p = np.exp(scores - scores.max(axis=1, keepdims=True))
            y = p.mT @ values[:, :end] / p.sum(axis=1, keepdims=True)  # (H, 1, D)
            x = x + output @ y.reshape(-1)
            # x + down(silu(gate) * up)
            gate, up = (gate_up @ (self.normed(x) * mlp_norm)).reshape(2, -1)
            x = x + down @ (gate / (1 + np.exp(-gate)) * up)
        self.cache.length = end
        return self.head @ (self.normed(x) * self.norm)

    def normed(self, x: np.ndarray) -> np.ndarray:
        """RMSNorm without its weight: (..., n) -> (..., n)"""
        return x / np.sqrt(np.vecdot(x, x)[..., None] / x.shape[-1] + self.eps)

    def rotated(self, x: np.ndarray, position: int) -> np.ndarray:
        """Each pair of channels rotated by the angle of the position: (..., D) -> (..., D)"""
        exchanged = np.concatenate([x[..., self.half :], x[..., : self.half]], axis=-1)
        return x * self.cos[position] + exchanged * self.sin[position]


def laid_out(module: Linear) -> np.ndarray:
    """A copy of a matrix (outputs, inputs) with its longer side contiguous: products read long rows, or columns, faster
    than short ones."""
    weight = module.weight.detach().numpy()
    return weight.copy(order="F" if len(weight) > weight.shape[1] else "C")


def step_on_cpu(model: GPT, cache: KeyValueCache) -> Callable:
    # Linux backs memory that numpy allocates with large pages, which are read faster; and none that is not written.
    store = np.empty(cache.store.shape, np.float32)
    store[..., : cache.length, :] = cache.store[..., : cache.length, :].numpy()
    cache.store = torch.from_numpy(store)
    library = compiled_library(ONE_TOKEN)
    if library is None:
        return OneToken(model, cache)
    weights = sum(weight.numel() for weight in model.parameters())
    threads = max(1, min(torch.get_num_threads(), weights // WEIGHTS_PER_THREAD))
    return OneTokenInC(model, cache, library, threads)


def fast_one_token(model: GPT, cache: KeyValueCache) -> Callable | None:
    """The fastest way to feed one token per text to this model: OneTokenInC on a CPU, or OneToken without a C compiler,
    for a single text; OneTokenOnGPU on an NVIDIA GPU; or None for the model itself."""
    if model.is_sharded:  # no process has whole weights to copy
        return None
    if model.device.type == "cpu":
        return step_on_cpu(model, cache) if cache.store.size(2) == 1 else None
    if model.device.type != "cuda" or not importlib.util.find_spec("triton"):
        return None
    try:
        from model.generation.one_token_gpu import OneTokenOnGPU  # Triton takes a second to import

        return OneTokenOnGPU(model, cache)
    except TRITON_FAILS as error:
        print(f"The fast step for a GPU does not work here, so generating is slower: {reason(error)}", file=sys.stderr)
        return None
