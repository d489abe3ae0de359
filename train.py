"""Train a GPT on characters, and watch it learn.

    python train.py
    python train.py --n-layer 6 --n-embd 192 --max-steps 5000

Reads   data/train.bin, data/val.bin (scripts/prepare_dataset.py) and data/tokenizer_char.json
Writes  checkpoints/char/step_*.pt and log.jsonl while it runs, gpt_model.pt at the end
Next    python generate.py --prompt "def "

Stop it with Ctrl-C and run the same command again: it goes on from the newest checkpoint, and the model comes out the
same, number for number on a CPU, as if it had never stopped. Every setting stands in config.py.
"""

import time

STARTED = time.perf_counter()  # --minutes counts from here

from config import CHAR, Settings, UsageError, UserError, run, shown_path, training_flags

if __name__ == "__main__":
    settings, args = training_flags(CHAR, __doc__)  # before torch, which takes seconds to import

import copy
import math
import os
import signal
import statistics
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from dataset import TokenFile, blocks_in_order, draw_batch, open_tokens
from model import insight
from model.checkpoint import Log, checkpoint_path, move_aside, newest_checkpoint, save_checkpoint, save_model
from model.device import keep_memory, memory_advice, pick_device, pick_dtype, set_precision
from model.gpt import GPT
from model.optimizer import Optimizer, learning_rate_at
from model.sampling import generate, read
from model.tokenizer import Tokenizer, load_tokenizer

# A run that is resumed must be the run that was started. The result depends on these settings, so they must not change:
ARCHITECTURE = "block_size n_layer n_head n_embd rotary_base dropout tie_embeddings".split()
RECIPE = """batch_size learning_rate muon_rate warmup_steps decay_fraction weight_decay momentum beta1 beta2 grad_clip
    seed""".split()
# These may, and a change is named (max_steps, of which the learning rate is a function, so that a run can go on):
FREE = "max_steps minutes eval_every sample_tokens checkpoint_every keep_checkpoints log_every".split()


class Stopped(Exception):
    """Raised between two steps, in evaluation and in sampling, after Ctrl-C or SIGTERM."""


class StopFlag:
    """Turns the first Ctrl-C or SIGTERM into a flag that the loops look at; the second one ends the process at once."""

    def __init__(self):
        self.signal = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.note)

    def note(self, number, frame):
        self.signal = number
        os.write(
            2, b"\nstopping after this step; once more to stop at once, without a checkpoint\n"
        )  # print could clash
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def check(self):
        if self.signal is not None:
            raise Stopped


# === one step, one evaluation ========================================================================================


def train_step(model: GPT, optimizer: Optimizer, idx, targets, rate: float, grad_clip: float, autocast):
    """Forward, backward, and an update at this fraction of the peak rates. Returns the batch's loss (nats a token) and
    the norm of its gradient before clipping.

    Raises FloatingPointError before the update where either is not a finite number, so the weights stay sound.
    """
    with autocast:
        logits = model(idx)  # (B, T, vocab_size)
    loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
    optimizer.zero_grad()
    loss.backward()
    loss, norm = loss.item(), optimizer.clip(grad_clip).item()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise FloatingPointError(f"loss {loss}, gradient norm {norm}")
    optimizer.step(rate)
    return loss, norm


