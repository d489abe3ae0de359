"""Measure the speed of this project against others and against the limits of the machine.

    python scripts/benchmark.py train --nanogpt ../nanoGPT --json bench.json
    python scripts/benchmark.py generate --nanogpt ../nanoGPT --llama2c ../llama2.c/run
    python scripts/benchmark.py data
    python scripts/benchmark.py scale

Reads   "data" the folders that you name, "train --race" the token files in --data; a peer if you name a checkout of it
Writes  a table to the terminal; with --json the same figures to a file

Each row is the median of several rounds. In each round ours and the peer run in turn, so whatever disturbs the machine
disturbs both. Compare ratios: absolute figures change from machine to machine and from day to day.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

import argparse
import json
import sysconfig
from pathlib import Path

from config import DATA
from plumbing.command_line import ScriptParser, at_least_one
from plumbing.errors import run_script
from plumbing.files import whole_file
from plumbing.text import shown_path
from scripts.benchmarks.models import BATCH_SIZES, GENERATED, SCALING_STEPS


def parse_arguments() -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    common = ScriptParser(add_help=False)
    common.add_argument("--json", type=Path, help="also write the figures to this file")
    common.add_argument("--nanogpt", type=Path, metavar="DIR", help="an unmodified checkout of nanoGPT to measure too")
    common.add_argument("--rounds", type=at_least_one, default=5, help="rounds to measure [%(default)s]")
    subjects = parser.add_subparsers(dest="subject")

    train = subjects.add_parser("train", parents=[common], help="tokens/s by model size, or races to a loss")
    train.add_argument("--sizes", nargs="+", choices=BATCH_SIZES, default=["0.8M", "10.7M"], help="[0.8M 10.7M]")
    train.add_argument("--compile", action="store_true", help="compile our model first, as --compile on does")
    train.add_argument("--accumulate", type=at_least_one, default=1, metavar="N", help="micro-batches per step [1]")
    train.add_argument(
        "--race", choices=["shakespeare", "char", "bpe"], help="whole trainings instead, on the token files in --data"
    )
    train.add_argument("--data", type=Path, default=DATA, help="folder of token files and tokenizer [data]")

    generate = subjects.add_parser("generate", parents=[common], help="tokens/s of one text, with its candidates")
    generate.add_argument("--llama2c", type=Path, metavar="BINARY", help="karpathy/llama2.c, built with make runomp")
    generate.add_argument("--llama2c-model", type=Path, metavar="FILE", help="its weights [random ones, 15M]")
    generate.add_argument("--shapes", nargs="+", choices=GENERATED, default=GENERATED, help="only these")

    data = subjects.add_parser("data", parents=[common], help="MB/s of extraction, sampling, tokenizers, preparation")
    stdlib = Path(sysconfig.get_path("stdlib"))
    data.add_argument("folders", nargs="*", type=Path, default=[stdlib], metavar="FOLDER", help="with Python files")
    data.add_argument("--megabytes", type=float, default=500, help="of Python, repeated if needed [%(default)s]")
    data.add_argument("--train-megabytes", type=float, nargs="+", default=[45, 200], help="to train BPE on [45 200]")
    data.add_argument("--scratch", type=Path, help="folder for temporary files [the system's]")

    scale = subjects.add_parser("scale", parents=[common], help="tokens/s of several processes")
    scale.add_argument("--size", choices=SCALING_STEPS, default="10.7M", help="of the model [%(default)s]")
    scale.add_argument("--batch-size", type=at_least_one, default=16, help="sequences per step, in all [16]")
    scale.add_argument("--processes", type=at_least_one, help="at most [the number of GPUs, or of processor cores]")
    scale.add_argument("--shard-model", action="store_true", help="also measure a run with --shard-model")

    args = parser.parse_args()
    if args.subject is None:
        parser.error("name what to measure: train, generate, data or scale")
    return args


def main() -> None:
    args = parse_arguments()
    from scripts.benchmarks.common import describe_machine, print_table

    if args.subject == "data":
        from scripts.benchmarks.data_path import measure_data as measure
    elif args.subject == "generate":
        from scripts.benchmarks.generating import measure_generating as measure
    elif args.subject == "scale":
        from scripts.benchmarks.scaling import measure_scaling as measure
    elif args.race:
        from scripts.benchmarks.races import measure_races as measure
    else:
        from scripts.benchmarks.training import measure_training as measure
    print(describe_machine())
    rows = measure(args)
    print_table(rows)
    if args.json:
        with whole_file(args.json) as file:
            file.write(json.dumps({"machine": describe_machine(), "rows": rows}, indent=2).encode() + b"\n")
        print(f"The figures are in {shown_path(args.json)}.")


if __name__ == "__main__":
    run_script(main)
