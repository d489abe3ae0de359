"""What generate.py and generatev2.py read from people: flags, the prompt, and with --interactive line after line.

Answers --help without importing torch.
"""

import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from config import MODEL_NAME, Generation, Settings
from model.compile_c import ONE_TOKEN, start_compiling
from plumbing.command_line import ScriptParser, add_flags, check_limits, flag_value, parse_before_torch, refuse_same
from plumbing.corpus import decode_text
from plumbing.errors import UsageError, UserError
from plumbing.settings import TYPE_OF, field_names
from plumbing.terminal import ask_line
from plumbing.text import shown_path

# The settings that --interactive can change between two prompts, all of them numbers, with their types.
NUMBERS = {name: TYPE_OF[name] for name in [*field_names(Generation), "seed"]}


def say(line: str) -> None:
    """Print to stderr: stdout is for the text alone."""
    print(line, file=sys.stderr)


def generation_flags(settings: Settings, description: str, argv: Sequence[str] | None = None):
    """Parse the command line. Returns (settings with the flags applied, the namespace of all arguments)."""
    parser = ScriptParser(description)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", default="", help="text to continue; without one, the text starts a new document")
    prompt.add_argument("--prompt-file", type=Path, help="use the exact text of this file as the prompt")
    prompt.add_argument("--interactive", action="store_true", help="ask for one prompt after another")
    add, own = parser.add_argument, shown_path(settings.checkpoint_dir / MODEL_NAME)
    add("--model", type=Path, help=f"the model, or a checkpoint [{shown_path(settings.model_file)}, else {own}]")
    add("--readable", action="store_true", help="show tokens as text, not as in the tokenizer's file")
    add("--stop", action="append", default=[], metavar="TEXT", help="stop before this text; repeatable")
    add("--stop-at-newline", dest="stop", action="append_const", const="\n", help="stop before the first line end")
    add("--output-file", type=Path, help="write the text to this file as well")
    add("--explain", action="store_true", help="show in a table what each setting did at each step")
    add("--trace", type=Path, metavar="FILE.jsonl", help="write the same to this file, a line per step")
    add("--off", action="append", default=[], metavar="L2H3", help="switch off a head or MLP; repeatable")
    add_flags(parser, settings, Generation, "seed device debug")
    parsed = parse_before_torch(parser, settings, with_values(sys.argv[1:] if argv is None else argv, parser))
    start_compiling(ONE_TOKEN)  # while the caller imports torch
    return parsed


def with_values(argv: Sequence[str], parser: ScriptParser) -> list[str]:
    """The command line, in which a text that begins with a dash and is no flag belongs to the flag before it: argparse
    understands --prompt=-x, but not --prompt -x."""
    joined: list[str] = []
    for word in argv:
        is_flag = any(flag.startswith(word.partition("=")[0]) for flag in parser._option_string_actions)
        if word[:1] == "-" and not is_flag and joined and joined[-1] in ("--prompt", "--stop"):
            joined[-1] += "=" + word
        else:
            joined.append(word)
    return joined


def check_generation_flags(settings: Settings, args: Namespace, models: list[Path]) -> None:
    """Refuse flags that contradict each other. `models` are only read."""
    if "" in args.stop:
        raise UsageError("--stop needs a text that is not empty.")
    if args.explain and not settings.debug:
        raise UsageError("--explain shows every step and --quiet shows none. Leave one of them out.")
    if args.interactive and args.output_file:
        raise UsageError("--output-file takes one text and --interactive writes many. Leave one of them out.")
    refuse_same({"--output-file": args.output_file, "--trace": args.trace}, *models, args.prompt_file)


def prompt_of(args: Namespace) -> str:
    """The text of --prompt, or that of --prompt-file."""
    if args.prompt_file is None:
        return args.prompt
    if not args.prompt_file.is_file():
        raise UserError(f"There is no prompt file {shown_path(args.prompt_file)}.")
    return decode_text(args.prompt_file.read_bytes(), args.prompt_file)


def converse(settings: Settings, complete: Callable[[str, Settings], object]) -> int:
    """--interactive: complete each line of stdin. Lines that start with / change settings. Returns the exit code."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    say("Each line is a prompt. /temperature 0.5 changes a setting, / shows them all, // starts a prompt with a /.")
    while (line := ask_line("> ")) is not None:
        try:
            if line == "/":
                say("  ".join(f"{name} {getattr(settings, name)}" for name in NUMBERS))
            elif line.startswith("/") and not line.startswith("//"):
                settings = changed_settings(settings, line)
            else:
                with suppress(KeyboardInterrupt):  # while the prompt is read; later, complete() takes care of it
                    complete(line.removeprefix("/"), settings)
        except UserError as error:  # the next line may be better
            say(f"error: {error}")
    return 0


def changed_settings(settings: Settings, line: str) -> Settings:
    """The settings after a line such as "/temperature 0.5"."""
    name, _, value = line.removeprefix("/").strip().partition(" ")
    name = name.replace("-", "_")
    if name not in NUMBERS:
        raise UsageError(f"There is no setting {name!r} to change here. / shows all of them.")
    try:
        settings = replace(settings, **{name: flag_value(NUMBERS[name], value)})
    except ArgumentTypeError as error:
        raise UsageError(f"{name}: {error}.") from None
    check_limits(settings, [name])
    return settings
