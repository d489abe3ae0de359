"""The Python side of one_token.c: it lays out a model's weights for it and calls it for each token.

fast_one_token() in one_token.py takes this where there is a compiler (compile_c.py); one_token.py itself is the same
step in numpy, and the tests hold the two to each other.
"""

import ctypes

import numpy as np
import torch
from torch import Tensor

from model.gpt import GPT
from model.layers import KeyValueCache

PANEL = 32  # outputs in a panel, as in one_token.c
CACHE_LINE = 64  # bytes
MATRICES, NORMS = ("qkv", "output", "gate_up", "down"), ("query_norm", "key_norm")
SIZES = ("C", "H", "L", "F", "V", "S")
BUFFERS = ("x", "normed", "qkv", "y", "added", "gate_up", "scores", "logits")


class BlockInC(ctypes.Structure):
    """`Block` in one_token.c"""

    _fields_ = [(name, ctypes.c_void_p) for name in MATRICES + NORMS]


class ModelInC(ctypes.Structure):
    """`Model` in one_token.c"""

    _fields_ = [
        *((name, ctypes.c_int) for name in SIZES),
        ("eps", ctypes.c_float),
        ("threads", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("embedding", "head", "cos", "sin", "blocks", "cache", *BUFFERS)),
    ]


class OneTokenInC:
    """OneToken in C: step(token) gives the logits (V,) that model(token, cache) gives, up to fp32 rounding; the cache
    grows by one. For fp32 weights on the CPU and a cache of one sequence. The next call overwrites the logits. The step
    does not see weights that change after it was made. The result does not depend on the number of threads."""

    most_candidates = 100  # that are inserted one by one; for more, sorting in numpy is faster

    def __init__(self, model: GPT, cache: KeyValueCache, library: ctypes.PyDLL, threads: int):
        self.cache, self.vocab_size, self.block_size = cache, model.vocab_size, model.block_size
        self.step, self.select = library.step, library.candidates
        self.step.argtypes, self.step.restype = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int], None
        self.select.argtypes, self.select.restype = [ctypes.c_void_p, ctypes.c_int, *[ctypes.c_void_p] * 3], None
        self.kept = [cache.store]  # all that C has a pointer to
        self.free = aligned(sum(padded(len(w)) * w[0].numel() + CACHE_LINE for w in model.state_dict().values()))
        a, blocks = model.architecture, (BlockInC * len(model.blocks))(*map(self.block, model.blocks))
        C, H, S, V = a["n_embd"], a["n_head"], model.block_size, model.vocab_size
        F = model.blocks[0].mlp.down.weight.size(1)
        sizes = zip(BUFFERS, (C, C, 3 * C, C, C, 2 * F, H * S, V), strict=True)
        buffers = {name: aligned(padded(size)) for name, size in sizes}
        self.logits = buffers["logits"][:V]
        pointers = {
            "embedding": self.pointer(model.embedding.weight.detach().numpy()),
            "head": self.matrix(model.head.weight, model.norm.weight),
            "cos": self.pointer(model.cos.numpy()),
            "sin": self.pointer(model.sin.numpy()),
            "blocks": ctypes.addressof(blocks),
            "cache": cache.store.data_ptr(),
            **{name: self.pointer(buffer) for name, buffer in buffers.items()},
        }
        self.model = ModelInC(C, H, len(blocks), F, V, S, model.norm.eps, threads, **pointers)
        self.address = ctypes.addressof(self.model)
        self.kept.append(blocks)
        self.highest, self.ids, self.sums = np.empty(V), np.empty(V, np.int64), np.empty(2)
        self.selected = [self.pointer(array) for array in (self.highest, self.ids, self.sums)]

    def block(self, block) -> BlockInC:
        attention, mlp = block.attention, block.mlp
        return BlockInC(
            self.matrix(attention.qkv.weight, block.attention_norm.weight),
            self.matrix(attention.output.weight),
            self.matrix(mlp.gate_up.weight, block.mlp_norm.weight),
            self.matrix(mlp.down.weight),
            self.pointer(attention.query_norm.weight.detach().numpy().copy()),
            self.pointer(attention.key_norm.weight.detach().numpy().copy()),
        )

    def matrix(self, weight: Tensor, norm: Tensor | None = None) -> int:
        """Copy a weight (outputs, inputs) into panels (panel, input, output), with zeros for the outputs that the last
        panel lacks, and each input scaled by the weight of the RMSNorm before it. Returns where it is."""
        outputs, inputs = weight.shape
        whole, size = outputs // PANEL * PANEL, padded(outputs) * inputs
        memory, self.free = self.free[:size], self.free[-(-size // 16) * 16 :]
        panels = torch.from_numpy(memory).view(-1, inputs, PANEL)
        weight = weight.detach()
        panels[: whole // PANEL] = weight[:whole].view(-1, PANEL, inputs).transpose(1, 2)
        if whole < outputs:
            panels[-1] = 0
            panels[-1, :, : outputs - whole] = weight[whole:].T
        if norm is not None:
            panels *= norm.detach()[:, None]
        return self.pointer(memory)

    def pointer(self, array: np.ndarray) -> int:
        self.kept.append(array)
        return array.ctypes.data

    def __call__(self, token: int) -> np.ndarray:
        position = self.cache.length
        if position >= self.block_size:
            raise ValueError(f"{position + 1} tokens do not fit a block of {self.block_size}.")
        if not 0 <= token < self.vocab_size:
            raise IndexError(f"Token {token} is not among {self.vocab_size}.")
        self.step(self.address, token, position)
        self.cache.length = position + 1
        return self.logits

    def candidates(self, n: int, token: int) -> tuple[np.ndarray, ...]:
        """Instead of the logits, what OneTokenOnGPU.candidates() gives for one text."""
        self(token)
        self.select(self.address, n, *self.selected)
        return self.ids[None, :n], self.highest[None, :n], self.sums[:1], self.sums[1:]


def padded(outputs: int) -> int:
    """So many outputs, rounded up to whole panels."""
    return -(-outputs // PANEL) * PANEL


def aligned(size: int) -> np.ndarray:
    """Memory for so many floats that starts with a line of the processor's caches. From numpy, for which Linux uses
    large pages, and none that is not written."""
    memory = np.empty(size + CACHE_LINE // 4, np.float32)
    start = -memory.ctypes.data % CACHE_LINE // 4
    return memory[start : start + size]
