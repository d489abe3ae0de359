"""From settings to flags: one typed flag per field of config.py that a script uses, and checks that scripts share."""

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import config
from config import CHAR, Settings
from plumbing.errors import UsageError
from plumbing.files import real_path
from plumbing.interrupts import end_at_once
from plumbing.settings import field_names
from plumbing.text import quoted_path, shown_path


def flag_name(field: str) -> str:
    """n_layer is --n-layer."""
    return "--" + field.replace("_", "-")


def add_flags(parser: argparse.ArgumentParser, settings: Settings, *wanted: type | str) -> None:
    """Add a typed flag for each of the wanted settings, its value in `settings` as the default and its comment in
    config.py as the help. `wanted` are classes of config.py, for all their fields, and names separated by spaces."""
    names = [name for one in wanted for name in (one.split() if isinstance(one, str) else field_names(one))]
    comments = dict(re.findall(r"^    (\w+): .*?  # (.*)$", Path(config.__file__).read_text("utf-8"), re.MULTILINE))
    for field in fields(Settings):
        if field.name not in names:
            continue
        default, flag = getattr(settings, field.name), flag_name(field.name)
        text = comments[field.name].replace("%", "%%")
        if field.name == "debug":
            parser.add_argument("--quiet", dest="debug", action="store_false", default=default, help="show no work")
        elif field.type is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=text)
        else:
            text += f" [{shown_path(default) if isinstance(default, Path) else default}]"
            parser.add_argument(flag, type=field.type, default=default, metavar=flag[2:].upper(), help=text)


def parse(parser: argparse.ArgumentParser, settings: Settings, argv: Sequence[str] | None = None):
    """Parse the command line. Returns (settings with the flags applied, the namespace of all arguments)."""
    args = parser.parse_args(argv)
    given = {name: getattr(args, name) for name in field_names(Settings) if hasattr(args, name)}
    return replace(settings, **given), args


def parse_before_torch(parser: argparse.ArgumentParser, settings: Settings, argv: Sequence[str] | None):
    """parse(); from then on until run_script(), while torch is imported, Ctrl-C ends the process at once and without a
    traceback."""
    parsed = parse(parser, settings, argv)
    end_at_once()
    return parsed


def model_flag(parser: argparse.ArgumentParser) -> None:
    """Add --model, for scripts that read a model; training writes it with --model-file."""
    default, text = CHAR.model_file, "the model [gpt_model.pt]"
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


def check_seed(settings: Settings) -> None:
    """Raise UsageError for a seed that torch's random numbers cannot start from."""
    if not 0 <= settings.seed < 2**64:
        raise UsageError(f"--seed must be from 0 to 2**64 - 1, and it is {settings.seed}.")


def check_sampling(settings: Settings) -> None:
    """Raise UsageError for values that no token can be sampled with."""
    if not 0 <= settings.temperature < math.inf:
        raise UsageError(f"--temperature must be 0 (the most likely token) or above, not {settings.temperature}.")
    if settings.top_k < 0:
        raise UsageError(f"--top-k must be 0 or above, not {settings.top_k}.")
    if not 0 < settings.top_p <= 1:
        raise UsageError(f"--top-p must be above 0 and at most 1, not {settings.top_p}.")
    if not 0 <= settings.min_p <= 1:
        raise UsageError(f"--min-p must be from 0 to 1, not {settings.min_p}.")
    if not 0.01 <= settings.repetition_penalty <= 100:
        raise UsageError(f"--repetition-penalty must be from 0.01 to 100, not {settings.repetition_penalty}.")
    check_seed(settings)


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
    """Raise UsageError if an output file, known by its flag, is also an input or another output. None stands for a file
    that was not asked for."""
    taken = {real_path(path): "is read here" for path in inputs if path}
    for flag, path in outputs.items():
        if path and (use := taken.get(real_path(path))):
            raise UsageError(f"{flag} would replace {shown_path(path)}, which {use}. Name another file.")
        if path:
            taken[real_path(path)] = f"{flag} writes"
