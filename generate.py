"""Let a character model write, and look over its shoulder.

    python generate.py --prompt "def " --readable
    python generate.py --prompt "import " --temperature 0 --tokens 100 --quiet > out.py
    python generate.py --prompt "class " --tokens 3 --explain --trace steps.jsonl
    python generate.py --interactive

Reads   gpt_model.pt (train.py)
Writes  the text to stdout as it comes, everything else to stderr; with --output-file the text to a file as well, with
        --trace a line of JSON for each step

At every step the model gives each token of its vocabulary a probability, and one is drawn. Printed are the likeliest
candidates with two probabilities: the model's own, and the one it was drawn with, after the repetition penalty,
temperature, top-k, top-p and min-p, in this order (model/sampling.py says why). Surprise is -log2 of the model's own.
The text is the prompt and what was drawn; it ends after --tokens tokens, before a --stop text, or where the model
writes <|endoftext|>. Of several --samples, each begins with the prompt, and a line <|endoftext|> stands between two.
"""

import time

from config import CHAR, Generation, Settings
from model.generation.command_line import generation_flags
from plumbing.command_line import check_seed, refuse_same
from plumbing.errors import UsageError, UserError, run_script
from plumbing.text import shown_path

if __name__ == "__main__":
    settings, args = generation_flags(CHAR, __doc__)  # before torch, which takes seconds to import

import functools
import json
import math
import os
import statistics
import sys
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from model import metrics
from model.device import memory_advice, pick_device
from model.generation.one_token import fast_one_token
from model.generation.sampling import Step, generate_samples, read
from model.generation.step_display import explain_step, show_step, trace_step
from model.generation.text_stream import Output, TextStream
from model.interpretation.ablation import switch_off
from model.storage.model_file import load_model, show_training
from model.tokenization.display import token_text
from model.tokenization.tokenizer import Tokenizer, encode_prompt
from plumbing.corpus import END_OF_TEXT, decode_text
from plumbing.files import whole_file

# The settings that a completion can be given, all of them numbers, with their types.
NUMBERS = {f.name: f.type for f in fields(Generation)} | {"seed": int}


def say(line: str) -> None:
    """Print to stderr: stdout is for the text alone."""
    print(line, file=sys.stderr)


def check_settings(settings: Settings) -> None:
    """Refuse values that cannot be sampled with."""
    if not 0 <= settings.temperature < math.inf:
        raise UsageError(f"--temperature must be 0 (always the likeliest) or above, and it is {settings.temperature}.")
    if settings.top_k < 0 or settings.tokens < 0 or settings.show < 0:
        raise UsageError("--top-k, --tokens and --show must be 0 or above.")
    if settings.samples < 1:
        raise UsageError(f"--samples must be at least 1, and it is {settings.samples}.")
    check_seed(settings)
    if not 0 < settings.top_p <= 1:
        raise UsageError(f"--top-p must be above 0 and at most 1, and it is {settings.top_p}.")
    if not 0 <= settings.min_p <= 1:
        raise UsageError(f"--min-p must be from 0 to 1, and it is {settings.min_p}.")
    if not 0.01 <= settings.repetition_penalty <= 100:
        raise UsageError(f"--repetition-penalty must be from 0.01 to 100, and it is {settings.repetition_penalty}.")


# === the prompt =======================================================================================================


def given_prompt(args) -> str:
    """The text of --prompt, or that of --prompt-file."""
    if args.prompt_file is None:
        return args.prompt
    if not args.prompt_file.is_file():
        raise UserError(f"There is no file {shown_path(args.prompt_file)} to take the prompt from.")
    return decode_text(args.prompt_file.read_bytes(), args.prompt_file)


# === what is shown ====================================================================================================


def show_prompt(tokenizer: Tokenizer, ids: list[int], surprises: list[float], as_text: bool) -> None:
    """The prompt token by token: id, text, and how surprised the model was to read it."""
    if ids == [tokenizer.end_of_text_id]:
        start = "id 0" if tokenizer.kind == "none" else "<|endoftext|>, as at the beginning of a document"
        say(f"No prompt: starting from {start}.")
        return
    say(f"The prompt is cut into {len(ids)} token{'s'[: len(ids) > 1]}:")
    for i, token in enumerate(ids):
        known = "(the first: nothing to foresee it from)" if i == 0 else f"surprise {surprises[i - 1]:6.2f} bits"
        say(f"  id {token:>5}  {token_text(tokenizer, token, as_text):14} {known}")


# === where it goes ====================================================================================================


