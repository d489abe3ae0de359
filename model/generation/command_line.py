"""The command line of generate.py and generatev2.py."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from config import Generation, Settings
from plumbing.command_line import add_flags, model_flag, parse_before_torch


def generation_flags(settings: Settings, description: str, argv: Sequence[str] | None = None):
    """The command line of generate.py and generatev2.py. Here, so that both answer --help before they import torch."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", default="", help="text to go on from; without one, the beginning of a document")
    prompt.add_argument("--prompt-file", type=Path, help="take the prompt from this file, as it is")
    prompt.add_argument("--interactive", action="store_true", help="ask for one prompt after the other")
    model_flag(parser)
    parser.add_argument("--readable", action="store_true", help="show tokens as text, not as the tokenizer's pieces")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="stop before this text; repeatable")
    parser.add_argument("--stop-at-newline", action="store_true", help="stop before the first line end")
    parser.add_argument("--output-file", type=Path, help="write the text to this file as well")
    parser.add_argument("--explain", action="store_true", help="show at each step what every setting did, in one table")
    parser.add_argument("--trace", type=Path, metavar="FILE.jsonl", help="write the same to this file, a line a step")
    parser.add_argument(
        "--off", action="append", default=[], metavar="L2H3", help="write without this part; repeatable"
    )
    add_flags(parser, settings, Generation, "seed device debug")
    return parse_before_torch(parser, settings, argv)
