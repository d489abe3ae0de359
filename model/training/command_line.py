"""The command line of train.py and trainv2.py."""

from collections.abc import Sequence
from pathlib import Path

from config import Model, Sampling, Settings, Training
from plumbing.command_line import ScriptParser, add_flags, parse_before_torch

FILES = "train_file val_file tokenizer_file checkpoint_dir model_file"


def training_flags(settings: Settings, description: str, argv: Sequence[str] | None = None):
    """Parse the command line of train.py or trainv2.py, which both do before they import torch. Returns (settings,
    arguments)."""
    parser = ScriptParser(description)
    parser.add_argument("--fresh", action="store_true", help="start over; an earlier run is moved aside, not deleted")
    text = "start with the weights, architecture and tokenizer of this folder in Hugging Face's layout (Qwen3)"
    parser.add_argument("--init-from", type=Path, metavar="DIR", help=text)
    text = "none: the token files are bare ids (uint16) without a sidecar, such as nanoGPT's prepare.py writes"
    parser.add_argument("--tokenizer", choices=["file", "none"], default="file", help=text)
    parser.add_argument("--vocab-size", dest="ids", type=int, metavar="N", help="with --tokenizer none: number of ids")
    parser.add_argument("--plan", action="store_true", help="estimate the memory and time of the run, and stop there")
    add_flags(parser, settings, FILES, Model, Training, Sampling, "debug explain_step")
    settings, args = parse_before_torch(parser, settings, argv)
    if (args.tokenizer == "none") != (args.ids is not None):
        parser.error("--tokenizer none and --vocab-size N go together: bare ids do not say how many there are")
    if args.ids is not None and args.init_from is not None:
        parser.error("--init-from brings its own tokenizer: leave --tokenizer none out")
    return settings, args
