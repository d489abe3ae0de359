"""Train a GPT on characters, and watch it learn.

    python train.py
    python train.py --n-layer 6 --n-embd 192 --max-steps 5000
    torchrun --standalone --nproc_per_node=4 train.py

Reads   data/train.bin, data/val.bin (scripts/prepare_dataset.py) and data/tokenizer_char.json
Writes  checkpoints/char/step_*.pt and log.jsonl while it runs, gpt_model.pt at the end
Next    python generate.py --prompt "def "

Stop it with Ctrl-C and run the same command again: it goes on from the newest checkpoint, and the model comes out the
same, number for number on a CPU, as if it had never stopped. Every setting stands in config.py.
"""

import time

STARTED = time.perf_counter()  # --minutes counts from here

from config import CHAR, Model, Settings
from model.training.command_line import training_flags
from plumbing.command_line import file_flags, refuse_same
from plumbing.errors import UsageError, UserError, run_script
from plumbing.settings import values_of
from plumbing.text import shown_path

if __name__ == "__main__":
    settings, args = training_flags(CHAR, __doc__)  # before torch, which takes seconds to import

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dataset import TokenFile, blocks_in_order, draw_batch, draw_starts
from model import metrics
from model.device import keep_memory, memory_advice, pick_device, pick_dtype, to_device, wait_for
from model.gpt import GPT
from model.monitoring import baselines as ladder
from model.monitoring.diagnostics import Diagnostics
from model.monitoring.log import Log
from model.monitoring.recorder import Recorder, sample_text
from model.storage.checkpoint import checkpoint_path, newest_checkpoint, save_checkpoint
from model.storage.checks import check_architecture
from model.storage.model_file import save_model
from model.storage.run_folder import move_aside, only_training_in
from model.training import distributed
from model.training import estimate as costs
from model.training.choose_step import COMPILE_FROM, pick_step, seconds_a_step
from model.training.optimizer import Optimizer
from model.training.schedule import learning_rate_at
from model.training.setup import begin_from, check_settings, compare, open_inputs, plain, show_plan
from model.training.stop import StopFlag, Stopped
from plumbing.text import duration
from plumbing.text import time_left as remaining_time

# === one step, one evaluation ========================================================================================


def train_step(
    loss_of: Callable,
    optimizer: Optimizer,
    idx: Tensor,
    targets: Tensor,
    rate: Tensor,
    grad_clip: float,
    pieces: int = 1,
    adding_up: Callable = nullcontext,
):
    """Forward, backward, and an update at this fraction of the peak rates. Returns the batch's loss (nats a token) and
    the norm of its gradient before clipping, both 0-dim. Of several processes, each has the loss of its own rows.

    The batch goes through the model in `pieces` of as many rows, whose gradients add up. adding_up() is a context for
    all but the last: in it, several processes do not average their gradients yet.

    On a CPU, raises FloatingPointError before the update where either is not a finite number, so the weights stay
    sound. To ask a GPU would be to wait for it; there the loop asks where it waits anyway, at log lines.
    """
    optimizer.zero_grad()
    total = 0.0
    for number, (part, target) in enumerate(zip(idx.chunk(pieces), targets.chunk(pieces), strict=True), 1):
        with adding_up() if number < pieces else nullcontext():
            loss = loss_of(part, target) / pieces
            loss.backward()
        total = total + loss.detach()
    norm = optimizer.clip(grad_clip)
    if idx.device.type == "cpu":
        check_finite(total, norm)
    optimizer.step(rate)
    return total, norm


def check_finite(loss: Tensor, norm: Tensor) -> None:
    if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
        raise FloatingPointError(f"loss {loss.item()}, gradient norm {norm.item()}")