@torch.inference_mode()
def evaluate(model: GPT, data: TokenFile, autocast, stop: StopFlag) -> float:
    """Loss in nats a token over a whole token file, in non-overlapping blocks: each token but the first counts once."""
    model.eval()
    batch_size = max(1, 4096 // model.block_size)  # without a backward pass, what the processor likes best
    total, scored = 0.0, len(data.tokens) - 1
    with tqdm(total=scored, desc="validation", unit="token", unit_scale=True, delay=2, leave=False) as progress:
        for idx, targets in blocks_in_order(data.tokens, model.block_size, batch_size):
            stop.check()
            idx, targets = to_device(idx, targets, model.device)
            with autocast:
                logits = model(idx)
            total += F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum").item()
            progress.update(idx.numel())
    model.train()
    return total / scored


def make_optimizer(model: GPT, settings: Settings) -> Optimizer:
    """The optimizer of a model, with the rates and memories that the settings give."""
    names = "learning_rate muon_rate weight_decay beta1 beta2 momentum".split()
    return Optimizer(model, **{name: getattr(settings, name) for name in names})


def to_device(idx, targets, device: torch.device):
    """A batch from numpy to torch tensors on the device."""
    return torch.from_numpy(idx).to(device), torch.from_numpy(targets).to(device)


def sample_text(model: GPT, tokenizer: Tokenizer, settings: Settings, stop: StopFlag) -> str:
    """Text that the model writes after <|endoftext|>, as it stands: what it has learned so far."""
    model.eval()
    prompt, cache, ids = [tokenizer.end_of_text_id], model.new_cache(), []
    logits = read(model, prompt, cache)
    knobs = {name: getattr(settings, name) for name in ("temperature", "top_k", "top_p", "seed")}
    for step in generate(model, prompt, logits[-1], cache, settings.sample_tokens, **knobs):
        stop.check()
        ids.append(step.token)
    model.train()
    return tokenizer.decode(ids)


# === what a run stands on ============================================================================================


def open_inputs(settings: Settings, kind: str) -> tuple[TokenFile, TokenFile, Tokenizer]:
    """Open both token files and the tokenizer, and check that they belong together."""
    tokenizer = load_tokenizer(settings.tokenizer_file)
    train, val = open_tokens(settings.train_file), open_tokens(settings.val_file)
    other = {"char": "trainv2.py", "bpe": "train.py"}[kind]
    if tokenizer.kind != kind:
        raise UserError(f"{shown_path(settings.tokenizer_file)} is a {tokenizer.kind} tokenizer; {other} trains on it.")
    for data in (train, val):
        if data.facts["tokenizer_sha256"] != tokenizer.sha256:
            raise UserError(
                f"{shown_path(data.path)} was made with another tokenizer than {shown_path(settings.tokenizer_file)}. "
                "Run the scripts/prepare_dataset script again."
            )
    if len(train.tokens) <= settings.block_size or len(val.tokens) < 2:
        raise UserError(
            f"{len(train.tokens):,} tokens to train on and {len(val.tokens):,} to validate on are too few for blocks "
            f"of {settings.block_size}. Use more text, or a smaller --block-size."
        )
    return train, val, tokenizer


def check_settings(settings: Settings) -> None:
    """Refuse values that no run can use. n_embd and n_head are checked where they meet, in GPT."""
    for name, value in asdict(settings).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"--{name.replace('_', '-')} must be a finite number, and it is {value}.")
    positive = "block_size n_layer n_head n_embd rotary_base batch_size learning_rate muon_rate"
    for name in [*positive.split(), "checkpoint_every", "log_every"]:
        if getattr(settings, name) <= 0:
            raise UsageError(f"--{name.replace('_', '-')} must be above 0, and it is {getattr(settings, name)}.")
    if settings.minutes <= 0 and settings.max_steps <= 0:
        raise UsageError("Give the run a length: --max-steps or --minutes above 0.")
    for name in ("weight_decay", "warmup_steps", "sample_tokens", "eval_every"):
        if getattr(settings, name) < 0:
            raise UsageError(f"--{name.replace('_', '-')} must be 0 or above, and it is {getattr(settings, name)}.")
    for name in ("dropout", "momentum", "beta1", "beta2"):
        if not 0 <= getattr(settings, name) < 1:
            raise UsageError(f"--{name} must be at least 0 and below 1, and it is {getattr(settings, name)}.")
    if not 0 <= settings.seed < 2**64:
        raise UsageError(f"--seed must be from 0 to 2**64 - 1, and it is {settings.seed}.")
    if settings.keep_checkpoints < 2:
        raise UsageError("--keep-checkpoints must be at least 2: one to fall back to where the newest is damaged.")


def plain(settings: Settings) -> dict:
    """The settings that a checkpoint records, as plain values."""
    return {name: value for name, value in asdict(settings).items() if name in ARCHITECTURE + RECIPE + FREE}


