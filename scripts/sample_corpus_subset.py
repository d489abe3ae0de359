"""Step 3: a smaller corpus, for a first training or a slow machine.

    python scripts/sample_corpus_subset.py --megabytes 20
    python scripts/sample_corpus_subset.py --fraction 0.1 --seed 7

Reads   data/corpus.txt, twice: first to count, then to select
Writes  data/corpus_sample.txt: whole documents in their order; the same seed gives the same file
Next    python scripts/train_tokenizer_character_level.py --corpus data/corpus_sample.txt
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from config import CHAR, DATA, Settings
from plumbing.command_line import ScriptParser, add_flags, file_flags, parse, refuse_same
from plumbing.corpus import sample_document_bytes, write_documents
from plumbing.errors import UsageError, UserError, run_script
from plumbing.text import byte_rate, byte_size, plural, print_next, shown_path, visible


def show_and_pass_on(documents: Iterator[bytes], settings: Settings) -> Iterator[bytes]:
    """Yield the documents, and print how the first ones begin."""
    count = 0
    for document in tqdm(documents, desc="taken", unit=" documents", delay=2):
        if settings.debug and count < 3:
            text = document.decode()
            print(f"  takes a document of {len(text):,} characters: {visible(text[:70])}")
        count += 1
        yield document
    if not count:
        raise UserError(
            f"No document of {shown_path(settings.corpus)} fits into so small a sample of whole documents. Ask for "
            "more; or, if it is a single one, divide it by lines <|endoftext|>."
        )


def main() -> None:
    parser = ScriptParser(__doc__)
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--megabytes", type=float, help="take at most this much text, in MB")
    size.add_argument("--documents", type=int, help="take this many documents")
    size.add_argument("--fraction", type=float, help="take this fraction of the documents, 0 to 1")
    parser.add_argument("--output", type=Path, default=DATA / "corpus_sample.txt", help="file to write")
    add_flags(parser, CHAR, "corpus seed debug")
    settings, args = parse(parser, CHAR)

    wanted = {name: getattr(args, name) for name in ("megabytes", "documents", "fraction")}
    if any(value is not None and not 0 < value < math.inf for value in wanted.values()) or (args.fraction or 0) > 1:
        raise UsageError("The size of a sample must be a number above 0, and --fraction at most 1.")
    refuse_same({"--output": args.output}, settings.corpus)

    start = time.perf_counter()
    documents = sample_document_bytes(settings.corpus, settings.seed, **wanted)
    count, written = write_documents(args.output, show_and_pass_on(documents, settings))
    whole = settings.corpus.stat().st_size
    sizes, rate = f"{byte_size(written)} of {byte_size(whole)}", byte_rate(whole, time.perf_counter() - start)
    print(f"{plural(count, 'document')}, {sizes}, in {shown_path(args.output)}{rate}")
    flags = file_flags(replace(settings, corpus=args.output), CHAR, "corpus")
    print_next(f"python scripts/train_tokenizer_character_level.py{flags}")


if __name__ == "__main__":
    run_script(main)
