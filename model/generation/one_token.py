"""One token at a time on a CPU, in numpy: GPT.forward for B = T = 1, written for speed.

For machines without a C compiler; where there is one, one_token.c takes its place. The plain version is model/layers.py
and model/gpt.py; tests/generation/test_one_token.py compares logits and cache of all.

For a single token, PyTorch spends most of a small model's time on starting operations, and most of a large model's on
reading every weight once from memory. numpy starts an operation sooner, and its product of a matrix and a vector reads
memory faster, above all when the rows are long. So the step copies the weights to one block of memory, each with its
longer side as rows, and with the weights of each RMSNorm multiplied into the matrix that follows it. The cache is the
model's own memory, seen by numpy: the step and the model each continue what the other has written.
"""

import importlib.util
import math
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from model.compile_c import ONE_TOKEN, compiled_library
from model.generation.one_token_c import OneTokenInC
from model.gpt import GPT
from model.layers import TRITON_FAILS, KeyValueCache
from plumbing.errors import reason

# From so many weights on, OpenBLAS, which numpy uses on most machines, runs a product on all cores.
THREADED = 460_800
# In C. With fewer, two threads lose in waiting for each other what they gain.
WEIGHTS_PER_THREAD = 1_000_000
# exp of a larger score could overflow in fp32 when many are added; QK-norm keeps scores far below in all usual models.
LARGEST_SCORE = 80.0