def compare(saved: dict, settings: Settings, sources: dict) -> None:
    """Refuse to go on with a run whose settings or data have changed; name the changes that do no harm."""
    then, now = saved["settings"], plain(settings)
    changed = {name: f"{name} was {then.get(name)}, is {now[name]}" for name in now if then.get(name) != now[name]}
    harmful = [changed[name] for name in changed if name not in FREE]
    if settings.dtype not in ("auto", saved["dtype"]):
        harmful.append(f"dtype was {saved['dtype']}, is {settings.dtype}")
    harmful += [f"the {name} is another one" for name in sources if saved["sources"][name] != sources[name]]
    if harmful:
        raise UserError(
            f"The run in {shown_path(settings.checkpoint_dir)} was made otherwise: {'; '.join(harmful)}. Set that back "
            "to go on with the run, give --fresh to start over, or another --checkpoint-dir to begin a second run."
        )
    for name in changed:
        print(f"  changed since: {changed[name]}")
    if "minutes" in changed and settings.minutes > 0:
        print(
            f"  Its {settings.max_steps} steps were fixed when it began: --max-steps goes further, --fresh starts over."
        )


def steps_that_fit(model: GPT, settings: Settings, data, seconds: float, eval_seconds: float, autocast, stop) -> int:
    """How many steps fit into so many seconds, with their evaluations: times a few on a copy of the model."""
    model = copy.deepcopy(model)
    optimizer = make_optimizer(model, settings)
    times, begin = [], time.perf_counter()
    with torch.random.fork_rng():  # these steps leave no trace, in dropout's random numbers neither
        while len(times) < 5 or (len(times) < 30 and time.perf_counter() - begin < 0.02 * seconds):
            stop.check()
            start = time.perf_counter()
            batch = draw_batch(data.tokens, settings.block_size, settings.batch_size, settings.seed, len(times))
            train_step(model, optimizer, *to_device(*batch, model.device), 1.0, 1.0, autocast)
            times.append(time.perf_counter() - start)
    seconds -= time.perf_counter() - begin + eval_seconds  # the evaluation at the end
    every = settings.eval_every or math.inf
    return max(1, int(seconds / (statistics.median(times[2:]) + eval_seconds / every)))


# === what is printed before the first step ===========================================================================


def show_plan(settings: Settings, model: GPT, train: TokenFile, val: TokenFile, tokenizer: Tokenizer) -> None:
    """Settings, parameters, what the first loss must be, and one training example as text."""
    print("Settings (config.py, or a flag for each):")
    for name, value in plain(settings).items():
        print(f"  {name:18} {value}")
    parts = model.parameters_by_part()
    total = sum(parts.values())
    print(f"The model has {total:,} parameters:")
    for name, count in parts.items():
        print(f"  {name:18} {count:>12,} {insight.bar(count / total)} {count / total:6.1%}")
    for name, data in (("train", train), ("validation", val)):
        print(
            f"  {name:18} {len(data.tokens):>12,} tokens, {data.facts['utf8_bytes']:,} bytes, "
            f"{1 / data.tokens_per_byte:.2f} bytes a token"
        )
    window = settings.batch_size * settings.block_size
    print(f"  {'each step':18} {window:>12,} tokens ({settings.batch_size} sequences of {settings.block_size})")

    idx, targets = draw_batch(train.tokens, settings.block_size, settings.batch_size, settings.seed, 0)
    print("One training example, cut into tokens. The targets are the inputs, one token later:")
    print(f"  inputs   {insight.cut_line(tokenizer, idx[0, :24])} ...")
    print(f"  targets  {insight.cut_line(tokenizer, targets[0, :24])} ...")
    expected = insight.first_loss(model.vocab_size)
    print(
        f"The untrained model finds all {model.vocab_size:,} tokens equally likely, so its loss must be "
        f"ln({model.vocab_size}) = {expected:.4f}, a surprise of {insight.bits(expected):.2f} bits a token."
    )


# === the run =========================================================================================================


