"""One token at a time on an NVIDIA GPU: GPT.forward for T = 1 in five kernels per layer, run as one CUDA graph.

The plain version is model/layers.py and model/gpt.py; tests/generation/test_one_token_gpu.py compares logits and
cache, in Triton's interpreter where there is no GPU.

For one token PyTorch starts some forty small kernels per layer, and starting each takes longer than running it. Here a
kernel does everything up to the next point where all numbers are needed, in Triton, which comes with torch on Linux.
The kernels of a step, and the copies to and from the GPU, are recorded once and started together:

    norm, W_qkv │ QK-norm, rotary, attention in chunks │ merge chunks, W_output, + │ norm, W_gate_up, SwiGLU │ W_down, +

Arithmetic is in fp32; weights and cache are read in the precision that the model computes in. The cache is the model's
own: the step and the model each continue what the other has written. Most often only the candidates of the next token
are wanted: then the GPU selects these, and a few numbers are copied instead of all logits.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import triton
import triton.language as tl

from model.gpt import GPT
from model.layers import KeyValueCache

# Measured on an H200 with 124M parameters; other sizes took up to twice as long.
CHUNK = 256  # cached tokens per program of the attention
CHUNKS = 8  # chunks merged at once
TILE = 8192  # most weights that one program of a product holds at once
LOGITS = 4096  # that are added up at once
PROGRAMS = 256  # fewest programs per product, where it is large enough: an H200 has 132 processors


# --- kernels ----------------------------------------------------------------------------------------------------------
# A program of a product computes some of the outputs of one text, whose number is the last program id. Its `rows` of
# the weight (outputs, inputs) are its outputs, its `columns` are all inputs; Triton wants powers of two, so their
# numbers are rounded up and the rest is masked. The input is the position, the same for all texts, and their tokens.


@triton.jit
def unscaled_norm(x_ptr, norm_ptr, inputs, eps, COLUMNS: tl.constexpr):
    """x * norm and the factor 1 / sqrt(mean(x^2) + eps), apart, so that the product need not wait for the factor."""
    columns = tl.arange(0, COLUMNS)
    x = tl.load(x_ptr + columns, columns < inputs, 0.0)
    norm = tl.load(norm_ptr + columns, columns < inputs, 0.0)
    return x * norm, 1 / tl.sqrt(tl.sum(x * x, 0) / inputs + eps)


@triton.jit
def product(weight_ptr, x, rows, outputs, inputs, COLUMNS: tl.constexpr):
    """These rows of W x."""
    columns = tl.arange(0, COLUMNS)
    inside = (rows < outputs)[:, None] & (columns < inputs)[None, :]
    offsets = rows.to(tl.int64)[:, None] * inputs + columns[None, :]
    weight = tl.load(weight_ptr + offsets, inside, 0.0).to(tl.float32)
    return tl.sum(weight * x[None, :], 1)


@triton.jit
def norm_product(x_ptr, norm_ptr, weight_ptr, y_ptr, outputs, inputs, eps, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """y = W norm(x)"""
    x_ptr, y_ptr = x_ptr + tl.program_id(1) * inputs, y_ptr + tl.program_id(1) * outputs
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    x, scale = unscaled_norm(x_ptr, norm_ptr, inputs, eps, COLUMNS)
    tl.store(y_ptr + rows, product(weight_ptr, x, rows, outputs, inputs, COLUMNS) * scale, rows < outputs)


@triton.jit
def norm_swiglu(x_ptr, norm_ptr, weight_ptr, y_ptr, hidden, inputs, eps, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """y = silu(W_gate norm(x)) * (W_up norm(x)), where the weight holds W_gate, then W_up."""
    x_ptr, y_ptr = x_ptr + tl.program_id(1) * inputs, y_ptr + tl.program_id(1) * hidden
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    x, scale = unscaled_norm(x_ptr, norm_ptr, inputs, eps, COLUMNS)
    gate = product(weight_ptr, x, rows, hidden, inputs, COLUMNS) * scale
    up = product(weight_ptr + hidden.to(tl.int64) * inputs, x, rows, hidden, inputs, COLUMNS) * scale
    tl.store(y_ptr + rows, gate / (1 + tl.exp(-gate)) * up, rows < hidden)


@triton.jit
def add_product(y_ptr, weight_ptr, x_ptr, outputs, inputs, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """x += W y"""
    y_ptr, x_ptr = y_ptr + tl.program_id(1) * inputs, x_ptr + tl.program_id(1) * outputs
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    y = tl.load(y_ptr + columns, columns < inputs, 0.0)
    x = tl.load(x_ptr + rows, rows < outputs, 0.0)
    tl.store(x_ptr + rows, x + product(weight_ptr, y, rows, outputs, inputs, COLUMNS), rows < outputs)


@triton.jit
def rotated_head(x_ptr, norm_ptr, cos_ptr, sin_ptr, half, eps, HALF: tl.constexpr):
    """One head's query or key, normalised and rotated by its position (layers.py: rotate), as its two halves."""
    i = tl.arange(0, HALF)
    a, b = tl.load(x_ptr + i, i < half, 0.0), tl.load(x_ptr + half + i, i < half, 0.0)
    scale = 1 / tl.sqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / (2 * half) + eps)
    a *= scale * tl.load(norm_ptr + i, i < half, 0.0)
    b *= scale * tl.load(norm_ptr + half + i, i < half, 0.0)
    cos, sin = tl.load(cos_ptr + i, i < half, 0.0), tl.load(sin_ptr + i, i < half, 0.0)
    return a * cos - b * sin, b * cos + a * sin


