"""Training against nanoGPT: tokens per second by model size."""

import math
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from config import CHAR
from dataset import draw_batch
from model import by_hand_c
from model.device import keep_memory, pick_device, pick_dtype, wait_for
from model.gpt import GPT
from model.monitoring.estimate import flops_per_token
from model.training.choose_step import compile_step
from model.training.cuda_graph import CudaGraph
from model.training.optimizer import Optimizer
from model.training.schedule import evaluation_interval
from plumbing.errors import UserError
from scripts.benchmarks.common import matmul_flops, medians, seconds_of
from scripts.benchmarks.models import BATCH_SIZES, GPU_BATCH_SIZES, MODELS, is_tied

LEAST_SECONDS = 10.0  # small models run more rounds than asked for, until this much time has passed
EVALUATION_TOKENS = 4096  # per batch of an evaluation on a CPU, as in train.py's evaluate()
NANOGPT_IDS = {"124M": {"vocab_size": 50304}}  # as its train.py rounds GPT-2's 50,257
GPU_STEPS = 20  # steps that are timed together on a GPU; a training waits for the GPU only at its log lines

# Runs in a process of its own, in a checkout of nanoGPT: its model and optimizer as its train.py uses them on a CPU
# (fp32) or a GPU (bfloat16, compiled), on random tokens. For each line it reads, a number of steps, it takes these
# steps and prints their seconds.
NANOGPT_STEP = """
import contextlib, sys, time, torch
from model import GPT, GPTConfig
vocab_size, block_size, n_layer, n_head, n_embd, batch_size, micro_batches = map(int, sys.argv[1:])
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.backends.cuda.matmul.allow_tf32 = True
model = GPT(GPTConfig(block_size, vocab_size, n_layer, n_head, n_embd, dropout=0.0, bias=False)).to(device)
optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), device)
if device == "cuda": model = torch.compile(model)
context = torch.autocast("cuda", torch.bfloat16) if device == "cuda" else contextlib.nullcontext()
idx, targets = torch.randint(vocab_size, (2, batch_size, block_size), device=device)
for line in sys.stdin:
    start = time.perf_counter()
    for _ in range(int(line)):
        for _ in range(micro_batches):
            with context:
                _, loss = model(idx, targets)
            (loss / micro_batches).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    loss.item()
    print("seconds", time.perf_counter() - start, flush=True)
"""


class NanoGPTStep:
    """nanoGPT's training step, in a process of its own."""

    def __init__(self, script: str, folder: Path, *args):
        command, pipe = [sys.executable, "-c", script, *map(str, args)], subprocess.PIPE
        self.process = subprocess.Popen(  # noqa: S603 (the checkout that the user names)
            command, cwd=folder, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, encoding="utf-8"
        )

    def seconds(self, steps: int = 1) -> float:
        """Take some steps. Returns the seconds per step."""
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1]) / steps
        raise UserError("nanoGPT's model did not run. Does --nanogpt name a checkout of it?")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


