"""One token at a time on a CPU, in numpy: the arithmetic of GPT.forward for B = T = 1, with nothing around it.

Where one token is fed, a small model's time in PyTorch goes into starting operations, some microseconds each, and a
large model's into reading every weight once from memory. numpy starts an operation in a fraction of that time, and its
product of a vector and a matrix reads memory faster, the more so the longer the rows of the matrix are. So the step has
its own copy of the weights: one behind the other, each lying so that its longer side makes the rows, with the weights
of each RMSNorm multiplied into the matrix that follows it. The cache is the model's own memory, seen by numpy: each
goes on from what the other has written. tests/test_one_token.py compares the two.
"""

import importlib.util
import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from model.gpt import GPT
from model.layers import KeyValueCache

# Weights from which OpenBLAS, which multiplies for numpy on most machines, shares a product out to all cores.
THREADED = 460_800
# exp of a larger number overflows in fp32 where many are added; QK-norm keeps scores far below, in all but odd models.
LARGEST_SCORE = 80.0


class OneToken:
    """step(token) gives the logits (V,) that model(token, cache) gives, up to fp32 rounding; the cache grows by one.

    For fp32 weights on the CPU and a cache of one sequence. The logits lie in a buffer that the next call overwrites,
    and weights that change after the step was made are not seen. Notation as in layers.py.
    """

    def __init__(self, model: GPT, cache: KeyValueCache):
        C, H = model.architecture["n_embd"], model.architecture["n_head"]
        D = C // H
        self.cache, self.block_size, self.eps = cache, model.block_size, model.norm.eps

        # In memory that numpy allocates, which Linux backs with large pages: they are read faster.
        cache.store = torch.from_numpy(cache.store.numpy().copy())

        # --- weights -------------------------------------------------------------------------------------------------
        self.memory = np.empty(sum(w.numel() for w in model.state_dict().values()) * 6 // 5, np.float32)
        self.used = 0
        self.embedding = model.embedding.weight.detach().numpy()  # (V, C)
        self.layers = []
        for block, (keys, values) in zip(model.blocks, cache.store[:, :, 0].numpy(), strict=True):  # (H, block_size, D)
            a, mlp = block.attention, block.mlp
            norms = np.stack([a.query_norm.weight.detach().numpy(), a.key_norm.weight.detach().numpy()])  # (2, D)
            bounded = np.abs(norms).max(axis=1).prod() * D**0.5 < LARGEST_SCORE
            # With the sqrt(D) of a head's root mean square in them, and the 1 / sqrt(D) of the scores in the query's.
            norms = np.repeat(norms * [[1.0], [D**0.5]], H, axis=0).astype(np.float32)  # (2 H, D)
            # Negated, which spares an operation: silu(gate) * up = -gate / (1 + exp(-gate)) * -up
            gate_up = self.laid_out(mlp.gate_up.weight, -block.mlp_norm.weight)
            qkv = self.laid_out(a.qkv.weight, block.attention_norm.weight)
            matrices = qkv, self.laid_out(a.output.weight), gate_up, self.laid_out(mlp.down.weight)
            self.layers.append((matrices, (norms, keys.transpose(0, 2, 1), values, bounded)))
        self.head = self.laid_out(model.head.weight, model.norm.weight)
        # Rotary tables for all heads: turned = x * cos + (x with the halves of each head exchanged) * sin
        sign = np.repeat(np.float32([-1, 1]), D // 2)
        self.cos = np.tile(model.cos.numpy(), 2 * H).reshape(-1, 2 * H, D)
        self.sin = np.tile(model.sin.numpy() * sign, 2 * H).reshape(-1, 2 * H, 2, D // 2)

        # --- buffers and views of them, so that a step allocates next to nothing -------------------------------------
        # (constants are arrays of shape (): numpy takes longer to make one of a Python number than to compute with it)
        hidden = model.blocks[0].mlp.down.weight.size(1)
        self.x, self.normed = np.empty(C, np.float32), np.empty(C, np.float32)
        self.results = [np.empty(len(matrix), np.float32) for matrix in (*self.layers[0][0], self.head)]
        self.qkv, self.attended = self.results[0][: 3 * C], self.results[1][:C]
        self.gate_up, self.fed = self.results[2][: 2 * hidden], self.results[3][:C]
        self.logits = self.results[4][: model.vocab_size]
        self.qk = self.qkv[: 2 * C].reshape(2 * H, D)
        self.exchanged = self.qk.reshape(2 * H, 2, D // 2)[:, ::-1]
        self.turned = np.empty((2 * H, D), np.float32)
        self.query, self.key = self.turned[:H, None], self.turned[H:]  # (H, 1, D), (H, D)
        self.value = self.qkv[2 * C :].reshape(H, D)
        self.length = np.empty((2 * H, 1), np.float32)  # of each head, as a vector
        self.gate, self.up = self.gate_up.reshape(2, hidden)
        self.denominator = np.empty(hidden, np.float32)
        self.one, self.length_eps = np.array(1, np.float32), np.array(D * self.eps, np.float32)

    def laid_out(self, weight: Tensor, norm: Tensor | None = None) -> np.ndarray:
        """A weight (outputs, inputs), each input scaled by the weight of the RMSNorm before it, in the step's own
        memory: with its longer side in one piece, which is read faster, and perhaps with a few more outputs, which
        nobody looks at: where these make the product large enough for threads, it is the faster with them.
        """
        outputs, inputs = weight.shape
        enough = -(-THREADED // inputs)
        padded = enough if outputs < enough <= 1.2 * outputs else outputs
        place = self.memory[self.used : self.used + padded * inputs]
        self.used += place.size
        wide = outputs > inputs
        matrix = place.reshape(inputs, padded).T if wide else place.reshape(padded, inputs)
        matrix[outputs:] = 0
        tensor = torch.from_numpy(matrix[:outputs]).copy_(weight.detach())
        if norm is not None:
            tensor *= norm.detach()
        return matrix

    def normalise(self) -> None:
        """normed = x / sqrt(mean(x^2) + eps); the weights of the norm are in the next matrix."""
        x = self.x
        np.multiply(x, 1 / math.sqrt(float(x.dot(x)) / len(x) + self.eps), self.normed)

    # exp(-gate) may be infinite, and silu is then 0, as it should be; logits that are NaN are the caller's to notice
    @np.errstate(over="ignore", invalid="ignore")
    def __call__(self, token: int) -> np.ndarray:
        position, end = self.cache.length, self.cache.length + 1
        if end > self.block_size:
            raise ValueError(f"{end} tokens do not fit a block of {self.block_size}.")
        dot, add, multiply, divide = np.dot, np.add, np.multiply, np.divide  # a third argument is where the result goes
        x, normed, gate, attended, fed = self.x, self.normed, self.gate, self.attended, self.fed
        qkv_result, output_result, gate_up_result, down_result, head_result = self.results
        qk, length, turned, denominator, query = self.qk, self.length, self.turned, self.denominator, self.query
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
            multiply(qk, cos, turned)
            turned += (self.exchanged * sin).reshape(turned.shape)
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


def fast_one_token(model: GPT, cache: KeyValueCache) -> Callable | None:
    """What feeds one token to this model fastest: OneToken on a CPU, one_token_gpu.py on an NVIDIA GPU, or None, which
    is the model itself."""
    if model.device.type == "cpu":
        return OneToken(model, cache)
    if model.device.type != "cuda" or not importlib.util.find_spec("triton"):
        return None
    try:
        from model.generation.one_token_gpu import (
            OneTokenOnGPU,  # Triton is not everywhere, and takes a second to import
        )

        return OneTokenOnGPU(model, cache)
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:  # of Triton's C compiler, say
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        print(f"The fast step for a GPU does not work here, so generating is slower: {reason}", file=sys.stderr)
        return None