@triton.jit
def attend(
    input_ptr, qkv_ptr, query_norm_ptr, key_norm_ptr, cos_ptr, sin_ptr, keys_ptr, values_ptr,
    partial_ptr, logs_ptr, half, block_size, scale, eps, HALF: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Attention of one head over one chunk of tokens, as if there were no others, and ln of the sum of exp(score) in
    it. The program of the new token's chunk also writes its key and value to the cache."""
    head, chunk, text = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    heads, chunks, size = tl.num_programs(0), tl.num_programs(1), 2 * half
    position = tl.load(input_ptr).to(tl.int32)
    table = position * size
    i = tl.arange(0, HALF)
    q = qkv_ptr + (3 * text * heads + head) * size
    k, v = q + heads * size, q + 2 * heads * size
    qa, qb = rotated_head(q, query_norm_ptr, cos_ptr + table, sin_ptr + table, half, eps, HALF)
    ka, kb = rotated_head(k, key_norm_ptr, cos_ptr + table, sin_ptr + table, half, eps, HALF)
    va, vb = tl.load(v + i, i < half, 0.0), tl.load(v + half + i, i < half, 0.0)

    tokens = chunk * CHUNK + tl.arange(0, CHUNK)
    old, new = (tokens < position)[:, None] & (i < half)[None, :], (tokens == position)[:, None]
    cached = (text * heads + head).to(tl.int64) * block_size
    offsets = (cached + tokens)[:, None] * size + i[None, :]
    keys_a = tl.where(new, ka[None, :], tl.load(keys_ptr + offsets, old, 0.0).to(tl.float32))
    keys_b = tl.where(new, kb[None, :], tl.load(keys_ptr + half + offsets, old, 0.0).to(tl.float32))
    values_a = tl.where(new, va[None, :], tl.load(values_ptr + offsets, old, 0.0).to(tl.float32))
    values_b = tl.where(new, vb[None, :], tl.load(values_ptr + half + offsets, old, 0.0).to(tl.float32))

    scores = (tl.sum(keys_a * qa[None, :], 1) + tl.sum(keys_b * qb[None, :], 1)) * scale
    scores = tl.where(tokens <= position, scores, float("-inf"))
    highest = tl.max(scores, 0)
    exps = tl.where(tokens <= position, tl.exp(scores - highest), 0.0)
    total = tl.sum(exps, 0)
    place = (text * chunks + chunk) * heads + head
    partial = partial_ptr + place * size + i
    tl.store(partial, tl.sum(exps[:, None] * values_a, 0) / total, i < half)
    tl.store(partial + half, tl.sum(exps[:, None] * values_b, 0) / total, i < half)
    tl.store(logs_ptr + place, highest + tl.log(total))

    mine = i < tl.where(position // CHUNK == chunk, half, 0)
    offsets = (cached + position) * size + i
    tl.store(keys_ptr + offsets, ka, mine)
    tl.store(keys_ptr + half + offsets, kb, mine)
    tl.store(values_ptr + offsets, va, mine)
    tl.store(values_ptr + half + offsets, vb, mine)


@triton.jit
def add_attended(
    input_ptr, partial_ptr, logs_ptr, weight_ptr, x_ptr, outputs, heads, all_chunks,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """x += W y, where y merges the attention over each chunk, in proportion to the chunks' sums of exp(score). CHUNKS
    are merged at once."""
    text = tl.program_id(1)
    partial_ptr, logs_ptr = partial_ptr + text * all_chunks * outputs, logs_ptr + text * all_chunks * heads
    x_ptr += text * outputs
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside, head, last = columns < outputs, columns // (outputs // heads), tl.load(input_ptr).to(tl.int32) // CHUNK
    highest = tl.where(inside, float("-inf"), 0.0)
    y, total = tl.zeros([COLUMNS], tl.float32), tl.zeros([COLUMNS], tl.float32)
    for first in range(0, last + 1, CHUNKS):
        chunks = (first + tl.arange(0, CHUNKS))[:, None]
        valid = (chunks <= last) & inside[None, :]
        logs = tl.load(logs_ptr + chunks * heads + head[None, :], valid, float("-inf"))
        partial = tl.load(partial_ptr + chunks * outputs + columns[None, :], valid, 0.0)
        higher = tl.maximum(highest, tl.max(logs, 0))
        before, scales = tl.exp(highest - higher), tl.exp(logs - higher[None, :])
        y = y * before + tl.sum(scales * partial, 0)
        total = total * before + tl.sum(scales, 0)
        highest = higher
    y = tl.where(inside, y / total, 0.0)
    x = tl.load(x_ptr + rows, rows < outputs, 0.0)
    tl.store(x_ptr + rows, x + product(weight_ptr, y, rows, outputs, outputs, COLUMNS), rows < outputs)


@triton.jit
def log_sum_and_mean(logits_ptr, sums_ptr, V, COLUMNS: tl.constexpr):
    """Of one text's logits: ln of the sum of exp(logit), and the expected logit."""
    logits_ptr += tl.program_id(0) * V
    column = tl.arange(0, COLUMNS)
    highest = tl.full([COLUMNS], float("-inf"), tl.float32)
    for first in range(0, V, COLUMNS):
        highest = tl.maximum(highest, tl.load(logits_ptr + first + column, first + column < V, float("-inf")))
    highest = tl.max(highest, 0)
    total, weighted = tl.zeros([COLUMNS], tl.float32), tl.zeros([COLUMNS], tl.float32)
    for first in range(0, V, COLUMNS):
        x = tl.load(logits_ptr + first + column, first + column < V, 0.0)
        exps = tl.where(first + column < V, tl.exp(x - highest), 0.0)
        total += exps
        weighted += exps * x
    total, weighted = tl.sum(total, 0), tl.sum(weighted, 0)
    tl.store(sums_ptr + tl.program_id(0) * 2, highest + tl.log(total))
    tl.store(sums_ptr + tl.program_id(0) * 2 + 1, weighted / total)


# --- the step ---------------------------------------------------------------------------------------------------------


def tiling(
    texts: int, outputs: int, inputs: int, matrices: int = 1, rows: int = 0, warps: int = 4
) -> tuple[tuple[int, int], dict]:
    """How to divide a product for so many texts: the grid of programs, and the ROWS, COLUMNS and warps of each."""
    columns = triton.next_power_of_2(inputs)
    rows = rows or max(1, min(TILE // columns // matrices, triton.next_power_of_2(outputs // PROGRAMS + 1) // 2))
    return (triton.cdiv(outputs, rows), texts), {"ROWS": rows, "COLUMNS": columns, "num_warps": warps}


class OneTokenOnGPU:
    """step(token) gives the logits (1, V) that model(token, cache) gives, up to rounding; the cache grows by one. With
    a cache of B texts, step(token, ..., token) takes B tokens and gives (B, V). The next call overwrites the logits.
    The step does not see weights that change after it was made. Notation as in layers.py."""

    most_candidates = 1 << 16  # as many as there can be ids

    def __init__(self, model: GPT, cache: KeyValueCache):
        self.model, self.cache, self.block_size = model, cache, model.block_size
        self.layers = []
        for block in model.blocks:
            matrices = block.attention.qkv, block.attention.output, block.mlp.gate_up, block.mlp.down
            self.layers.append([matrix.weight.detach().to(matrix.compute) for matrix in matrices])
        self.head = model.head.weight.detach().to(model.head.compute)
        C, H, V = model.architecture["n_embd"], model.architecture["n_head"], model.vocab_size
        B, chunks = cache.store.size(2), triton.cdiv(model.block_size, CHUNK)
        on_gpu, numbers = model.device.type == "cuda", partial(torch.zeros, device=model.device)
        # Between Python and the GPU: position and tokens in; logits, or candidates, out.
        self.host_input = torch.zeros(1 + B, dtype=torch.int64, pin_memory=on_gpu)
        self.host_logits = torch.zeros(B, V, pin_memory=on_gpu)
        self.input = self.host_input.to(model.device)
        self.x, self.qkv, self.logits = numbers(B, C), numbers(B, 3 * C), numbers(B, V)
        self.fed = numbers(B, model.blocks[0].mlp.down.weight.size(1))
        self.partial, self.logs = numbers(B, chunks, C), numbers(B, chunks, H)
        self.given, self.result = self.host_input.numpy(), self.host_logits.numpy()
        self.graphs, self.host = {}, {}  # by the number of candidates; 0: all logits
        if on_gpu:
            # Compile here, where fast_one_token() notices what Triton lacks. With any tokens, at the position whose key
            # and value the next tokens will overwrite.
            self.given[0] = cache.length % self.block_size
            self.step()

    def step(self) -> None:
        """From (position, tokens) to the logits."""
        model, x, (B, chunks, C) = self.model, self.x, self.partial.shape
        H, V = model.architecture["n_head"], model.vocab_size
        half, hidden, eps = C // H // 2, self.fed.size(1), model.norm.eps
        self.input.copy_(self.host_input, non_blocking=True)
        torch.index_select(model.embedding.weight.detach(), 0, self.input[1:], out=x)
        for block, (qkv, output, gate_up, down), (keys, values) in zip(
            model.blocks, self.layers, self.cache.store, strict=True
        ):
            grid, sizes = tiling(B, 3 * C, C)
            norm_product[grid](x, block.attention_norm.weight, qkv, self.qkv, 3 * C, C, eps, **sizes)
            norms = block.attention.query_norm.weight, block.attention.key_norm.weight
            attend[(H, chunks, B)](
                self.input, self.qkv, *norms, model.cos, model.sin, keys, values, self.partial, self.logs,
                half, model.block_size, (2 * half) ** -0.5, eps, HALF=triton.next_power_of_2(half), CHUNK=CHUNK,
                num_warps=8,
            )  # fmt: skip
            grid, sizes = tiling(B, C, C, rows=8, warps=8)  # few programs, because each one merges the chunks again
            merge = {"CHUNK": CHUNK, "CHUNKS": min(CHUNKS, triton.next_power_of_2(chunks))}
            add_attended[grid](self.input, self.partial, self.logs, output, x, C, H, chunks, **merge, **sizes)
            grid, sizes = tiling(B, hidden, C, matrices=2)
            norm_swiglu[grid](x, block.mlp_norm.weight, gate_up, self.fed, hidden, C, eps, **sizes)
            grid, sizes = tiling(B, C, hidden)
            add_product[grid](self.fed, down, x, C, hidden, **sizes)
        grid, sizes = tiling(B, V, C)
        norm_product[grid](x, model.norm.weight, self.head, self.logits, V, C, eps, **sizes)

    def copy_logits(self) -> None:
        self.step()
        self.host_logits.copy_(self.logits, non_blocking=True)

    def copy_candidates(self, n: int) -> None:
        """The n highest logits, their ids, ln of the sum of exp(logit) over all ids, and the mean logit."""
        self.step()
        logits, ids = self.logits.topk(n)  # (B, n) each
        host_logits, host_ids = self.host_candidates(n)
        B, V = self.logits.shape
        columns = min(LOGITS, triton.next_power_of_2(V))
        sums = self.logits.new_empty(B, 2)
        log_sum_and_mean[(B,)](self.logits, sums, V, COLUMNS=columns, num_warps=max(1, columns // 256))
        host_logits.copy_(torch.cat([logits, sums], 1), non_blocking=True)
        host_ids.copy_(ids, non_blocking=True)

    def run(self, work: Callable, n: int, tokens: tuple[int, ...]) -> None:
        """Feed the tokens. On a GPU the first call of each kind runs the work as it is, then records it."""
        position = self.cache.length
        if position + 1 > self.block_size:
            raise ValueError(f"{position + 1} tokens do not fit a block of {self.block_size}.")
        self.given[:] = position, *tokens
        if self.model.device.type != "cuda":
            work()
        elif n not in self.graphs:
            work()
            self.graphs[n] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graphs[n]):
                work()
            torch.cuda.synchronize()
        else:
            self.graphs[n].replay()
            torch.cuda.current_stream().synchronize()
        self.cache.length = position + 1

    @torch.inference_mode()
    def __call__(self, *tokens: int) -> np.ndarray:
        self.run(self.copy_logits, 0, tokens)
        return self.result

    @torch.inference_mode()
    def candidates(self, n: int, *tokens: int) -> tuple[np.ndarray, ...]:
        """Instead of the logits: the ids of the n highest (B, n), their logits (B, n), highest first; and over all ids
        ln of the sum of exp(logit) and the expected logit, (B) each."""
        self.run(partial(self.copy_candidates, n), n, tokens)
        logits, ids = (host.numpy() for host in self.host_candidates(n))
        return ids, logits[:, :-2], logits[:, -2], logits[:, -1]

    def host_candidates(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Memory for n candidates on the side of Python: logits and, in the last two columns, sums; ids."""
        if n not in self.host:
            B, pinned = len(self.x), {"pin_memory": self.model.device.type == "cuda"}
            self.host[n] = torch.zeros(B, n + 2, **pinned), torch.zeros(B, n, dtype=torch.int64, **pinned)
        return self.host[n]
