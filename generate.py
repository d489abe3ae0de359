"""Let a character model write, and watch how it chooses.

    python generate.py --prompt "def " --readable
    python generate.py --prompt "import " --temperature 0 --tokens 100 --quiet > out.py
    python generate.py --prompt "class " --tokens 3 --explain --trace steps.jsonl
    python generate.py --interactive

Reads   gpt_model.pt (train.py), or checkpoints/char/gpt_model.pt if that one is a BPE model
Writes  the text to stdout as it comes, everything else to stderr; --output-file writes the text to a file as well,
        --trace writes a line of JSON per step
Next    scripts/inspect_model.py shows what happens inside the model

At each step the model gives every token of its vocabulary a probability, and one token is drawn. Each candidate is
shown with two probabilities: the model's own, and the one it was drawn with, after repetition penalty, temperature,
top-k, top-p and min-p, in this order (model/generation/sampling.py says why). Surprise is -log2 of the model's own.
The text is the prompt and what was drawn. It ends after --tokens tokens, before a --stop text, or where the model
writes <|endoftext|>. With several --samples, each starts with the prompt, and a line <|endoftext|> separates them.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # also with python -I
import plumbing.start

from pathlib import Path

from config import CHAR, MODEL_NAME, Settings
from model.generation.command_line import check_generation_flags, converse, generation_flags, prompt_of, say
from plumbing.errors import UsageError, UserError, run_script
from plumbing.text import shown_path

if __name__ == "__main__":
    settings, args = generation_flags(CHAR, __doc__)  # before torch, which takes seconds to import

from argparse import Namespace
from contextlib import nullcontext
from functools import partial

import numpy as np

from model.device import memory_advice, pick_device
from model.generation.display import Display
from model.generation.step_display import trace_file
from model.generation.writer import Completion, Writer
from model.gpt import GPT
from model.interpretation.ablation import switch_off
from model.storage.model_file import load_model, show_training
from model.tokenization.tokenizer import BareIds, Tokenizer
from plumbing.files import whole_file

SCRIPTS = {"char": ("generate.py", "train.py"), "bpe": ("generatev2.py", "trainv2.py")}


@memory_advice("Try fewer --samples.")
@np.errstate(invalid="ignore")  # NaN is noticed in Completion.take()
def complete(prompt: str, settings: Settings, writer: Writer, display: Display) -> tuple[str, int]:
    """Continue a prompt. Returns the text on stdout, and the exit code: 130 after Ctrl-C, else 0."""
    writer.read(prompt, say)
    all_steps = writer.steps(settings)  # a step is one token; each text has one of its own
    display.begin(prompt, settings, writer)
    texts = [Completion(writer.tokenizer, writer.stops, sample) for sample in range(settings.samples)]
    end, code = f"--tokens is {settings.tokens}", 0
    try:
        for steps in all_steps:
            for text, step in zip(texts, steps, strict=True):
                if text.end is None:
                    display.show(text, step, text.take(step))
            if all(text.end for text in texts):
                break
    except UserError:
        display.output.flush()  # the text so far comes before the error
        raise
    except KeyboardInterrupt:  # keep what is written so far
        end, code = "you stopped it", 130
    return display.finish(texts, end), code


def open_model(paths: list[Path], kind: str) -> tuple[GPT, Tokenizer | BareIds, str]:
    """The first model whose tokenizer is of this kind, or that has none: model, tokenizer, and a line about it."""
    other = ""
    for path in [path for path in paths if path.exists()] or paths[:1]:
        model, tokenizer, training = load_model(path)
        if tokenizer.kind in (kind, "none"):
            return model, tokenizer, f"{other}{shown_path(path)}: {show_training(training)}"
        other = f"{shown_path(path)} is a {tokenizer.kind} model, so this uses "
    advice = f"use {SCRIPTS[tokenizer.kind][0]} for it"
    advice += f", or train a {kind} model with {SCRIPTS[kind][1]}" if len(paths) > 1 else ""
    raise UserError(f"{shown_path(path)} is a {tokenizer.kind} model: {advice}.")


def main(settings: Settings, args: Namespace, kind: str = "char") -> int:
    # Without --model: the newest model, else the newest of this pipeline's own run.
    paths = [args.model] if args.model else [settings.model_file, settings.checkpoint_dir / MODEL_NAME]
    check_generation_flags(settings, args, paths)
    prompt = prompt_of(args)
    model, tokenizer, about = open_model(paths, kind)
    for name in args.off:
        try:
            switch_off(model, name)
        except ValueError as error:
            raise UsageError(f"--off: {error}") from None
    writer = Writer(model.to(pick_device(settings.device)), tokenizer, args.stop)
    if settings.debug:
        say(about + (f", without {', '.join(args.off)}" if args.off else ""))
    output_file = whole_file(args.output_file) if args.output_file else nullcontext()
    with trace_file(args.trace) if args.trace else nullcontext() as trace, output_file as file:
        display = Display(args, trace)
        if args.interactive:
            return converse(settings, partial(complete, writer=writer, display=display))
        text, code = complete(prompt, settings, writer, display)
        if args.output_file:
            file.write(text.encode())
    if args.output_file and settings.debug:
        say(f"The text is in {shown_path(args.output_file)}.")
    return code


if __name__ == "__main__":
    run_script(lambda: main(settings, args), "go on" if args.output_file or args.trace else "end")
