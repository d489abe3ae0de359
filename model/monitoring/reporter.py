"""Everything that a training prints, logs and records, so that the loop in train.py is only the loop.

One method per event of the loop; each prints a line or two and writes the same figures to log.jsonl. Behind them work
the recorder (what the page of scripts/plot_training.py shows), the baselines and the diagnostics.
"""

import math
import shlex
import time
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from config import CHAR
from model import metrics
from model.device import wait_for
from model.generation.writer import sample_text
from model.monitoring import baselines
from model.monitoring.diagnostics import Diagnostics
from model.monitoring.explain_step import StepExplainer
from model.monitoring.log import Log
from model.monitoring.recorder import Recorder
from model.monitoring.summary import print_device, print_summary
from model.storage.checkpoint import checkpoint_path
from model.training import distributed
from model.training.run import Run
from plumbing.command_line import file_flags
from plumbing.text import duration, plural, print_next, printable, shown_path, time_left


class Reporter(AbstractContextManager):
    """Reports on a run. Of several processes, only the first prints and writes, but all of them call every method."""

    def __init__(self, run: Run):
        self.run, self.verbose = run, run.settings.debug
        self.log = log = Log(run.settings.checkpoint_dir if distributed.is_first() else None, run.resumed_at)
        log.evaluations, log.recorded, log.about = distributed.broadcast((log.evaluations, log.recorded, log.about))
        self.baselines = log.about["ladder"] if log.about else {}
        self.diagnostics = Diagnostics()
        self.begin = time.perf_counter()
        self.first_step = None  # when training steps began, after the step was chosen
        self.running_since = None  # when the steps after the newest pause began; None in a pause
        self.losses = []  # of the training steps that are not in the log yet, each 0-dim on the device
        self.steps, self.seconds = 0, 0.0  # training steps since the last line, and what those before the pause took
        self.titled = False  # whether the titles of the columns have been printed
        self.explainer = StepExplainer(run) if self.verbose and run.settings.explain_step else None
        self.sampled = (-1, "")  # the step of the newest sample, and its text
        hidden = self.verbose or not distributed.is_first()
        self.progress = tqdm(total=run.max_steps, initial=run.step, unit=" steps", disable=hidden, delay=2)

    def __exit__(self, kind, error, traceback):
        self.progress.close()

    def start(self) -> None:
        """Print what the run consists of and what its loss will be compared with; record the model as it is."""
        run = self.run
        if self.verbose:
            print_device(run)
            print_summary(run)
        if distributed.is_first() and (other := run.model_of_another_run()):
            path = shown_path(run.settings.model_file)
            print(f"{path} holds {other}. At its end, this run replaces it; another --model-file keeps both.")
        if run.eval_every and run.tokenizer.counts_bytes and not self.baselines:
            data = run.train_data.tokens, run.val_data.tokens, run.tokenizer, run.val_data.tokens_per_byte
            self.baselines = distributed.broadcast(baselines.compute_baselines(*data) if distributed.is_first() else {})
        if self.verbose and self.baselines:
            most = baselines.VALIDATION_TOKENS
            part = f"the first {most:,} tokens of " if len(run.val_data) > most else ""
            print(f"Baselines on {part}the validation set, in bits per byte (model/monitoring/baselines.py):")
            print(baselines.baselines_table(self.baselines))
        self.recorder = Recorder(run, self.log, self.baselines, self.sample)
        self.record()
        self.started = time.perf_counter()
        if run.timed and self.recorder.wanted:  # the first record compiles, and reads libraries from the disk
            self.recorder.predictions()
            self.sampled = (-1, "")
            self.sample()
            run.record_seconds = time.perf_counter() - self.started
            self.started += run.record_seconds

    def record(self, norm: Tensor | None = None) -> None:
        self.warn(self.diagnostics.recorded(self.run.step, self.recorder.after(self.run.step, norm)))

    def warn(self, texts: list[str]) -> None:
        for text in texts:
            print(f"Warning at step {self.run.step}: {text}")
            self.log.write(step=self.run.step, warning=text)

    def sample(self) -> str:
        """What the model writes at this step."""
        run = self.run
        if self.sampled[0] != run.step:
            self.sampled = (run.step, sample_text(run.model, run.tokenizer, run.settings, run.stop.check))
        return self.sampled[1]

    def before_step(self) -> None:
        run = self.run
        if self.first_step is None:
            self.first_step = time.perf_counter()
            self.recorder.last = run.max_steps
            self.progress.total = run.max_steps  # which --minutes has fixed by now
            parameters, tokens = sum(run.model.parameter_counts().values()), len(run.train_data)
            self.warn(self.diagnostics.planned(parameters, tokens, run.max_steps * run.tokens_per_step / tokens))
        if self.running_since is None:
            self.running_since = time.perf_counter()
        self.recorder.before(run.step + 1)
        if self.explainer and self.printed(run.step + 1):
            self.explainer.before()

    def after_step(self, loss: Tensor, norm: Tensor, fraction: float) -> None:
        """A line every settings.log_every steps, and the recorder's record. Raises FloatingPointError if the loss or
        the gradient's norm of a printed step is not finite."""
        run = self.run
        self.losses.append(loss.detach().clone())  # a CUDA graph writes each loss into the same tensor
        self.steps += 1
        self.progress.update()
        if self.printed(run.step):
            self.training(norm, fraction)
        if (self.checkpoint_due() or self.evaluation_due()) and self.losses:  # for whoever resumes here or judges it
            self.log.write(step=run.step, losses=self.new_losses())
        if self.checkpoint_due() or self.evaluation_due() or self.recorder.due(run.step):
            wait_for(run.device)
            self.seconds += time.perf_counter() - self.running_since
            self.running_since = None
            self.record(norm)

    def printed(self, step: int) -> bool:
        """Whether this step has a line."""
        return step % self.run.settings.log_every == 0 or step in (1, 2, 4, 8) or step == self.run.max_steps

    def training(self, norm: Tensor, fraction: float) -> None:
        """The figures of a training step; `fraction` is that of the peak learning rates. The log gets the losses of the
        steps since the last line as well, for one batch says little."""
        run = self.run
        loss, norm = distributed.mean_over_processes(self.losses[-1]).item(), norm.item()
        check_finite(loss, norm)
        now = time.perf_counter()
        seconds = self.seconds + now - self.running_since
        speed = metrics.tokens_per_second(self.steps * run.tokens_per_step, seconds)
        self.running_since, self.steps, self.seconds = now, 0, 0.0
        bits, per_byte = metrics.bits(loss), metrics.bits_per_byte(loss, run.train_data.tokens_per_byte)
        self.log.write(
            step=run.step, loss=loss, surprise_bits=bits, bits_per_byte=per_byte,
            learning_rate=fraction * run.settings.learning_rate, gradient_norm=norm, tokens_per_second=speed,
            losses=self.new_losses(),
        )  # fmt: skip
        if self.verbose:
            begun_at = run.resumed_at or 0
            left = time_left(run.step - begun_at, run.max_steps - begun_at, now - self.first_step)
            if not self.titled:
                print(step_line(run, *STEP_TITLES))
                self.titled = True
            name = f"step {run.step:>{len(str(run.max_steps))}}/{run.max_steps}"
            figures = f"{loss:.4f}", f"{bits:.2f}", f"{per_byte:.2f}", f"{fraction:.0%}", f"{norm:.2f}", f"{speed:,.0f}"
            print(step_line(run, name, *figures, duration(left)))
            if self.explainer:
                print(*self.explainer.after(loss, norm), sep="\n")

    def new_losses(self) -> list[float | None]:
        """The losses of the steps that are not in the log yet."""
        losses = distributed.mean_over_processes(torch.stack(self.losses)).tolist()
        self.losses = []
        self.diagnostics.trained(losses)
        return [round(loss, 4) if math.isfinite(loss) else None for loss in losses]

    def checkpoint_due(self) -> bool:
        return self.run.step % self.run.settings.checkpoint_every == 0 or self.run.step == self.run.max_steps

    def saved(self, path: Path) -> None:
        if self.verbose:
            print(f"checkpoint {shown_path(path)}")

    def evaluation_due(self) -> bool:
        """Whether this step asks for an evaluation that the log does not have: at the end, one of all tokens."""
        run, every = self.run, self.run.eval_every
        due = run.step >= run.max_steps or (every > 0 and run.step % every == 0)
        wanted = len(run.val_data) - 1 if run.step >= run.max_steps else 1  # tokens to score
        return due and self.log.evaluations.get(run.step, (math.nan, 0))[1] < wanted

    def validation(self, loss: float, tokens: int) -> None:
        """The validation loss over so many tokens, in nats per token, and a sample. Raises FloatingPointError if the
        loss is not finite."""
        run = self.run
        if not math.isfinite(loss):
            raise FloatingPointError(f"the validation loss is {loss}")
        bits_per_byte = run.bits_per_byte(loss)
        whole = len(run.val_data) - 1
        some = f" on {'all ' if tokens == whole else ''}{tokens:,} tokens"  # other ones are easier or harder
        part = some if 0 < run.settings.eval_tokens < whole else ""
        print(
            f"validation at step {run.step}{part}: loss {loss:.4f} nats per token\n"
            f"  perplexity {metrics.perplexity(loss):.2f}, surprise {metrics.bits(loss):.3f} bits per token, "
            f"{metrics.show_bits_per_byte(bits_per_byte)}"
        )
        if self.baselines:
            print(f"  {baselines.verdict(bits_per_byte, self.baselines)}")
        if text := self.sample():
            print("  a sample of its text:\n  | " + printable(text, keep="\n\t").replace("\n", "\n  | "))
        self.log.write(step=run.step, val_loss=loss, val_tokens=tokens, val_bits_per_byte=bits_per_byte, sample=text)
        self.log.evaluations[run.step] = (loss, tokens)
        if run.step > 0 or run.starts_uniform:  # else it does not start at ln(vocab_size)
            self.warn(self.diagnostics.evaluated(run.step, loss, tokens, run.model.vocab_size))
        if self.first_step is None:
            run.evaluation_seconds = time.perf_counter() - self.started
        if 0 < run.step < run.max_steps:
            run.save_model(loss)

    def finish(self) -> None:
        """Save the model and say how good it is and what comes next."""
        run = self.run
        self.progress.close()
        if self.verbose and run.eval_every and run.step > (run.resumed_at or 0):
            share = self.recorder.seconds / (time.perf_counter() - self.begin)
            print(f"Records for scripts/plot_training.py took {self.recorder.seconds:.1f} s, {share:.1%} of the run")
        val_loss, _ = self.log.evaluations[run.step]
        run.save_model(val_loss, finished=True)
        if run.step == run.resumed_at:
            print(
                f"This run is finished: step {run.step} of {run.max_steps}. To extend it, give a larger --max-steps; "
                "to start over, --fresh."
            )
        per_byte, took = metrics.show_bits_per_byte(run.bits_per_byte(val_loss)), time.perf_counter() - run.started
        print(
            f"{shown_path(run.settings.model_file)}: {plural(run.step, 'step')}, validation loss {val_loss:.4f}, "
            f"{per_byte}; took {duration(took)}"
        )
        show_generation(run, file_flags(run.settings, CHAR, "model_file"))


