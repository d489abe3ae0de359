"""The whole pipeline in one command, on the Python standard library: no account and no download needed.

    python scripts/quickstart.py
    python scripts/quickstart.py --minutes 15

Reads   Python's own source files
Writes  data/ (parquet, corpus, tokenizers, token files), checkpoints/, gpt_model.pt, and data/my_gpt.html, a page that
        is the BPE model
Next    open that page; generate.py and generatev2.py; then the README, to do each step again with your own files

It runs the same scripts that you would run and prints each command first, so its output doubles as a tutorial. Stop it
whenever you like: the same command resumes where it stopped.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

import hashlib
import json
import shlex
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from config import BPE, CHAR, DATA, ROOT
from dataset import sidecar
from plumbing.command_line import ScriptParser
from plumbing.errors import UserError, run_script
from plumbing.files import whole_file
from plumbing.text import IN_QUICKSTART, duration, plural, shown_path


class Stage(NamedTuple):
    title: str
    why: str  # what the step is for
    command: str  # {minutes} is the time for one training
    reads: Path | None = None  # the newest file that it reads, the work of an earlier stage
    writes: tuple[Path, ...] = ()  # the stage is skipped if these are up to date; without any, it always runs


STAMPS = DATA / "quickstart.json"
FIXED_MINUTES = 1.0  # everything except the two trainings, on two cores
LEAST_MINUTES = 0.5  # for one training: less teaches it nothing
PARQUET = CHAR.parquet_dir / "folder.parquet"
SAMPLE = DATA / "corpus_sample.txt"
CHAR_IDS = (CHAR.train_file, sidecar(CHAR.train_file), CHAR.val_file, sidecar(CHAR.val_file))
BPE_IDS = (BPE.train_file, sidecar(BPE.train_file), BPE.val_file, sidecar(BPE.val_file))
# The trainings read about 4 MB in their minutes, and scoring 6 % of it takes seconds. So few documents differ a lot
# from draw to draw, hence a seed whose validation documents are neither very easy nor very hard.
CORPUS = "--corpus data/corpus_sample.txt"
IDS = f"{CORPUS} --val-fraction 0.06"
PAGE = "data/my_gpt.html"
STAGES = [
    Stage(
        "1. Gather source files",
        "A model learns from examples. These come with Python, so nothing has to be downloaded.",
        "ingestion/ingest_folder.py", None, (PARQUET,),
    ),
    Stage(
        "2. Extract their text",
        "A language model reads text, not tables: one long file, with a line <|endoftext|> between two documents.",
        "scripts/extract_parquets_to_text.py", PARQUET, (CHAR.corpus,),
    ),
    Stage(
        "3. Take a sample",
        "In a few minutes a model reads a few megabytes. Whole documents, at random.",
        "scripts/sample_corpus_subset.py --megabytes 4 --seed 1", CHAR.corpus, (SAMPLE,),
    ),
    Stage(
        "4. Train a character tokenizer",
        "A model computes with numbers, so every character gets one.",
        f"scripts/train_tokenizer_character_level.py {CORPUS}", SAMPLE, (CHAR.tokenizer_file,),
    ),
    Stage(
        "4. Train a BPE tokenizer",
        "The other way: frequent groups of characters get a number too, so a text becomes far fewer tokens.",
        f"scripts/train_tokenizer_bpe.py {CORPUS}", SAMPLE, (BPE.tokenizer_file,),
    ),
    Stage(
        "5. Turn the text into character ids",
        "Training reads numbers. Some documents are set aside, to test the model on what it has never seen.",
        f"scripts/prepare_dataset.py {IDS}", CHAR.tokenizer_file, CHAR_IDS,
    ),
    Stage(
        "5. Turn the text into BPE ids",
        "The same documents, cut by the other tokenizer.",
        f"scripts/prepare_dataset_bpe.py {IDS}", BPE.tokenizer_file, BPE_IDS,
    ),
    # Both trainings always run: they know where they stopped.
    Stage(
        "6. Train on characters",
        "Guess each next character, see which one came, move every weight a little; again and again.",
        "train.py --minutes {minutes:g}",
    ),
    Stage(
        "7. Watch the model choose eight characters",
        "It writes by guessing as well: one character is drawn, appended, and the rest follows from there.",
        'generate.py --prompt "def " --tokens 8 --readable',
    ),
    Stage(
        "7. Generate text with the character model",
        "The same without the figures. It has learned how Python looks, not what it means.",
        'generate.py --prompt "def " --tokens 400 --quiet',
    ),
    Stage(
        "6. Train on BPE tokens",
        "The same loop on longer tokens. Bits per byte, at the end, compare the two models.",
        "trainv2.py --minutes {minutes:g}",
    ),
    Stage(
        "7. Watch the model choose eight tokens",
        "Each choice is now among 4,096 tokens, and most are whole words.",
        'generatev2.py --prompt "def" --tokens 8 --readable',
    ),
    Stage(
        "7. Generate text with the BPE model",
        "Fewer tokens, more text.",
        'generatev2.py --prompt "def" --tokens 150 --quiet',
    ),
    Stage(
        "7. Put the model into one HTML file",
        "To play with it in a browser, to look inside while it writes, and to send to a friend.",
        f'scripts/export_html.py --prompt "def" --output {PAGE}',
    ),
]  # fmt: skip


def hashes(paths: Iterable[Path]) -> dict[str, str]:
    """The SHA-256 of each file that exists, by its name."""
    found = {}
    for path in filter(Path.is_file, paths):
        with open(path, "rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def stamps() -> dict[str, dict]:
    """What each stage has read and written, by its title; "written" is None until it has ended."""
    try:
        return dict(json.loads(STAMPS.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def stamp(stage: Stage, ended: bool) -> None:
    """Note that a stage begins or has ended. What is written in between is ours, even if it is killed."""
    entry = {"read": hashes([stage.reads] if stage.reads else []), "written": hashes(stage.writes) if ended else None}
    with whole_file(STAMPS) as file:
        file.write(json.dumps(stamps() | {stage.title: entry}, indent=1).encode())


def up_to_date(stage: Stage) -> bool:
    """Whether the files that a stage reads and writes are those that it has read and written."""
    now = {"read": hashes([stage.reads] if stage.reads else []), "written": hashes(stage.writes)}
    return len(now["written"]) == len(stage.writes) > 0 and stamps().get(stage.title) == now


def refuse_files_of_others() -> None:
    """Raise UserError if the quickstart would replace a file that somebody made by hand, or take it for its own."""
    done = stamps()
    for stage in STAGES:
        ours = done.get(stage.title, {"written": {}})["written"]
        for path in stage.writes:
            if ours is not None and hashes([path]).items() - ours.items():
                raise UserError(
                    f"{shown_path(path)} is not the quickstart's: it was made or changed by another command. To keep "
                    "it, go on by hand (README.md, the seven steps); or move it elsewhere and run this again."
                )


def run_command(command: str) -> int:
    """Run a script with this Python, its output going where ours goes. Returns its exit code. Ctrl-C reaches the script
    directly, SIGTERM is passed on. We wait for it: a training saves before it ends."""
    environment = os.environ | {IN_QUICKSTART: "1"}
    arguments = [sys.executable, *shlex.split(command)]
    process = subprocess.Popen(arguments, cwd=ROOT, env=environment)  # noqa: S603 (our own scripts)
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    terminate = signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    code = process.wait()
    signal.signal(signal.SIGINT, before)
    signal.signal(signal.SIGTERM, terminate)
    return code


def main() -> int:
    parser = ScriptParser(__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="about how long it may take in all [%(default)s]")
    args = parser.parse_args()
    minutes = round(max(LEAST_MINUTES, (args.minutes - FIXED_MINUTES) / 2), 2)

    start, whole = time.perf_counter(), FIXED_MINUTES + 2 * minutes
    print(f"From source files to two trained models in about {whole:g} minutes. You could type each command.")
    if args.minutes < whole:
        print(f"In less than {whole:g} minutes a model learns nothing.")
    refuse_files_of_others()
    for stage in STAGES:
        command = stage.command.format(minutes=minutes)
        print(f"\n=== {stage.title}\n{stage.why}\n$ python {command}")
        if up_to_date(stage):
            print(f"skipped: {', '.join(map(shown_path, stage.writes))}: already up to date")
            continue
        if stage.writes:
            stamp(stage, ended=False)
        if code := run_command(command):
            print(f"\nThat ended with exit code {code}. Flags that it names are those of", file=sys.stderr)
            print(f"  python {command}", file=sys.stderr)
            print("Fix what the message above says, then run the quickstart again: it resumes here.", file=sys.stderr)
            return code if code > 0 else 128 - code
        if stage.writes:
            stamp(stage, ended=True)

    print(f"\n=== Done in {duration(time.perf_counter() - start)}")
    for name, settings in (("characters", CHAR), ("BPE", BPE)):
        lines = (settings.checkpoint_dir / "log.jsonl").read_text("utf-8").splitlines()
        last = [entry for entry in map(json.loads, lines) if "val_loss" in entry][-1]
        bits = f"{last['val_bits_per_byte']:.3f} bits per byte of validation text"
        print(f"{name:10} {bits}, after {plural(last['step'], 'step')}")
    print(f"Open {PAGE} in a browser: it is the BPE model, writing and showing how, and it needs no network.")
    print("Both models are ready. Try each:")
    for script in ("generate.py", "generatev2.py"):
        print(f'  python {script} --prompt "def hello_world():" --tokens 64 --readable')
    print("Next: open README.md and do the steps again with your own files.")
    return 0


if __name__ == "__main__":
    run_script(main, when_unread="stderr")