@contextmanager
def trace_file(path: Path):
    """Yield a function that appends a line of JSON to FILE.tmp at once. It becomes FILE at the end, whatever ends the
    block: Ctrl-C or an error leaves the lines so far under the final name, a kill leaves them in FILE.tmp.
    """
    failure = None
    with whole_file(path) as file:

        def write(entry: dict) -> None:
            file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            file.flush()

        try:
            yield write
        except BaseException as error:
            failure = error
    if failure is not None:
        raise failure


# === one prompt, one completion =======================================================================================


class Completion:
    """One text while it is written: what came, how surprising it was, and why it ended."""

    def __init__(self, tokenizer: Tokenizer, stops: list[str]):
        self.tokenizer, self.stream = tokenizer, TextStream(stops)
        self.text, self.end = "", None
        self.surprises, self.bytes = [], 0  # of every token chosen, those of a stop text included

    def take(self, step: Step) -> str:
        """Take up the token of a step. Returns the text that is certain by now."""
        self.surprises.append(metrics.surprise(step.p))
        if step.token == self.tokenizer.end_of_text_id and self.tokenizer.kind != "none":
            self.end = "the model ended the document"
            return ""
        data = self.tokenizer.token_bytes(step.token)
        self.bytes += len(data) if self.tokenizer.kind != "none" else 0
        text = self.stream.feed(data)
        self.text += text
        if self.stream.stopped:
            self.end = "a stop text came up"
        return text

    def finish(self, end: str) -> str:
        """What was held back at the end of the text, where `end` is the reason if none is known."""
        text = self.stream.finish()
        self.text, self.end = self.text + text, self.end or end
        return text

    def summary(self, seconds: float) -> str:
        """The figures of the text, which took so many seconds."""
        rate = metrics.tokens_per_second(len(self.surprises), seconds)
        mean = statistics.fmean(self.surprises)
        loss = mean * metrics.LN2
        unknown = math.nan if self.tokenizer.kind == "none" else math.inf
        per_byte = metrics.bits_per_byte(loss, len(self.surprises) / self.bytes) if self.bytes else unknown
        return (
            f"Stopped after {len(self.surprises)} tokens: {self.end}. Mean surprise {mean:.2f} bits, "
            f"perplexity {metrics.perplexity(loss):.2f}, {metrics.show_bits_per_byte(per_byte)}; {rate:,.0f} tokens/s"
        )


@memory_advice("Try fewer --samples.")
@np.errstate(invalid="ignore")  # NaN is refused below
def complete(
    prompt: str, settings: Settings, args, model, tokenizer, cache, one_token, trace, completion: int = 1
) -> tuple[str, int]:
    """Write on from a prompt, to stdout. Returns the text, the prompt included, and 130 after Ctrl-C, else 0.

    The cache is filled anew. `trace` takes each step as plain data, with the number of this completion, or is None.
    """
    stops = args.stop + ["\n"] * args.stop_at_newline
    shown = functools.cache(lambda token: token_text(tokenizer, token, args.readable))
    show = explain_step if args.explain else show_step

    # === read the prompt ==============================================================================================
    ids = encode_prompt(tokenizer, prompt, model.block_size, say)
    cache.length = 0
    logits = read(model, ids, cache)  # (T, vocab_size): what the model expects after each token of the prompt
    if settings.debug:
        p = logits.softmax(dim=-1)[range(len(ids) - 1), ids[1:]].tolist()
        show_prompt(tokenizer, ids, [metrics.surprise(x) for x in p], args.readable)

    # === one token after the other ====================================================================================
    several = settings.samples > 1
    # Of several texts, one follows the other; and steps that go to the same screen would tear a text apart.
    torn = settings.debug and os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    at_once = not several and not torn
    knobs = {name: getattr(settings, name) for name in NUMBERS if name != "show"}
    texts = [Completion(tokenizer, stops) for _ in range(settings.samples)]
    output, code = Output(), 0
    output.add(prompt if at_once else "")
    begin = time.perf_counter()
    try:
        one_token = None if several else one_token
        every = generate_samples(model, ids, logits[-1], cache, one_token=one_token, record=settings.show, **knobs)
        for number, steps in enumerate(every, 1):
            for sample, (text, step) in enumerate(zip(texts, steps, strict=True)):
                if text.end is not None:
                    continue
                if math.isnan(step.p):
                    output.flush()
                    raise UserError(
                        "The model's logits are not numbers any more: its weights are too large to compute with. "
                        "Train it again with a lower --learning-rate."
                    )
                lines = []
                if settings.debug:
                    name = f"sample {sample}, step {number}" if several else f"step {number}"
                    lines.append(functools.partial(show, name, step, settings.show, shown))
                if trace:
                    trace({"completion": completion, **trace_step(sample, number, step, settings.show, tokenizer)})
                written = text.take(step)
                output.add(written if at_once else "", *lines)
            if all(text.end is not None for text in texts):
                break
        end = f"{settings.tokens} tokens were asked for"
    except KeyboardInterrupt:  # what is written so far is not lost
        end, code = "you stopped it", 130
    seconds = time.perf_counter() - begin

    # === the rest of the text, and what it cost =======================================================================
    rest = [text.finish(end) for text in texts]
    whole = f"\n{END_OF_TEXT}\n".join(prompt + text.text for text in texts)
    output.add(rest[0] if at_once else whole)
    output.add("\n" * (args.interactive or sys.stdout.isatty()))  # else exact, for a file or a pipe
    output.flush()
    if settings.debug:
        for text in texts:
            if text.surprises:
                say("\n" * (text is texts[0]) + text.summary(seconds))
    return whole, code


