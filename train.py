"""Train a GPT on characters, and watch it learn.

    python train.py
    python train.py --n-layer 6 --n-embd 192 --max-steps 5000
    torchrun --standalone --nproc_per_node=4 train.py

Reads   data/train.bin, data/val.bin (scripts/prepare_dataset.py) and data/tokenizer_char.json
Writes  checkpoints/char/step_*.pt, log.jsonl and, at each evaluation, gpt_model.pt; the finished model also as
        gpt_model.pt
Next    python generate.py --prompt "def "

Stop it with Ctrl-C and run the same command again: it resumes from the newest checkpoint, and the model comes out the
same, number for number on a CPU, as if it had never stopped. Every setting is in config.py.

The training loop is in train(): draw a batch, set the learning rate, take a step, and now and then print a line, save a
checkpoint, evaluate. What a run consists of is in model/training/run.py; what it prints, model/monitoring/reporter.py.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # also with python -I
import plumbing.start

import time
from pathlib import Path

STARTED = time.perf_counter()  # --minutes counts from here

from config import CHAR, Settings
from model.training.command_line import training_flags
from plumbing.errors import run_script

if __name__ == "__main__":
    settings, args = training_flags(CHAR, __doc__)  # before torch, which takes seconds to import

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dataset import TokenFile, blocks_in_order
from model.device import memory_advice, to_device
from model.gpt import GPT
from model.monitoring.estimate import check_memory, print_estimate
from model.monitoring.reporter import Reporter, check_finite, report_stop
from model.training import distributed
from model.training.choose_step import choose_step
from model.training.run import Run, open_run
from model.training.schedule import learning_rate_at
from model.training.stop import Stopped

LOGITS = 1 << 28  # that an evaluation computes at once, 1 GB in fp32


def train(run: Run, report: Reporter) -> None:
    """Train until run.max_steps, which a resumed run counts from its first step."""
    settings = run.settings
    report.start()
    if report.evaluation_due():  # of the untrained model
        report.validation(*evaluate(run.model, run.val_data, run.stop.check, run.eval_tokens))
    step_of = choose_step(run, train_step)  # eager, compiled or a CUDA graph; with --minutes, sets run.max_steps

    while run.step < run.max_steps:
        run.stop.check()  # raises Stopped after Ctrl-C
        report.before_step()
        fraction = learning_rate_at(run.step, run.max_steps, settings.warmup_steps, settings.decay_fraction)
        if settings.dropout > 0:  # no two processes drop the same activations
            distributed.seed_random_numbers(settings.seed, run.step)
        inputs, targets = run.batches(run.step)  # (B, T) each: B sequences of T tokens, and the same one token later
        loss, norm = step_of(inputs, targets, torch.full((), fraction, device=run.device))  # on a GPU, nothing waits
        run.step += 1
        report.after_step(loss, norm, fraction)
        if report.checkpoint_due():
            report.saved(run.save_checkpoint())
        if report.evaluation_due():
            report.validation(*evaluate(run.model, run.val_data, run.stop.check, run.eval_tokens))


def train_step(
    run: Run, loss_of: Callable, update: Callable, inputs: Tensor, targets: Tensor, fraction: Tensor
) -> tuple[Tensor, Tensor]:
    """Forward, backward and update for one batch, inputs and targets (B, T), at a fraction (0-dim) of the peak learning
    rates. Returns the loss (nats per token) and the norm of the gradient before clipping, both 0-dim. Each of several
    processes has the loss of its own rows.

    loss_of(inputs, targets) is run.model.loss and update(fraction) is run.optimizer.step, perhaps compiled. The batch
    goes through the loss in settings.accumulate micro-batches, whose gradients add up.

    On a CPU, raises FloatingPointError before the update if the loss or the norm is not finite, so the weights stay
    sound. To ask a GPU would be to wait for it; there report.after_step() asks, where it waits anyway.
    """
    optimizer, micro_batches = run.optimizer, run.settings.accumulate
    optimizer.zero_grad()
    total = 0.0
    for x, y in zip(inputs.chunk(micro_batches), targets.chunk(micro_batches), strict=True):
        loss = loss_of(x, y) / micro_batches
        loss.backward()  # adds to the gradient of every weight; together they are the vector optimizer.grads
        total = total + loss.detach()  # the number alone, without what backward() needed
    if not run.model.is_sharded:  # fully_shard averages by itself
        distributed.average(optimizer.grads)
    norm = optimizer.clip(run.settings.grad_clip)
    if inputs.device.type == "cpu":
        check_finite(total.item(), norm.item())
    update(fraction)
    return total, norm


@torch.inference_mode()
def evaluate(model: GPT, data: TokenFile, check: Callable = lambda: None, at_most: int = 0) -> tuple[float, int]:
    """The loss in nats per token over a token file, in non-overlapping blocks: each token but the first counts once.

    Returns (loss, tokens scored). With `at_most`, about so many tokens, spread evenly over the file, represent it.
    Each of several processes scores its share of the batches, and all get the result for all. check() is called before
    each batch.
    """
    model.eval()  # no dropout, until train() below
    tokens = 4096 if model.device.type == "cpu" else 65536  # per batch: what the device likes,
    tokens = min(tokens, LOGITS // model.vocab_size)  # as long as their logits fit
    batch_size = max(1, tokens // model.block_size)
    every = max(1, len(data) // at_most) if at_most else 1
    total, scored, rank, processes = 0.0, 0, distributed.rank(), distributed.world_size()
    with tqdm(total=len(data) // every, desc="validation", unit="token", unit_scale=True, delay=2, leave=False) as bar:
        for inputs, targets in blocks_in_order(data, model.block_size, batch_size, every, rank, processes):
            check()
            counted = inputs.size
            if not counted:  # nothing left for this process, but the others may need its shard of the weights
                inputs = targets = np.zeros((1, 1), np.int64)
            loss = model.loss(to_device(inputs, model.device), to_device(targets, model.device))
            total, scored = total + loss.item() * counted, scored + counted
            bar.update(counted * processes)
    model.train()
    total, scored = distributed.sum_over_processes(total, scored)
    return total / scored, int(scored)


@memory_advice("Try a smaller --batch-size, --block-size, --n-layer or --n-embd. Announced checkpoints are safe.")
def main(
    settings: Settings,
    fresh: bool = False,
    kind: str = "char",
    init_from: Path | None = None,
    ids: int | None = None,
    plan: bool = False,
) -> int:
    """Train, or with `plan` only estimate. Returns the exit code. The arguments are those of the command line."""
    with distributed.process_group(settings.device), open_run(settings, fresh, kind, init_from, ids, plan) as run:
        run.started = STARTED
        check_memory(run)
        try:
            if plan:
                print_estimate(run, train_step, evaluate)
            else:
                with Reporter(run) as report:
                    train(run, report)
                    report.finish()
            return 0
        except Stopped:
            return run.stop.exit_code if plan else report_stop(run)
        except FloatingPointError as error:
            raise run.failure(error) from None


if __name__ == "__main__":
    run_script(lambda: main(settings, args.fresh, "char", args.init_from, args.ids, args.plan), when_unread="stderr")
