"""How fast is it, against a peer and against what the machine can do?

    python scripts/benchmark.py train --nanogpt ../nanoGPT --json bench.json
    python scripts/benchmark.py generate --nanogpt ../nanoGPT --llama2c ../llama2.c/run
    python scripts/benchmark.py data
    python scripts/benchmark.py scale

Reads   nothing; a peer is measured where an unmodified checkout of it is named
Writes  a table to the terminal, with --json the same figures to a file

Every row is a median of runs taken in turn with the peer's, so that what disturbs the machine disturbs both. Figures of
two machines, or of two days, do not compare; the ratios do.
"""

import argparse
import json
import sysconfig
from pathlib import Path

import _root

from config import DATA
from plumbing.errors import run_script
from plumbing.files import whole_file
from plumbing.text import shown_path
from scripts.benchmarks.common import machine, show_table
from scripts.benchmarks.data_path import measure_data
from scripts.benchmarks.generating import GENERATING, measure_generating
from scripts.benchmarks.scaling import SCALING_STEPS, measure_scaling
from scripts.benchmarks.training import BATCH_SIZES, RACES, measure_training


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", type=Path, help="write the figures to this file as well")
    common.add_argument("--nanogpt", type=Path, metavar="DIR", help="an unmodified checkout of nanoGPT to measure too")
    common.add_argument("--rounds", type=int, default=5, help="runs of each, in turn [%(default)s]")
    subjects = parser.add_subparsers(dest="subject")

    subject = subjects.add_parser("train", parents=[common], help="tokens/s by model size, or races to a loss")
    subject.add_argument("--sizes", nargs="+", choices=BATCH_SIZES, default=["0.8M", "10.7M"], help="[0.8M 10.7M]")
    subject.add_argument("--compile", action="store_true", help="compile our model first, as long runs do")
    subject.add_argument("--race", choices=RACES, help="whole trainings instead, on the token files in --data")
    subject.add_argument("--data", type=Path, default=DATA, help="folder of token files and tokenizer [data]")
    subject.set_defaults(measure=measure_training)

    subject = subjects.add_parser("generate", parents=[common], help="tokens/s of one text, with its candidates")
    subject.add_argument("--llama2c", type=Path, metavar="BINARY", help="run of karpathy/llama2.c, built with runomp")
    subject.add_argument("--llama2c-model", type=Path, metavar="FILE", help="its weights; default: random, of 15M")
    subject.add_argument("--shapes", nargs="+", choices=GENERATING, default=GENERATING, help="only these")
    subject.set_defaults(measure=measure_generating)

    subject = subjects.add_parser(
        "data", parents=[common], help="MB/s of extraction, sampling, tokenizers, preparation"
    )
    subject.add_argument(
        "folders", nargs="*", type=Path, default=[Path(sysconfig.get_path("stdlib"))], metavar="FOLDER"
    )
    subject.add_argument("--megabytes", type=float, default=500, help="of Python, repeated if need be [%(default)s]")
    subject.add_argument("--train-megabytes", type=float, default=200, help="to train BPE on [%(default)s]")
    subject.add_argument("--scratch", type=Path, help="folder for temporary files [the system's]")
    subject.set_defaults(measure=measure_data)

    subject = subjects.add_parser("scale", parents=[common], help="tokens/s of several processes")
    subject.add_argument("--size", choices=SCALING_STEPS, default="10.7M", help="of the model [%(default)s]")
    subject.add_argument("--batch-size", type=int, default=16, help="sequences in a step, of all [%(default)s]")
    subject.add_argument("--processes", type=int, help="at most [as many as GPUs, or else as processor cores]")
    subject.add_argument("--shard-model", action="store_true", help="and once with a part of the weights in each")
    subject.set_defaults(measure=measure_scaling)

    args = parser.parse_args()
    if args.subject is None:
        parser.error("name what to measure: train, generate, data or scale")
    print(machine())
    rows = args.measure(args)
    show_table(rows)
    if args.json:
        with whole_file(args.json) as file:
            file.write(json.dumps({"machine": machine(), "rows": rows}, indent=2).encode() + b"\n")
        print(f"The figures are in {shown_path(args.json)}.")
    return 0


if __name__ == "__main__":
    run_script(main)