# === many prompts =====================================================================================================


def changed(settings: Settings, line: str) -> Settings:
    """The settings after a line such as "/temperature 0.5"."""
    name, _, value = line.removeprefix("/").strip().partition(" ")
    name = name.replace("-", "_")
    if name not in NUMBERS:
        raise UsageError(f"There is no setting {name!r} to change here. / alone shows those that there are.")
    try:
        settings = replace(settings, **{name: NUMBERS[name](value)})
    except ValueError:
        raise UsageError(f"{value!r} is no value for {name}.") from None
    check_settings(settings)
    return settings


def converse(settings: Settings, complete) -> int:
    """A prompt a line from stdin, a completion, again, until the input ends. A line /NAME VALUE sets something."""
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    say("A line is a prompt. /temperature 0.5 changes a setting, / shows them all, // begins a prompt with a /.")
    completion = 0
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return 0
        line = line.removesuffix("\n")
        try:
            if line == "/":
                say("  ".join(f"{name} {getattr(settings, name)}" for name in NUMBERS))
            elif line.startswith("/") and not line.startswith("//"):
                settings = changed(settings, line)
            else:
                completion += 1
                with suppress(KeyboardInterrupt):  # while the prompt is read; later, complete() takes care of it
                    complete(line[line.startswith("//") :], settings, completion=completion)
        except UserError as error:  # the next line may be better
            say(f"error: {error}")


# === the run ==========================================================================================================


def main(settings: Settings, args, kind: str = "char") -> int:
    check_settings(settings)
    if any(not stop for stop in args.stop):
        raise UsageError("--stop needs a text that is not empty.")
    if args.explain and not settings.debug:
        raise UsageError("--explain shows every step, and --quiet shows none: leave one of them out.")
    if args.interactive and args.output_file:
        raise UsageError("--output-file takes one text, and --interactive writes many: leave one of them out.")
    refuse_same({"--output-file": args.output_file, "--trace": args.trace}, settings.model_file, args.prompt_file)
    prompt = given_prompt(args)
    model, tokenizer, training = load_model(settings.model_file)
    if tokenizer.kind not in (kind, "none"):
        other = {"char": "generatev2.py", "bpe": "generate.py"}[kind]
        raise UserError(f"{shown_path(settings.model_file)} is a {tokenizer.kind} model: use {other} for it.")
    for part in args.off:
        try:
            switch_off(model, part)
        except ValueError as error:
            raise UsageError(f"--off: {error}") from None
    model.to(pick_device(settings.device))
    cache = model.new_cache()
    one_token = fast_one_token(model, cache)
    if settings.debug:
        off = f", without {', '.join(args.off)}" if args.off else ""
        say(f"{shown_path(settings.model_file)}: {show_training(training)}{off}")

    output_file = whole_file(args.output_file) if args.output_file else nullcontext()
    with trace_file(args.trace) if args.trace else nullcontext() as trace, output_file as file:
        parts = {"args": args, "model": model, "tokenizer": tokenizer, "cache": cache, "one_token": one_token}
        completion = functools.partial(complete, **parts, trace=trace)
        if args.interactive:
            return converse(settings, completion)
        text, code = completion(prompt, settings)
        if args.output_file:
            file.write(text.encode())
    if args.output_file and settings.debug:
        say(f"The text is in {shown_path(args.output_file)}.")
    return code


if __name__ == "__main__":
    run_script(lambda: main(settings, args))