STEP_TITLES = "", "loss", "bits/token", "bits/byte", "rate", "grad", "tokens/s", "left"


def step_line(run: Run, name: str, *cells: str) -> str:
    """A line of the table of training steps, or its titles; without bits per byte where nobody has counted bytes."""
    widths = dict(zip(STEP_TITLES[1:], (7, 11, 10, 5, 7, 11, 12), strict=True))
    if not run.tokenizer.counts_bytes:
        widths["bits/byte"] = 0
    cells = [cell.rjust(width) for cell, width in zip(cells, widths.values(), strict=True) if width]
    return name.ljust(len(f"step {run.max_steps}/{run.max_steps}")) + "".join(cells)


def show_generation(run: Run, flags: str) -> None:
    script = {"char": "generate.py", "bpe": "generatev2.py"}[run.kind]
    prompt = shlex.quote(run.tokenizer.prompt_from(run.train_data.tokens))
    print_next(f"python {script} --prompt {prompt}{flags}")


def check_finite(loss: float, norm: float) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise FloatingPointError(f"loss {loss}, gradient norm {norm}")


def report_stop(run: Run) -> int:
    """After Ctrl-C, SIGTERM or SIGHUP: save what is not saved yet. Returns the exit code."""
    path = run.checkpoint
    missing = run.step > 0 and path != checkpoint_path(run.settings.checkpoint_dir, run.step)  # a damaged one is none
    if distributed.broadcast(missing):
        path = run.save_checkpoint()
    where = f", saved as {shown_path(path)}. The same command resumes it." if path else ", nothing to save yet."
    print(f"Stopped at step {run.step}{where}")
    if path is not None:
        if run.step not in (run.model_step, run.resumed_at):
            run.save_model(None)
        model = run.own_model if run.own_model.exists() else path
        show_generation(run, f" --model {shlex.quote(shown_path(model))}")
    return run.stop.exit_code
