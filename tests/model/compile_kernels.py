"""Compile every Triton kernel for an NVIDIA GPU, on a machine that need not have one, and print its name.

Triton's interpreter, in which the other tests run the kernels, knows no types: a pointer that becomes a number, say, is
found by the compiler alone. Run by test_by_hand_gpu.py in a process of its own, because the interpreter is chosen when
Triton is imported.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class NoGPU:
    """As much of Triton's driver as compiling needs."""

    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device=None: 0)


run = JITFunction.run


def compile_only(kernel, *args, warmup, **kwargs):
    run(kernel, *args, warmup=True, **kwargs)
    print(kernel.__name__)


driver.set_active(NoGPU())
JITFunction.run = compile_only

from model import by_hand_gpu, gpt, layers
from model.generation.one_token_gpu import OneTokenOnGPU
from model.gpt import GPT

layers.by_hand = gpt.by_hand = lambda x: None
layers.on_gpu = gpt.on_gpu = lambda x: by_hand_gpu
by_hand_gpu.accumulate_product = lambda total, *_, **__: total  # torch has this product on a GPU only

model = GPT(vocab_size=300, block_size=16, n_layer=1, n_head=3, n_embd=96).compute_in(torch.bfloat16)
model.loss(*torch.zeros(2, 2, 16, dtype=torch.long)).backward()
normed, x = by_hand_gpu.norm_beside(torch.ones(2, 4096).requires_grad_(), torch.ones(4096), 1e-6)  # without stages
(normed + x).sum().backward()
one_token = OneTokenOnGPU(model.eval(), model.new_cache())
one_token.candidates(5, 1)