class OurStep:
    """Our training step on random tokens: on a CPU in parts, each timed; on a GPU as one CUDA graph. Each of its
    micro-batches has the whole batch size."""

    def __init__(self, shape: dict, batch_size: int, dtype: torch.dtype, compile: bool, micro_batches: int):
        device = pick_device("auto")
        by_hand_c.use(device.type == "cpu" and dtype == torch.float32)  # as a training does
        self.model = GPT(**shape, tie_embeddings=is_tied(shape)).to(device).compute_in(dtype)
        self.optimizer = Optimizer(self.model, CHAR, dtype)
        parts = self.model.loss, self.optimizer.step
        self.loss_of, self.step = compile_step(self.model, self.optimizer) if compile else parts
        self.idx, self.targets = torch.randint(shape["vocab_size"], (2, batch_size, shape["block_size"]), device=device)
        self.rate, self.micro_batches = torch.ones((), device=device), micro_batches
        self.device, self.steps = device, 1 if device.type == "cpu" else GPU_STEPS
        tokens = np.zeros(1 << 24, np.uint16)  # a training file
        self.draw = partial(draw_batch, tokens, shape["block_size"], batch_size, 1, 0)
        self.graph = CudaGraph(self.whole_step) if device.type != "cpu" else None

    def seconds(self) -> dict[str, float]:
        """Seconds per step, and on a CPU those of its parts and of one batch of an evaluation."""
        if self.graph:
            return {"step": seconds_of(self.replay_graph) / self.steps}
        forward_backward, update = seconds_of(self.forward_backward), seconds_of(self.update)
        data, evaluation = seconds_of(self.draw), seconds_of(self.evaluate)
        return {"step": forward_backward + update + data, "update": update, "data": data, "evaluation": evaluation}

    def forward_backward(self) -> None:
        self.optimizer.zero_grad()
        for _ in range(self.micro_batches):
            (self.loss_of(self.idx, self.targets) / self.micro_batches).backward()

    def update(self) -> None:
        self.optimizer.clip(1.0)
        self.step(self.rate)

    @torch.inference_mode()
    def evaluate(self) -> None:
        sequences = EVALUATION_TOKENS // self.model.block_size
        self.model.loss(self.idx[:1].expand(sequences, -1), self.targets[:1].expand(sequences, -1))

    def whole_step(self) -> None:
        self.forward_backward()
        self.update()

    def replay_graph(self) -> None:
        for _ in range(self.steps):
            self.graph()
        wait_for(self.device)


def measure_step(name: str, args) -> dict:
    """The row of one model: our step, nanoGPT's and a matrix product in turn."""
    device = pick_device("auto")
    shape, batch_size = MODELS[name], (BATCH_SIZES if device.type == "cpu" else GPU_BATCH_SIZES)[name]
    if device.type == "cpu":
        keep_memory()
    dtype, tokens = pick_dtype("auto", device), args.accumulate * batch_size * shape["block_size"]
    ours = OurStep(shape, batch_size, dtype, args.compile, args.accumulate)
    its_shape = shape | NANOGPT_IDS.get(name, {})
    its_args = *its_shape.values(), batch_size, args.accumulate
    peer = NanoGPTStep(NANOGPT_STEP, args.nanogpt, *its_args) if args.nanogpt else None
    flops = tokens * flops_per_token(ours.model)
    results, begin = [], time.perf_counter()
    while len(results) <= args.rounds or time.perf_counter() - begin <= LEAST_SECONDS:
        figures = ours.seconds()
        figures["nanoGPT"] = peer.seconds(ours.steps) if peer else math.nan
        figures["limit"] = matmul_flops(dtype)
        figures["ratio"] = figures["nanoGPT"] / figures["step"]
        figures["of the limit"] = flops / figures["step"] / figures["limit"]
        results.append(figures)
    if peer:
        peer.close()
    return training_row(name, tokens, flops, medians(results[1:]))  # the first one compiles


def training_row(name: str, tokens: int, flops: float, figures: dict) -> dict:
    """On a CPU also the fractions of time that the update, the data and config.py's evaluations take."""
    step, peer = figures["step"], not math.isnan(figures["nanoGPT"])
    row = {
        "model": name,
        "tokens per step": tokens,
        "ours, tokens/s": round(tokens / step),
        "nanoGPT, tokens/s": round(tokens / figures["nanoGPT"]) if peer else "",
        "ratio": f"{figures['ratio']:.2f}" if peer else "",
        "GFLOP/s": round(flops / step / 1e9),
        "limit": round(figures["limit"] / 1e9),
        "of the limit": f"{figures['of the limit']:.0%}",
    }
    if "update" in figures:
        batches = CHAR.eval_tokens / EVALUATION_TOKENS
        every = evaluation_interval(CHAR.eval_every, CHAR.max_steps)
        evaluation = figures["evaluation"] * batches / every  # seconds per training step
        row |= {
            "update": f"{figures['update'] / step:.0%}",
            "data": f"{figures['data'] / step:.1%}",
            "evaluation": f"{evaluation / (step + evaluation):.1%}",
        }
    return row


def measure_training(args) -> list[dict]:
    return [measure_step(name, args) for name in args.sizes]
