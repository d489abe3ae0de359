"""The whole pipeline in one go, on the standard library of the running Python: no account, no download.

    python scripts/quickstart.py
    python scripts/quickstart.py --minutes 15

Reads   Python's own source files
Writes  data/ (parquet, corpus, tokenizers, token files), checkpoints/, gpt_model.pt
Next    the README, to do each step again by hand, on your own files

It runs the very scripts that you would run, and prints each command before it runs it, so its output is a tutorial too.
Stop it when you like: run again, it goes on where it stopped.
"""

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import _root

from config import BPE, CHAR, DATA, ROOT
from dataset import sidecar
from plumbing.errors import run_script
from plumbing.text import duration, shown_path

FIXED_MINUTES = 1.0  # what everything but the two trainings takes on two cores


def with_sidecars(*token_files: Path) -> list[Path]:
    """Token files, and the descriptions without which they are unfinished."""
    return [path for file in token_files for path in (file, sidecar(file))]


PARQUET = CHAR.parquet_dir / "folder.parquet"
SAMPLE = DATA / "corpus_sample.txt"
CORPUS = "--corpus data/corpus_sample.txt"
# 4 MB is what the trainings read in their minutes; scoring 6 % of it takes seconds and not a minute. With so few
# documents, luck decides what is among them: the default seed draws mostly tables of encodings, and these are easy.
STEPS = [
    # title, command ({minutes} is a training's share), files read, files written
    ("1. Gather source files", "ingestion/ingest_folder.py", [], [PARQUET]),
    ("2. Extract their text", "scripts/extract_parquets_to_text.py", [PARQUET], [CHAR.corpus]),
    ("3. Take a sample", "scripts/sample_corpus_subset.py --megabytes 4 --seed 1", [CHAR.corpus], [SAMPLE]),
    (
        "4. Train a character tokenizer",
        f"scripts/train_tokenizer_character_level.py {CORPUS}",
        [SAMPLE],
        [CHAR.tokenizer_file],
    ),
    ("4. Train a BPE tokenizer", f"scripts/train_tokenizer_bpe.py {CORPUS}", [SAMPLE], [BPE.tokenizer_file]),
    (
        "5. Turn the text into characters' ids",
        f"scripts/prepare_dataset.py {CORPUS} --val-fraction 0.06",
        [SAMPLE, CHAR.tokenizer_file],
        with_sidecars(CHAR.train_file, CHAR.val_file),
    ),
    (
        "5. Turn the text into BPE ids",
        f"scripts/prepare_dataset_bpe.py {CORPUS} --val-fraction 0.06",
        [SAMPLE, BPE.tokenizer_file],
        with_sidecars(BPE.train_file, BPE.val_file),
    ),
    ("6. Train on characters", "train.py --minutes {minutes:g}", [], []),
    ("7. Look at eight characters being chosen", 'generate.py --prompt "def " --tokens 8 --readable', [], []),
    ("7. Let the character model write", 'generate.py --prompt "def " --tokens 400 --quiet', [], []),
    ("6. Train on BPE tokens", "trainv2.py --minutes {minutes:g}", [], []),
    ("7. Look at eight tokens being chosen", 'generatev2.py --prompt "def" --tokens 8 --readable', [], []),
    ("7. Let the BPE model write", 'generatev2.py --prompt "def" --tokens 150 --quiet', [], []),
]


def up_to_date(reads: list[Path], writes: list[Path]) -> bool:
    """Whether all files to write are there, none older than a file to read. A step that names none always runs: the
    trainings know by themselves where they stopped, and the generators write nothing."""
    if not writes or not all(path.exists() for path in writes):
        return False
    newest = max((path.stat().st_mtime for path in reads), default=0)
    return newest <= min(path.stat().st_mtime for path in writes)


def run_command(command: str) -> int:
    """Run a script with this Python, its output going where ours goes. Returns its exit code.

    Ctrl-C reaches the script by itself, and SIGTERM is passed on. We wait for it: a training saves before it ends.
    """
    process = subprocess.Popen([sys.executable, *shlex.split(command)], cwd=ROOT)  # noqa: S603 (our own scripts)
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    terminate = signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    code = process.wait()
    signal.signal(signal.SIGINT, before)
    signal.signal(signal.SIGTERM, terminate)
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="about how long it may take in all [%(default)s]")
    args = parser.parse_args()
    minutes = round(max(0.1, (args.minutes - FIXED_MINUTES) / 2), 2)

    start = time.perf_counter()
    print(f"From source files to two trained models, in about {args.minutes:g} minutes. What is run, you could type:")
    for title, command, reads, writes in STEPS:
        command = command.format(minutes=minutes)
        print(f"\n=== {title}\n$ python {command}")
        if up_to_date(reads, writes):
            print(f"skipped: {', '.join(map(shown_path, writes))}: there already, and made from nothing newer")
            continue
        if code := run_command(command):
            print(f"\nThat ended with exit code {code}.", file=sys.stderr)
            print("Do what it says above, if anything; the quickstart, run again, goes on here.", file=sys.stderr)
            return code if code > 0 else 128 - code

    print(f"\n=== Done in {duration(time.perf_counter() - start)}")
    for name, settings in (("characters", CHAR), ("BPE", BPE)):
        lines = (settings.checkpoint_dir / "log.jsonl").read_text("utf-8").splitlines()
        last = [entry for entry in map(json.loads, lines) if "val_loss" in entry][-1]
        bits = f"{last['val_bits_per_byte']:.3f} bits per byte of validation text"
        print(f"{name:10} {bits}, after {last['step']:,} steps")
    print("gpt_model.pt holds the BPE model. Next: open README.md, and do the steps again with your own files.")
    return 0


if __name__ == "__main__":
    run_script(main)