class OneToken:
    """step(token) gives the logits (V,) that model(token, cache) gives, up to fp32 rounding; the cache grows by one.
    For fp32 weights on the CPU and a cache of one sequence. The next call overwrites the logits. The step does not see
    weights that change after it was made. Notation as in layers.py."""

    def __init__(self, model: GPT, cache: KeyValueCache):
        self.cache, self.block_size, self.eps = cache, model.block_size, model.norm.eps
        self.lay_out_weights(model)
        self.make_buffers(model)

    def lay_out_weights(self, model: GPT) -> None:
        """Copy the weights; view embedding and cache; make rotary tables for all heads."""
        C, H = model.architecture["n_embd"], model.architecture["n_head"]
        D = C // H
        self.memory = np.empty(sum(w.numel() for w in model.state_dict().values()) * 6 // 5, np.float32)
        self.used = 0
        self.embedding = model.embedding.weight.detach().numpy()  # (V, C)
        self.layers = []
        cached = self.cache.store[:, :, 0].numpy()
        for block, (keys, values) in zip(model.blocks, cached, strict=True):  # keys and values: (H, block_size, D)
            a, mlp = block.attention, block.mlp
            norms = np.stack([a.query_norm.weight.detach().numpy(), a.key_norm.weight.detach().numpy()])  # (2, D)
            bounded = np.abs(norms).max(axis=1).prod() * D**0.5 < LARGEST_SCORE
            # They include the sqrt(D) of a head's root mean square, and the query's the 1 / sqrt(D) of the scores.
            norms = np.repeat(norms * [[1.0], [D**0.5]], H, axis=0).astype(np.float32)  # (2 H, D)
            # Negated, which saves an operation: silu(gate) * up = -gate / (1 + exp(-gate)) * -up
            gate_up = self.laid_out(mlp.gate_up.weight, -block.mlp_norm.weight)
            qkv = self.laid_out(a.qkv.weight, block.attention_norm.weight)
            matrices = qkv, self.laid_out(a.output.weight), gate_up, self.laid_out(mlp.down.weight)
            self.layers.append((matrices, (norms, keys.transpose(0, 2, 1), values, bounded)))
        self.head = self.laid_out(model.head.weight, model.norm.weight)
        # For all heads: rotated = x * cos + (x with the halves of each head exchanged) * sin
        sign = np.repeat(np.float32([-1, 1]), D // 2)
        self.cos = np.tile(model.cos.numpy(), 2 * H).reshape(-1, 2 * H, D)
        self.sin = np.tile(model.sin.numpy() * sign, 2 * H).reshape(-1, 2 * H, 2, D // 2)

    def make_buffers(self, model: GPT) -> None:
        """Buffers and views of them, so that a step allocates next to nothing. Constants are arrays of shape (): numpy
        takes longer to convert a Python number than to compute with it."""
        C, H = model.architecture["n_embd"], model.architecture["n_head"]
        D = C // H
        hidden = model.blocks[0].mlp.down.weight.size(1)
        self.x, self.normed = np.empty(C, np.float32), np.empty(C, np.float32)
        self.results = [np.empty(len(matrix), np.float32) for matrix in (*self.layers[0][0], self.head)]
        self.qkv, self.attended = self.results[0][: 3 * C], self.results[1][:C]
        self.gate_up, self.fed = self.results[2][: 2 * hidden], self.results[3][:C]
        self.logits = self.results[4][: model.vocab_size]
        self.qk = self.qkv[: 2 * C].reshape(2 * H, D)
        self.exchanged = self.qk.reshape(2 * H, 2, D // 2)[:, ::-1]
        self.rotated = np.empty((2 * H, D), np.float32)
        self.query, self.key = self.rotated[:H, None], self.rotated[H:]  # (H, 1, D), (H, D)
        self.value = self.qkv[2 * C :].reshape(H, D)
        self.length = np.empty((2 * H, 1), np.float32)  # of each head, as a vector
        self.gate, self.up = self.gate_up.reshape(2, hidden)
        self.denominator = np.empty(hidden, np.float32)
        self.one, self.length_eps = np.array(1, np.float32), np.array(D * self.eps, np.float32)

    def laid_out(self, weight: Tensor, norm: Tensor | None = None) -> np.ndarray:
        """Copy a weight (outputs, inputs) into the step's memory, with its longer side contiguous and each input scaled
        by the weight of the RMSNorm before it. Up to a fifth more outputs, which nobody reads, are added where they
        make the product large enough to run on all cores, which is faster."""
        outputs, inputs = weight.shape
        enough = -(-THREADED // inputs)
        padded = enough if outputs < enough <= 1.2 * outputs else outputs
        memory = self.memory[self.used : self.used + padded * inputs]
        self.used += memory.size
        matrix = memory.reshape(inputs, padded).T if outputs > inputs else memory.reshape(padded, inputs)
        matrix[outputs:] = 0
        tensor = torch.from_numpy(matrix[:outputs]).copy_(weight.detach())
        if norm is not None:
            tensor *= norm.detach()
        return matrix

    def normalise(self) -> None:
        """normed = x / sqrt(mean(x^2) + eps); the weights of the norm are in the next matrix."""
        x = self.x
        np.multiply(x, 1 / math.sqrt(float(x.dot(x)) / len(x) + self.eps), self.normed)

    # exp(-gate) may be infinite; silu is then 0, as it should be. The caller looks for NaN in the logits.
    @np.errstate(over="ignore", invalid="ignore")
    def __call__(self, token: int) -> np.ndarray:
        position, end = self.cache.length, self.cache.length + 1
        if end > self.block_size:
            raise ValueError(f"{end} tokens do not fit a block of {self.block_size}.")
        dot, add, multiply, divide = np.dot, np.add, np.multiply, np.divide  # the third argument takes the result
        x, normed, gate, attended, fed = self.x, self.normed, self.gate, self.attended, self.fed
        qkv_result, output_result, gate_up_result, down_result, head_result = self.results
        qk, length, rotated, denominator, query = self.qk, self.length, self.rotated, self.denominator, self.query
        cos, sin = self.cos[position], self.sin[position]

        x[:] = self.embedding[token]
        for (qkv_matrix, output_matrix, gate_up_matrix, down_matrix), (norms, keys, values, bounded) in self.layers:
            # x += output(softmax(q k) v)
            self.normalise()
            dot(qkv_matrix, normed, qkv_result)
            np.vecdot(qk, qk, length[:, 0])
            add(length, self.length_eps, length)
            divide(qk, np.sqrt(length, length), qk)
            multiply(qk, norms, qk)
            multiply(qk, cos, rotated)
            rotated += (self.exchanged * sin).reshape(rotated.shape)
            keys[:, :, position], values[:, position] = self.key, self.value
            scores = query @ keys[:, :, :end]  # (H, 1, S)
            if not bounded:
                scores -= scores.max(axis=2, keepdims=True)
            np.exp(scores, scores)
            y = scores @ values[:, :end]  # (H, 1, D)
            y /= np.add.reduce(scores, 2, None, None, True)
            dot(output_matrix, y.reshape(-1), output_result)
            add(x, attended, x)
            # x += down(silu(gate) * up)
            self.normalise()
            dot(gate_up_matrix, normed, gate_up_result)
            add(np.exp(gate, denominator), self.one, denominator)
            multiply(divide(gate, denominator, gate), self.up, gate)
            dot(down_matrix, gate, down_result)
            add(x, fed, x)
        self.cache.length = end
        self.normalise()
        dot(self.head, normed, head_result)
        return self.logits


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
