"""From settings to flags: one typed flag per field of config.py that a script uses, and checks that scripts share."""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import config
from config import CHAR, Settings
from plumbing.errors import UsageError
from plumbing.files import check_replaceable, real_path
from plumbing.interrupts import end_at_once
from plumbing.settings import KINDS, TYPE_OF, field_names, meant, problem_with, whole_number
from plumbing.terminal import open_streams
from plumbing.text import quoted_path, shown_path

PAGE_BEGINS = b"<!doctype html>"  # all pages that scripts write


class ScriptParser(argparse.ArgumentParser):
    """A parser whose description is shown as it is written, and that answers a wrong flag in a line or two."""

    given: Sequence[str] = ()  # the words to parse

    def __init__(self, description: str | None = None, **options):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def parse_args(self, args=None, namespace=None):
        open_streams()  # --help is readable in any console
        self.given = sys.argv[1:] if args is None else args
        parsed = super().parse_args(args, namespace)
        for name, value in vars(parsed).items():
            setattr(parsed, name, [own_home(one) for one in value] if isinstance(value, list) else own_home(value))
        return parsed

    def flags(self) -> list[str]:
        """All flags, those of subcommands included."""
        found = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                found += [flag for parser in action.choices.values() for flag in parser.flags()]
        return found

    def error(self, message: str):
        """Say what is wrong, and which flag may have been meant."""
        flags, words = self.flags(), [word.partition("=")[0] for word in self.given if re.match(r"--\w", word)]
        if unknown := [word for word in words if not any(flag.startswith(word) for flag in flags)]:
            message = f"there is no flag {unknown[0]}{meant(unknown[0], flags)}"
        self.exit(2, f"error: {message.removeprefix('argument ')}. See --help.\n")


def own_home(value):
    """A path that begins with ~, which a shell leaves in --checkpoint-dir=~/runs, in the user's home."""
    return value.expanduser() if isinstance(value, Path) and value.parts[:1] == ("~",) else value


def flag_name(field: str) -> str:
    """n_layer is --n-layer."""
    return "--" + field.replace("_", "-")


def add_flags(parser: argparse.ArgumentParser, settings: Settings, *wanted: type | str) -> None:
    """Add a typed flag for each of the wanted settings, its value in `settings` as the default and its comment in
    config.py as the help. `wanted` are classes of config.py, for all their fields, and names separated by spaces."""
    names = [name for one in wanted for name in (one.split() if isinstance(one, str) else field_names(one))]
    comments = dict(re.findall(r"^ +(\w+) *:.*?# *(.*)$", Path(config.__file__).read_text("utf-8"), re.MULTILINE))
    for field in fields(Settings):
        if field.name not in names:
            continue
        default, flag, kind = getattr(settings, field.name), flag_name(field.name), TYPE_OF[field.name]
        text = comments.get(field.name, "").replace("%", "%%")
        if field.name == "debug":
            parser.add_argument("--quiet", dest="debug", action="store_false", default=default, help="show no work")
        elif kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=text)
        else:
            text += f" [{shown_path(default) if isinstance(default, Path) else default}]"
            options = {"type": partial(flag_value, kind), "metavar": flag[2:].upper()}
            parser.add_argument(flag, default=default, help=text, **options)


def flag_value(kind: type, text: str) -> object:
    """The value of a flag whose setting is of this type. Raises argparse.ArgumentTypeError."""
    try:
        return whole_number(text) if kind is int else kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {KINDS[kind]}") from None


def at_least_one(text: str) -> int:
    """A whole number above 0, for a flag that is no setting. Raises argparse.ArgumentTypeError."""
    if (number := flag_value(int, text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, and it is {number}")
    return number


def parse(parser: argparse.ArgumentParser, settings: Settings, argv: Sequence[str] | None = None):
    """Parse the command line. Returns (settings with the flags applied, the namespace of all arguments). Raises
    UsageError for a value beyond its limits."""
    args = parser.parse_args(argv)
    given = {name: getattr(args, name) for name in field_names(Settings) if hasattr(args, name)}
    settings = replace(settings, **given)
    check_limits(settings, given)
    return settings, args


def parse_before_torch(parser: argparse.ArgumentParser, settings: Settings, argv: Sequence[str] | None):
    """parse() outside run_script(). From then on until that, while torch is imported, Ctrl-C ends the process at once
    and without a traceback."""
    try:
        parsed = parse(parser, settings, argv)
    except UsageError as error:
        parser.exit(2, f"error: {error}\n")
    end_at_once()
    return parsed


def model_flag(parser: argparse.ArgumentParser) -> None:
    """Add --model, for scripts that read a model; training writes it with --model-file."""
    default, text = CHAR.model_file, "the model, or a checkpoint [gpt_model.pt]"
    parser.add_argument("--model", dest="model_file", type=Path, default=default, help=text)


def shard_flag(parser: argparse.ArgumentParser, of: str) -> None:
    """Add --shard I/N, with which several machines divide the work."""
    text = f"only shard I of N of the {of}; the outputs' names get .I-of-N"
    parser.add_argument("--shard", type=parse_shard, metavar="I/N", help=text)


def parse_shard(text: str) -> tuple[int, int]:
    """ "2/8" gives (2, 8)."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError("give it as I/N, such as 2/8, from 1/8 to 8/8")
    return int(found[1]), int(found[2])


def check_limits(settings: Settings, names: Iterable[str]) -> None:
    """Raise UsageError for the first of these settings that is beyond its limits."""
    for name in names:
        if problem := problem_with(name, getattr(settings, name)):
            raise UsageError(f"{flag_name(name)} {problem}.")


def file_flags(settings: Settings, default: Settings, names: str) -> str:
    """The flags with which a command works on the same files, such as " --corpus mine.txt": one for each field in
    `names` (separated by spaces) that is not the default."""
    text = ""
    for name in names.split():
        if real_path(path := getattr(settings, name)) != real_path(getattr(default, name)):
            flag = "--model" if name == "model_file" else flag_name(name)  # scripts that read a model call it --model
            text += f" {flag} {quoted_path(path)}"
    return text


def refuse_same(outputs: dict[str, Path | None], *inputs: Path | None) -> None:
    """Raise UsageError if an output file, known by its flag, is also an input or another output, and UserError or
    OSError if it cannot be written. None stands for a file that was not asked for."""
    taken = {real_path(path): "is read here" for path in inputs if path}
    for flag, path in outputs.items():
        if path and (use := taken.get(real_path(path))):
            raise UsageError(f"{flag} would replace {shown_path(path)}, which {use}. Name another file.")
        if path:
            check_replaceable(path)
            taken[real_path(path)] = f"{flag} writes"


def refuse_no_page(flag: str, path: Path | None, *inputs: Path) -> None:
    """refuse_same() for the flag of a page, which may replace a page, and no other file."""
    refuse_same({flag: path}, *inputs)
    if path and path.is_file():
        with open(path, "rb") as file:
            begin = file.read(len(PAGE_BEGINS))
        if begin not in (PAGE_BEGINS, b""):
            raise UsageError(f"{flag} would replace {shown_path(path)}, which is no page. Name another file.")
