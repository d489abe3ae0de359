"""The whole pipeline in one command, on the Python standard library: no account and no download needed.

    python scripts/quickstart.py
    python scripts/quickstart.py --minutes 15

Reads   Python's own source files
Writes  data/ (parquet, corpus, tokenizers, token files), checkpoints/, gpt_model.pt
Next    generate.py and generatev2.py; then the README, to do each step again with your own files

It runs the same scripts that you would run and prints each command first, so its output doubles as a tutorial. Stop it
whenever you like: the same command resumes where it stopped.
"""

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import _root

from config import BPE, CHAR, DATA, ROOT
from dataset import sidecar
from plumbing.errors import run_script
from plumbing.text import duration, shown_path


class PipelineStep(NamedTuple):
    title: str
    command: str  # {minutes} is the time for one training
    reads: tuple[Path, ...] = ()
    writes: tuple[Path, ...] = ()  # the step is skipped if these are up to date; without any, it always runs


def with_sidecars(*token_files: Path) -> tuple[Path, ...]:
    """Token files and the descriptions that complete them."""
    return tuple(path for file in token_files for path in (file, sidecar(file)))


FIXED_MINUTES = 1.0  # everything except the two trainings, on two cores
PARQUET = CHAR.parquet_dir / "folder.parquet"
SAMPLE = DATA / "corpus_sample.txt"
# The trainings read about 4 MB in their minutes, and scoring 6 % of it takes seconds. So few documents differ a lot
# from draw to draw: the default seed picks mostly tables of encodings, which are too easy.
CORPUS = "--corpus data/corpus_sample.txt"
STEPS = [
    PipelineStep("1. Gather source files", "ingestion/ingest_folder.py", (), (PARQUET,)),
    PipelineStep("2. Extract their text", "scripts/extract_parquets_to_text.py", (PARQUET,), (CHAR.corpus,)),
    PipelineStep(
        "3. Take a sample", "scripts/sample_corpus_subset.py --megabytes 4 --seed 1", (CHAR.corpus,), (SAMPLE,)
    ),
    PipelineStep(
        "4. Train a character tokenizer",
        f"scripts/train_tokenizer_character_level.py {CORPUS}",
        (SAMPLE,),
        (CHAR.tokenizer_file,),
    ),
    PipelineStep(
        "4. Train a BPE tokenizer", f"scripts/train_tokenizer_bpe.py {CORPUS}", (SAMPLE,), (BPE.tokenizer_file,)
    ),
    PipelineStep(
        "5. Turn the text into character ids",
        f"scripts/prepare_dataset.py {CORPUS} --val-fraction 0.06",
        (SAMPLE, CHAR.tokenizer_file),
        with_sidecars(CHAR.train_file, CHAR.val_file),
    ),
    PipelineStep(
        "5. Turn the text into BPE ids",
        f"scripts/prepare_dataset_bpe.py {CORPUS} --val-fraction 0.06",
        (SAMPLE, BPE.tokenizer_file),
        with_sidecars(BPE.train_file, BPE.val_file),
    ),
    # Both trainings always run: they know where they stopped.
    PipelineStep("6. Train on characters", "train.py --minutes {minutes:g}"),
    PipelineStep("7. Watch the model choose eight characters", 'generate.py --prompt "def " --tokens 8 --readable'),
    PipelineStep("7. Generate text with the character model", 'generate.py --prompt "def " --tokens 400 --quiet'),
    PipelineStep("6. Train on BPE tokens", "trainv2.py --minutes {minutes:g}"),
    PipelineStep("7. Watch the model choose eight tokens", 'generatev2.py --prompt "def" --tokens 8 --readable'),
    PipelineStep("7. Generate text with the BPE model", 'generatev2.py --prompt "def" --tokens 150 --quiet'),
]
TRY_NEXT = [
    f'{script} --prompt "def hello_world():" --tokens 64 --readable' for script in ("generate.py", "generatev2.py")
]


def up_to_date(step: PipelineStep) -> bool:
    """Whether all files that a step writes exist and are not older than the files it reads."""
    if not step.writes or not all(path.exists() for path in step.writes):
        return False
    newest = max((path.stat().st_mtime for path in step.reads), default=0)
    return newest <= min(path.stat().st_mtime for path in step.writes)


def run_command(command: str) -> int:
    """Run a script with this Python, its output going where ours goes. Returns its exit code.

    Ctrl-C reaches the script directly, SIGTERM is passed on. We wait for it: a training saves before it ends.
    """
    process = subprocess.Popen([sys.executable, *shlex.split(command)], cwd=ROOT)  # noqa: S603 (our own scripts)
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    terminate = signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    code = process.wait()
    signal.signal(signal.SIGINT, before)
    signal.signal(signal.SIGTERM, terminate)
    return code


def print_results() -> None:
    """The score of each run, from its log."""
    for name, settings in (("characters", CHAR), ("BPE", BPE)):
        lines = (settings.checkpoint_dir / "log.jsonl").read_text("utf-8").splitlines()
        last = [entry for entry in map(json.loads, lines) if "val_loss" in entry][-1]
        bits = f"{last['val_bits_per_byte']:.3f} bits per byte of validation text"
        print(f"{name:10} {bits}, after {last['step']:,} steps")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="about how long it may take in all [%(default)s]")
    args = parser.parse_args()
    minutes = round(max(0.1, (args.minutes - FIXED_MINUTES) / 2), 2)

    start = time.perf_counter()
    print(f"From source files to two trained models in about {args.minutes:g} minutes. You could type each command.")
    for step in STEPS:
        command = step.command.format(minutes=minutes)
        print(f"\n=== {step.title}\n$ python {command}")
        if up_to_date(step):
            print(f"skipped: {', '.join(map(shown_path, step.writes))}: already up to date")
        elif code := run_command(command):
            print(f"\nThat ended with exit code {code}.", file=sys.stderr)
            print("Fix what the message above says, then run the quickstart again: it resumes here.", file=sys.stderr)
            return code if code > 0 else 128 - code

    print(f"\n=== Done in {duration(time.perf_counter() - start)}")
    print_results()
    print("Both models are ready. Try each:")
    for command in TRY_NEXT:
        print(f"  python {command}")
    print("Next: open README.md and do the steps again with your own files.")
    return 0


if __name__ == "__main__":
    run_script(main)
