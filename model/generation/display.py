"""What a generator shows while it writes: the text on stdout, everything else on stderr."""

import functools
import json
import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from typing import BinaryIO

from config import Settings
from model import metrics
from model.generation.command_line import say
from model.generation.sampling import Step
from model.generation.step_display import StepTable, explain_step, show_step, text_so_far, trace_step
from model.generation.writer import Completion, Writer
from model.tokenization.display import token_text
from plumbing import terminal
from plumbing.corpus import END_OF_TEXT
from plumbing.text import plural, printable


class Display:
    """Shows the prompt, each step, the text as it comes, and a summary, as the flags in `args` want it. begin(), show()
    for each step, and finish() show one prompt's texts, then the next prompt's. `trace` is a file for a line of JSON
    per step, or None."""

    def __init__(self, args: Namespace, trace: BinaryIO | None = None):
        self.args, self.trace = args, trace
        self.step_text = explain_step if args.explain else show_step
        self.output, self.completion = Output(), 0

    def begin(self, prompt: str, settings: Settings, writer: Writer) -> None:
        """Show a prompt that the writer has read."""
        self.prompt, self.settings, self.tokenizer = prompt, settings, writer.tokenizer
        self.token_text = functools.cache(functools.partial(token_text, self.tokenizer, as_text=self.args.readable))
        self.plain_text = functools.cache(functools.partial(token_text, self.tokenizer))
        self.table = StepTable(settings, self.token_text, terminal.width(), terminal.colours(sys.stderr))
        self.completion += 1
        if settings.debug:
            self.show_prompt(writer)
            self.so_far = [self.pieces(writer) for _ in range(settings.samples)]
        # Several texts are written one after another at the end, and so is a text that would mix with the steps on one
        # screen. `written` counts the characters that are on stdout already.
        mixes = settings.debug and terminal.one_screen()
        self.streams, self.written = settings.samples == 1 and not mixes, 0
        self.write(prompt)
        if settings.debug and settings.tokens:
            say(self.table.titles(self.args.explain))
        self.start = time.perf_counter()

    def show_prompt(self, writer: Writer) -> None:
        """The prompt token by token: id, text, and how surprised the model was to read it."""
        ids = writer.ids
        if ids == [self.tokenizer.end_of_text_id]:
            start = "<|endoftext|>, as at the start of a document" if self.tokenizer.counts_bytes else "id 0"
            return say(f"No prompt: starting from {start}.")
        say(f"The prompt has {plural(len(ids), 'token')}:")
        for token, (_, bits) in zip(ids, self.pieces(writer), strict=True):
            surprise = f"surprise {self.table.painted(f'{bits:6.2f}', bits)} bits"
            known = "(the first: nothing predicts it)" if bits < 0 else surprise
            say(f"  id {token:>5}  {self.table.cell(token)} {known}")

    def pieces(self, writer: Writer) -> list[tuple[str, float]]:
        """The prompt's tokens: text, and surprise in bits, -1 for the first one, which nothing predicts."""
        ids, texts = writer.ids, map(self.plain_text, writer.ids)
        p = writer.logits.softmax(dim=-1)[range(len(ids) - 1), ids[1:]].tolist()
        return list(zip(texts, [-1.0, *map(metrics.surprise, p)], strict=True))

    def show(self, text: Completion, step: Step, new: str) -> None:
        """Show a step, by which a text became longer by `new`."""
        number, show, lines = len(text.surprises), self.settings.show, []
        if self.trace:
            entry = {"completion": self.completion, **trace_step(text.sample, number, step, show, self.tokenizer)}
            self.trace.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            self.trace.flush()  # so that a run that is killed leaves it, as a .tmp file
        if self.settings.debug:
            name = f"sample {text.sample}, step {number}" if self.settings.samples > 1 else f"step {number}"
            so_far = self.so_far[text.sample]
            so_far.append((self.plain_text(step.token), text.surprises[-1]))
            lines.append(functools.partial(self.step_lines, name, step, so_far, len(so_far)))
        self.write(new, *lines)

    def step_lines(self, name: str, step: Step, so_far: list[tuple[str, float]], end: int) -> str:
        return self.step_text(name, step, self.table, text_so_far(so_far, end, self.table))

    def write(self, text: str, *lines: Callable[[], str]) -> None:
        """Put a text to stdout, unless it is to come at the end, and lines to stderr."""
        text = text if self.streams else ""
        self.written += len(text)
        self.output.add(text, *lines)

    def finish(self, texts: list[Completion], end: str) -> str:
        """Show the rest of the texts and a summary. Returns all that was written to stdout, save a newline."""
        seconds = time.perf_counter() - self.start
        for text in texts:
            text.finish(end)
        whole = f"\n{END_OF_TEXT}\n".join(self.prompt + text.text for text in texts)
        self.output.add(whole[self.written :])
        if self.args.interactive or sys.stdout.isatty():  # else stdout is exact, for a file or a pipe
            self.output.add("\n")
        self.output.flush()
        lines = [summary(text, seconds) for text in texts if text.surprises]
        if self.settings.debug and lines:
            say("\n" + "\n".join(lines))
        return whole


def summary(text: Completion, seconds: float) -> str:
    """The figures of a text that was written in so many seconds."""
    count, total = len(text.surprises), sum(text.surprises)
    per_byte = (total / text.bytes if text.bytes else math.inf) if text.tokenizer.counts_bytes else None
    return (
        f"Stopped after {plural(count, 'token')}: {text.end}.\nMean surprise {total / count:.2f} bits, "
        f"perplexity {metrics.perplexity(total / count * metrics.LN2):.2f}, {metrics.show_bits_per_byte(per_byte)}; "
        f"{metrics.tokens_per_second(count, seconds):,.0f} tokens/s"
    )


class Output:
    """Text for stdout and lines for stderr, collected and written ten times per second. Writing each token at once
    would take as long as a small model takes to choose it, and nobody reads that fast. A line comes as a function that
    makes it: making many in a row is twice as fast as making each between two tokens, when the processor's caches are
    full of the model's weights."""

    def __init__(self):
        self.text, self.lines, self.due = [], [], 0.0

    def add(self, text: str, *lines: Callable[[], str]) -> None:
        self.text.append(text)
        self.lines += lines
        if time.perf_counter() >= self.due:
            self.flush()

    def flush(self) -> None:
        lines, text = "".join(line() + "\n" for line in self.lines), "".join(self.text)
        self.text, self.lines, self.due = [], [], time.perf_counter() + 0.1
        sys.stderr.write(lines)
        sys.stderr.flush()
        if sys.stdout.isatty():
            text = printable(text, keep="\n\t")
        terminal.write_exactly(text)