@torch.inference_mode()
def evaluate(model: GPT, data: TokenFile, stop: StopFlag, at_most: int = 0) -> tuple[float, int]:
    """Loss in nats a token over a token file, in non-overlapping blocks: each token but the first counts once.

    Returns (loss, tokens scored). With `at_most`, about so many tokens, evenly spread over the file, stand for all.
    Several processes score every so-many-th batch each, and all get the result of all.
    """
    model.eval()
    batch_size = max(1, (4096 if model.device.type == "cpu" else 65536) // model.block_size)  # what the device likes
    every = max(1, len(data) // at_most) if at_most else 1
    total, scored, turn = 0.0, 0, (distributed.rank(), distributed.world_size())
    with tqdm(total=len(data) // every, desc="validation", unit="token", unit_scale=True, delay=2, leave=False) as bar:
        for idx, targets in blocks_in_order(data, model.block_size, batch_size, every, *turn):
            stop.check()
            counted = idx.size
            if not counted:  # nothing left for this process, but the others may need its part of the weights
                idx = targets = np.zeros((1, 1), np.int64)
            loss = model.loss(to_device(idx, model.device), to_device(targets, model.device))
            total, scored = total + loss.item() * counted, scored + counted
            bar.update(counted * turn[1])
    model.train()
    total, scored = distributed.sum_over_processes(total, scored)
    return total / scored, int(scored)


def make_optimizer(model: GPT, settings: Settings, dtype: torch.dtype) -> Optimizer:
    """The optimizer of a model, with the settings' learning rates."""
    kind = Optimizer
    if settings.shard_model:
        from model.training.sharded_optimizer import ShardedOptimizer as kind  # what it needs takes a second to import
    return kind(model, settings, dtype, distributed.orthogonalise_together)


class Batches:
    """The training batches of a run: batches(step) gives (idx, targets), both (B, T) int64, on the device.

    A pure function of (seed, step), of which each of several processes takes its rows. Where a GPU has room for the
    whole token file (a quarter of its free memory), the file moves there at the start, and a batch costs the bus a few
    numbers.
    """

    def __init__(self, data: TokenFile, settings: Settings, device: torch.device):
        self.data, self.device, self.resident = data, device, None
        self.shape = (settings.block_size, settings.batch_size, settings.seed)
        self.rows = distributed.batch_rows(settings.batch_size)
        if device.type == "cuda" and 4 * len(data) < torch.cuda.mem_get_info(device)[0] / 4:
            self.reside()

    def reside(self) -> None:
        """Bring all tokens to the device, as int32 (torch has little arithmetic for uint16)."""
        self.resident = torch.from_numpy(self.data.tokens[:].astype(np.int32)).to(self.device)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        if self.resident is None:
            idx, targets = draw_batch(self.data.tokens, *self.shape, step, self.rows)
            return to_device(idx, self.device), to_device(targets, self.device)
        starts = to_device(draw_starts(len(self.data), *self.shape, step)[self.rows], self.device)
        window = self.resident[starts + torch.arange(self.shape[0] + 1, device=self.device)].long()  # (B, T + 1)
        return window[:, :-1], window[:, 1:]


# === before the run ===================================================================================================


def show_costs(
    settings: Settings, model: GPT, optimizer: Optimizer, make_step: Callable, batches, train, val, tokenizer, stop
) -> None:
    """What the run would take, from 20 of its steps, a part of an evaluation and a few tokens of a sample."""

    def time_step(step_of: Callable) -> float:
        return seconds_a_step(step_of, optimizer, batches, at_most=math.inf, check=stop.check, most=20)

    _, seconds, _ = pick_step(make_step, model.loss, time_step, model.device, "off", planned=None)
    begin = time.perf_counter()
    _, scored = evaluate(model, val, stop, at_most=8192)
    a_token = (time.perf_counter() - begin) / scored
    begin = time.perf_counter()
    sample_text(model, tokenizer, min(20, settings.sample_tokens), {}, stop.check)
    a_sample = (time.perf_counter() - begin) * max(1, settings.sample_tokens / 20)
    steps = max(1, int(60 * settings.minutes / seconds)) if settings.minutes > 0 else settings.max_steps
    evaluations = 1 + (steps - 1) // settings.eval_every if settings.eval_every else 0  # besides the last one
    records = evaluations + steps.bit_length() if settings.eval_every else 0  # each takes about as long as a step
    each = min(settings.eval_tokens or len(val), len(val))
    other = a_token * (len(val) + evaluations * each) + a_sample * (1 + evaluations + records) + seconds * records
    idx, targets = (part.chunk(settings.accumulate)[0] for part in batches(0))  # what a process computes at once
    tokens = settings.batch_size * settings.block_size
    print(costs.show(model, optimizer, (idx, targets), tokens, len(train), steps, seconds, other))
    if settings.compile == "auto" and seconds * steps >= COMPILE_FROM.get(model.device.type, math.inf):
        print("A run as long as this is compiled first, where that is possible and proves to be faster.")


# === the run =========================================================================================================


@memory_advice("Try a smaller --batch-size, --block-size, --n-layer or --n-embd. Announced checkpoints are safe.")
def main(
    settings: Settings,
    fresh: bool,
    kind: str = "char",
    init_from: Path | None = None,
    ids: int | None = None,
    plan: bool = False,
) -> int:
    with distributed.process_group(settings.device):
        check_settings(settings)
        inputs = settings.train_file, settings.val_file, settings.tokenizer_file
        refuse_same({"--model-file": settings.model_file}, *inputs)
        if plan and settings.shard_model:
            raise UsageError(
                "--plan goes without --shard-model. With it, each process holds its part of the weights, gradients and "
                "optimizer that are planned without it."
            )
        settings = replace(settings, checkpoint_dir=settings.checkpoint_dir.absolute())  # --fresh moves "." aside
        with nullcontext() if plan or not distributed.is_first() else only_training_in(settings.checkpoint_dir):
            return start_or_resume(settings, fresh and not distributed.restart_count(), kind, init_from, ids, plan)


def start_or_resume(
    settings: Settings, fresh: bool, kind: str, init_from: Path | None, ids: int | None, plan: bool
) -> int:
    if init_from is not None:
        settings, first_weights, first_sha256 = begin_from(settings, init_from, kind)
    train, val, tokenizer = open_inputs(settings, kind, ids)
    sources = {
        "tokenizer": tokenizer.sha256,
        "training data": train.facts["sha256"],
        "validation data": val.facts["sha256"],
    }
    if init_from is not None:
        sources["--init-from folder"] = first_sha256
    if distributed.broadcast(sources) != sources:
        raise UserError("Token files or tokenizer are not those of the first process. Copy them to every machine.")
    folder, first = settings.checkpoint_dir, distributed.is_first()
    stop = StopFlag()

    # --- a new model, or the newest checkpoint that is whole ---------------------------------------------------------
    look = first and not plan and not fresh  # other machines need no folder
    path, saved, problems = newest_checkpoint(folder) if look else (None, None, [])
    for problem in problems:
        print(problem)
    if problems and saved is None:
        raise UserError(f"No checkpoint in {shown_path(folder)} is whole. Start over with --fresh.")
    path, saved = distributed.broadcast(path), distributed.broadcast_checkpoint(saved)
    step, dtype_name = 0, settings.dtype
    if saved is not None:
        print(f"Resuming from {shown_path(path)}")
        if settings.minutes > 0:  # their number of steps was fixed when the run began
            settings = replace(settings, max_steps=saved["settings"]["max_steps"])
        compare(saved, settings, sources)
        step = saved["step"]
        dtype_name = saved["dtype"] if settings.dtype == "auto" else settings.dtype

    device = pick_device(distributed.own_device(settings.device))
    if device.type == "cpu":
        keep_memory()
    if saved is not None and saved["device"] != device.type:
        print(f"  changed since: device was {saved['device']}, is {device.type}: the last digits will differ")
    if saved is not None and (before := saved.get("processes", 1)) != distributed.world_size():
        print(f"  changed since: processes were {before}, are {distributed.world_size()}: the last digits will differ")
    dtype = distributed.broadcast(pick_dtype(dtype_name, device))
    torch.manual_seed(settings.seed)
    architecture = {"vocab_size": tokenizer.vocab_size, **values_of(settings, Model)}
    try:
        check_architecture(architecture)
        model = GPT(**architecture)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if init_from is not None:
        model.load_state_dict(first_weights)
    if saved is not None:
        model.load_state_dict(saved["model"])
    if settings.shard_model:
        distributed.shard_model(model, device)
    model.to(device).compute_in(dtype)
    optimizer = make_optimizer(model, settings, dtype)
    batches = Batches(train, settings, device)
    compiled = saved is not None and saved["compiled"]
    if saved is not None:
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"])
        if device.type == "cuda" and "cuda_rng" in saved:
            torch.cuda.set_rng_state(saved["cuda_rng"], device)
    model.train()

    def make_step(loss_of: Callable) -> Callable:
        loss_of, adding_up = distributed.data_parallel(loss_of, model)
        pieces = settings.accumulate

        def step_of(idx: Tensor, targets: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
            return train_step(loss_of, optimizer, idx, targets, rate, settings.grad_clip, pieces, adding_up)

        return step_of

    if plan:
        show_plan(settings, model, train, val, tokenizer, init_from)
        try:
            show_costs(settings, model, optimizer, make_step, batches, train, val, tokenizer, stop)
        except Stopped:
            return stop.exit_code
        return 0
    if fresh and first:  # now that nothing is left to be refused
        move_aside(folder)
    log = Log(folder if first else None, step if saved is not None else None)
    log.evaluations, log.recorded, log.about = distributed.broadcast((log.evaluations, log.recorded, log.about))

    def sample() -> str:
        knobs = {name: getattr(settings, name) for name in ("temperature", "top_k", "top_p", "seed")}
        return sample_text(model, tokenizer, settings.sample_tokens, knobs, stop.check)

    if settings.debug:
        print(f"Computing on {device} in {str(dtype).removeprefix('torch.')}, torch {torch.__version__}")
        if distributed.world_size() > 1:
            each = f"{settings.batch_size // distributed.world_size()} of {settings.batch_size} sequences of each step"
            print(f"This is the first of {distributed.world_size()} processes, each of which computes {each}")
        show_plan(settings, model, train, val, tokenizer, init_from)
    rungs = log.about["ladder"] if log.about else {}
    if settings.eval_every and not rungs and ids is None:
        rungs = ladder.ladder(train.tokens, val.tokens, tokenizer, val.tokens_per_byte) if first else {}
        rungs = distributed.broadcast(rungs)
    if settings.debug and rungs:
        part = f"the first {ladder.VALIDATION_TOKENS:,} tokens of " if len(val) > ladder.VALIDATION_TOKENS else ""
        print(f"What others reach on {part}the validation file, in bits per byte (model/ladder.py says how):")
        print(ladder.show(rungs))
    every = 0 if settings.shard_model else settings.eval_every  # a record needs all weights in one place
    recorder = Recorder(model, val, tokenizer, log, every, settings.grad_clip, sample, rungs)
    check_up = Diagnostics()

    def warn(texts: list[str]) -> None:
        for text in texts:
            print(f"Something is off at step {step}. {text}")
            log.write(step=step, warning=text)

    # --- the beats that the loop is made of --------------------------------------------------------------------------
    def wrong(reason: object) -> UserError:
        clip = "a lower --grad-clip" if settings.grad_clip else "--grad-clip 1"
        return UserError(
            f"Step {step} went wrong: {reason}. Nothing of it was saved. Try a lower --learning-rate or --muon-rate, "
            f"{clip} or more --warmup-steps, with --fresh. The last good checkpoint: "
            f"{shown_path(path) if path else 'none yet'}."
        )

    def checkpoint() -> Path:
        weights, memory = distributed.gather_weights(model), optimizer.state_dict()
        if not first:
            distributed.wait_for_all()
            return checkpoint_path(folder, step)
        for tensor in (*weights.values(), *memory.values()):
            if not tensor.isfinite().all():
                raise wrong("a weight, or what the optimizer remembers, is not a finite number")
        content = {
            "settings": plain(settings),
            "sources": sources,
            "device": device.type,
            "dtype": str(dtype).removeprefix("torch."),
            "compiled": compiled,
            "processes": distributed.world_size(),
            "model": weights,
            "optimizer": memory,
            "rng": torch.get_rng_state(),
        }
        if device.type == "cuda":
            content["cuda_rng"] = torch.cuda.get_rng_state(device)
        written = save_checkpoint(folder, step, content, settings.keep_checkpoints)
        distributed.wait_for_all()
        return written

    def evaluation_due() -> bool:
        due = settings.eval_every > 0 and step % settings.eval_every == 0
        wanted = len(val) - 1 if step >= settings.max_steps else 1  # tokens to score; at the end, all of them
        return (due or step >= settings.max_steps) and log.evaluations.get(step, (math.nan, 0))[1] < wanted

    def validate() -> float:
        """Score the validation file, all of it at the end and a part before, and show what the model writes by now.
        Returns the seconds that took."""
        start = time.perf_counter()
        loss, scored = evaluate(model, val, stop, settings.eval_tokens if step < settings.max_steps else 0)
        if not math.isfinite(loss):
            raise wrong(f"the validation loss is {loss}")
        bits_per_byte = metrics.bits_per_byte(loss, val.tokens_per_byte)
        part = "" if scored == len(val) - 1 else f" on {scored:,} tokens"
        print(
            f"validation at step {step}{part}: loss {loss:.4f} nats a token, perplexity "
            f"{metrics.perplexity(loss):.2f}, surprise {metrics.bits(loss):.3f} bits a token, "
            f"{metrics.show_bits_per_byte(bits_per_byte)}"
        )
        if rungs:
            print(f"  {ladder.verdict(bits_per_byte, rungs)}")
        if text := sample():
            print("  it writes:\n  | " + text.replace("\n", "\n  | "))
        log.write(step=step, val_loss=loss, val_tokens=scored, val_bits_per_byte=bits_per_byte, sample=text)
        log.evaluations[step] = (loss, scored)
        if step > 0 or init_from is None:  # whose first loss is not that of guessing
            warn(check_up.evaluated(step, loss, scored, model.vocab_size))
        return time.perf_counter() - start

    # --- the loop ----------------------------------------------------------------------------------------------------
    resumed_at = step
    progress = tqdm(total=settings.max_steps, initial=step, unit=" steps", disable=settings.debug or not first, delay=2)
    started = time.perf_counter()
    try:
        warn(check_up.recorded(step, recorder.after(step)))
        eval_seconds = validate() if evaluation_due() else 0.0

        # How to compute a step, and with --minutes how many of them there will be: decided once, and saved.
        minutes = settings.minutes if saved is None else 0.0
        choice = settings.compile if saved is None else "on" if compiled else "off"

        def time_left() -> float:
            return distributed.broadcast(60 * minutes - (time.perf_counter() - STARTED))

        def time_step(step_of: Callable) -> float:
            if choice == "off" and minutes == 0 and device.type == "cpu":
                return math.nan  # nothing depends on it: a resumed run starts at once
            return seconds_a_step(step_of, optimizer, batches, at_most=0.02 * time_left(), check=stop.check)

        def planned(seconds: float) -> float:
            return time_left() if minutes > 0 else seconds * (settings.max_steps - step)

        if settings.shard_model:
            choice = "off"
        step_of, seconds, compiled = pick_step(make_step, model.loss, time_step, device, choice, planned)
        if minutes > 0:
            last = len(val) * seconds / (3 * settings.batch_size * settings.block_size)  # a third is the forward pass
            each = eval_seconds / settings.eval_every if settings.eval_every else 0.0
            last += 12 * recorder.seconds  # about so many records
            max_steps = distributed.broadcast(max(1, int((time_left() - last) / (seconds + each))))
            settings = replace(settings, max_steps=max_steps)
            print(f"{max_steps:,} steps fit into the {settings.minutes:g} minutes: max_steps = {max_steps}")
            progress.reset(total=max_steps)

        recorder.last = settings.max_steps
        begin = since = time.perf_counter()
        steps_timed, pauses = 0, 0.0  # training steps since the last line of output, seconds of other work among them
        while step < settings.max_steps:
            stop.check()
            fraction = learning_rate_at(step, settings.max_steps, settings.warmup_steps, settings.decay_fraction)
            rate = torch.full((), fraction, device=device)
            if settings.dropout > 0:
                distributed.seed_random_numbers(settings.seed, step)
            recorder.before(step + 1)
            loss, norm = step_of(*batches(step), rate)
            step += 1
            steps_timed += 1
            progress.update()

            if step % settings.log_every == 0:
                loss = distributed.mean_over_processes(loss)
                check_finite(loss, norm)
                now = time.perf_counter()
                left = remaining_time(step - resumed_at, settings.max_steps - resumed_at, now - begin)
                tokens = steps_timed * settings.batch_size * settings.block_size
                figures = {
                    "loss": loss.item(),
                    "surprise_bits": metrics.bits(loss.item()),
                    "bits_per_byte": metrics.bits_per_byte(loss.item(), train.tokens_per_byte),
                    "learning_rate": fraction * settings.learning_rate,
                    "gradient_norm": norm.item(),
                    "tokens_per_second": metrics.tokens_per_second(tokens, now - since - pauses),
                }
                log.write(step=step, **figures)
                check_up.trained(figures["loss"])
                if settings.debug:
                    of = f"{step:>{len(str(settings.max_steps))}}/{settings.max_steps}"
                    print(
                        f"step {of}  loss {figures['loss']:.4f}  "
                        f"{figures['surprise_bits']:.2f} bits/token  "
                        + (f"{figures['bits_per_byte']:.2f} bits/byte  " if ids is None else "")
                        + f"rate {fraction:4.0%}  grad {norm:.2f}  {figures['tokens_per_second']:,.0f} tokens/s  "
                        f"{duration(left)} left"
                    )
                since, steps_timed, pauses = now, 0, 0.0
            saving = step % settings.checkpoint_every == 0 or step == settings.max_steps
            if saving or evaluation_due() or recorder.due(step):
                wait_for(device)
                pause = time.perf_counter()
                warn(check_up.recorded(step, recorder.after(step, norm)))
                if saving:
                    path = checkpoint()
                    if settings.debug:
                        print(f"checkpoint {shown_path(path)}")
                if evaluation_due():
                    validate()
                pauses += time.perf_counter() - pause
    except Stopped:
        if step > 0 and distributed.broadcast(not checkpoint_path(folder, step).exists()):
            path = checkpoint()
        where = f", saved as {shown_path(path)}. The same command goes on." if path else ", nothing to save yet."
        print(f"Stopped at step {step}{where}")
        return stop.exit_code
    except FloatingPointError as error:
        raise wrong(error) from None
    finally:
        progress.close()

    if settings.debug and settings.eval_every and step > resumed_at:
        share = recorder.seconds / (time.perf_counter() - started)
        print(f"Records for scripts/plot_training.py took {recorder.seconds:.1f} s, {share:.1%} of the training")

    # --- the model ---------------------------------------------------------------------------------------------------
    val_loss, _ = log.evaluations[step]
    training = {
        "steps": step,
        "tokens_seen": step * settings.batch_size * settings.block_size,
        "val_loss": val_loss,
        "val_bits_per_byte": metrics.bits_per_byte(val_loss, val.tokens_per_byte) if ids is None else None,
        "settings": plain(settings),
        "data": {name: train.facts.get(name) for name in ("source", "documents", "utf8_bytes")},
        "init_from": init_from.resolve().name if init_from is not None else "",
    }
    weights = distributed.gather_weights(model)
    if first:
        save_model(settings.model_file, model, tokenizer, training, weights)
    if saved is not None and step == resumed_at:
        print(
            f"This run is finished: step {step} of {settings.max_steps}. "
            "To go on with it, give a larger --max-steps; to start over, --fresh."
        )
    per_byte, took = metrics.show_bits_per_byte(training["val_bits_per_byte"]), time.perf_counter() - STARTED
    print(
        f"{shown_path(settings.model_file)}: {step:,} steps, validation loss {val_loss:.4f}, {per_byte}; "
        f"took {duration(took)}"
    )
    prompt = "def" if ids is None else "0"
    flags = file_flags(settings, CHAR, "model_file")
    print(f"Next: python {'generate.py' if kind == 'char' else 'generatev2.py'} --prompt {prompt}{flags}")
    return 0


if __name__ == "__main__":
    run_script(lambda: main(settings, args.fresh, "char", args.init_from, args.ids, args.plan))