@memory_advice("Try a smaller --batch-size, --block-size, --n-layer or --n-embd. Announced checkpoints are safe.")
def main(settings: Settings, fresh: bool, kind: str = "char") -> int:
    check_settings(settings)
    train, val, tokenizer = open_inputs(settings, kind)
    sources = {
        "tokenizer": tokenizer.sha256,
        "training data": train.facts["sha256"],
        "validation data": val.facts["sha256"],
    }
    folder = settings.checkpoint_dir
    if fresh:
        move_aside(folder)
    stop = StopFlag()

    # --- a new model, or the newest checkpoint that is whole ---------------------------------------------------------
    path, saved, problems = newest_checkpoint(folder)
    for problem in problems:
        print(problem)
    if problems and saved is None:
        raise UserError(f"No checkpoint in {shown_path(folder)} is whole. Start over with --fresh.")
    step, dtype_name = 0, settings.dtype
    if saved is not None:
        print(f"Resuming from {shown_path(path)}")
        if settings.minutes > 0:  # their number of steps was fixed when the run began
            settings = replace(settings, max_steps=saved["settings"]["max_steps"])
        compare(saved, settings, sources)
        step = saved["step"]
        dtype_name = saved["dtype"] if settings.dtype == "auto" else settings.dtype

    device = pick_device(settings.device)
    if device.type == "cpu":
        keep_memory()
    if saved is not None and saved["device"] != device.type:
        print(f"  changed since: device was {saved['device']}, is {device.type}: the last digits will differ")
    dtype = pick_dtype(dtype_name, device)
    autocast = set_precision(dtype, device)
    torch.manual_seed(settings.seed)
    try:
        model = GPT(tokenizer.vocab_size, **{name: getattr(settings, name) for name in ARCHITECTURE}).to(device)
    except ValueError as error:
        raise UsageError(str(error)) from None
    optimizer = make_optimizer(model, settings)
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"])
        if device.type == "cuda" and "cuda_rng" in saved:
            torch.cuda.set_rng_state(saved["cuda_rng"], device)
    model.train()
    log = Log(folder, step if saved is not None else None)
    if settings.debug:
        print(f"Computing on {device} in {str(dtype).removeprefix('torch.')}, torch {torch.__version__}")
        show_plan(settings, model, train, val, tokenizer)

    # --- the beats that the loop is made of --------------------------------------------------------------------------
    def wrong(reason: object) -> UserError:
        return UserError(
            f"Step {step} went wrong: {reason}. Nothing of it was saved. Try a lower --learning-rate or "
            "--muon-rate, a lower --grad-clip or more --warmup-steps, with --fresh. The last good checkpoint: "
            f"{shown_path(path) if path else 'none yet'}."
        )

    def checkpoint() -> Path:
        if not all(weight.isfinite().all() for weight in model.parameters()):
            raise wrong("a weight is not a finite number")
        content = {
            "settings": plain(settings),
            "sources": sources,
            "device": device.type,
            "dtype": str(dtype).removeprefix("torch."),
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),
        }
        if device.type == "cuda":
            content["cuda_rng"] = torch.cuda.get_rng_state(device)
        return save_checkpoint(folder, step, content, settings.keep_checkpoints)

    def evaluation_due() -> bool:
        due = settings.eval_every > 0 and step % settings.eval_every == 0
        return (due or step >= settings.max_steps) and step not in log.val_losses

    def validate() -> float:
        """Score the validation file, show what the model writes by now. Returns the seconds that took."""
        start = time.perf_counter()
        loss = evaluate(model, val, autocast, stop)
        if not math.isfinite(loss):
            raise wrong(f"the validation loss is {loss}")
        bits_per_byte = insight.bits_per_byte(loss, val.tokens_per_byte)
        print(
            f"validation at step {step}: loss {loss:.4f} nats a token, perplexity {insight.perplexity(loss):.2f}, "
            f"surprise {insight.bits(loss):.3f} bits a token, {bits_per_byte:.3f} bits per byte"
        )
        sample = sample_text(model, tokenizer, settings, stop)
        if sample:
            print("  it writes:\n  | " + sample.replace("\n", "\n  | "))
        log.write(step=step, val_loss=loss, val_bits_per_byte=bits_per_byte, sample=sample)
        log.val_losses[step] = loss
        return time.perf_counter() - start

    # --- the loop ----------------------------------------------------------------------------------------------------
    resumed_at = step
    progress = tqdm(total=settings.max_steps, initial=step, unit=" steps", disable=settings.debug, delay=2)
    try:
        eval_seconds = validate() if evaluation_due() else 0.0
        if step == 0 and settings.minutes > 0:
            left = 60 * settings.minutes - (time.perf_counter() - STARTED)
            max_steps = steps_that_fit(model, settings, train, left, eval_seconds, autocast, stop)
            settings = replace(settings, max_steps=max_steps)
            print(f"{max_steps:,} steps fit into the {settings.minutes:g} minutes: max_steps = {max_steps}")
            progress.reset(total=max_steps)

        begin = time.perf_counter()
        steps_timed, seconds_timed = 0, 0.0  # training steps since the last line of output
        while step < settings.max_steps:
            stop.check()
            start = time.perf_counter()
            rate = learning_rate_at(step, settings.max_steps, settings.warmup_steps, settings.decay_fraction)
            batch = draw_batch(train.tokens, settings.block_size, settings.batch_size, settings.seed, step)
            loss, norm = train_step(model, optimizer, *to_device(*batch, device), rate, settings.grad_clip, autocast)
            step += 1
            progress.update()
            steps_timed, seconds_timed = steps_timed + 1, seconds_timed + time.perf_counter() - start

            if step % settings.log_every == 0:
                elapsed = time.perf_counter() - begin
                left = insight.time_left(step - resumed_at, settings.max_steps - resumed_at, elapsed)
                tokens = steps_timed * settings.batch_size * settings.block_size
                figures = {
                    "loss": loss,
                    "surprise_bits": insight.bits(loss),
                    "bits_per_byte": insight.bits_per_byte(loss, train.tokens_per_byte),
                    "learning_rate": rate * settings.learning_rate,
                    "gradient_norm": norm,
                    "tokens_per_second": insight.tokens_per_second(tokens, seconds_timed),
                }
                log.write(step=step, **figures)
                if settings.debug:
                    print(
                        f"step {step:>{len(str(settings.max_steps))}}/{settings.max_steps}  loss {loss:.4f}  "
                        f"{figures['surprise_bits']:.2f} bits/token  {figures['bits_per_byte']:.2f} bits/byte  "
                        f"rate {rate:4.0%}  grad {norm:.2f}  {figures['tokens_per_second']:,.0f} tokens/s  "
                        f"{insight.duration(left)} left"
                    )
                steps_timed, seconds_timed = 0, 0.0
            if step % settings.checkpoint_every == 0 or step == settings.max_steps:
                path = checkpoint()
                if settings.debug:
                    print(f"checkpoint {shown_path(path)}")
            if evaluation_due():
                validate()
    except Stopped:
        if step > 0 and not checkpoint_path(folder, step).exists():
            path = checkpoint()
        where = f", saved as {shown_path(path)}. The same command goes on." if path else ", nothing to save yet."
        print(f"Stopped at step {step}{where}")
        return 128 + stop.signal
    except FloatingPointError as error:
        raise wrong(error) from None
    finally:
        progress.close()

    # --- the model ---------------------------------------------------------------------------------------------------
    val_loss = log.val_losses[step]
    training = {
        "steps": step,
        "tokens_seen": step * settings.batch_size * settings.block_size,
        "val_loss": val_loss,
        "val_bits_per_byte": insight.bits_per_byte(val_loss, val.tokens_per_byte),
        "settings": plain(settings),
    }
    save_model(settings.model_file, model, tokenizer, training)
    if saved is not None and step == resumed_at:
        print(
            f"This run is finished: step {step} of {settings.max_steps}. "
            "To go on with it, give a larger --max-steps; to start over, --fresh."
        )
    print(
        f"{shown_path(settings.model_file)}: {step:,} steps, validation loss {val_loss:.4f}, "
        f"{training['val_bits_per_byte']:.3f} bits per byte; took {insight.duration(time.perf_counter() - STARTED)}"
    )
    print(f"Next: python {'generate.py' if kind == 'char' else 'generatev2.py'} --prompt def")
    return 0


if __name__ == "__main__":
    run(lambda: main(settings, args.fresh))
