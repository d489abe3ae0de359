"""--interactive: prompts from stdin, one per line, each of them completed; lines that start with / change settings."""

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace

from config import Generation, Settings
from model.generation.command_line import check_generation_settings
from model.generation.display import say
from plumbing.errors import UsageError, UserError

# The settings that can be changed between two prompts, all of them numbers, with their types.
NUMBERS = {f.name: f.type for f in fields(Generation)} | {"seed": int}


def converse(settings: Settings, complete: Callable[[str, Settings], object]) -> int:
    """Complete one prompt after another until the input ends. Returns the exit code."""
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    say("Each line is a prompt. /temperature 0.5 changes a setting, / shows them all, // starts a prompt with a /.")
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        if not (line := sys.stdin.readline()):
            return 0
        line = line.removesuffix("\n")
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


def changed_settings(settings: Settings, line: str) -> Settings:
    """The settings after a line such as "/temperature 0.5"."""
    name, _, value = line.removeprefix("/").strip().partition(" ")
    name = name.replace("-", "_")
    if name not in NUMBERS:
        raise UsageError(f"There is no setting {name!r} to change here. / shows all of them.")
    try:
        settings = replace(settings, **{name: NUMBERS[name](value)})
    except ValueError:
        raise UsageError(f"{value!r} is not a value for {name}.") from None
    check_generation_settings(settings)
    return settings
