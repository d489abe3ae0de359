"""Step 4, for byte pairs: learn which strings of bytes deserve an id of their own.

    python scripts/train_tokenizer_bpe.py
    python scripts/train_tokenizer_bpe.py --vocab-size 8192 --corpus data/corpus_sample.txt

Reads   data/corpus.txt, or a sample of it where it is large (--tokenizer-megabytes)
Writes  data/tokenizer_bpe.json, a file of the tokenizers library
Next    python scripts/prepare_dataset_bpe.py

Byte-pair encoding starts with the 256 bytes and merges the most common pair of neighbours into a new token, again and
again, until the vocabulary is full. Common words become one token, and any text can still be written byte by byte.
model/tokenization/bpe_trainer_plain.py is the algorithm.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

import json
import math
import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from config import BPE, Settings
from model.tokenization.bpe_trainer import train_bpe_tokenizer
from model.tokenization.display import token_rows, token_text
from model.tokenization.tokenizer import Tokenizer, check_round_trip, reloaded, save_tokenizer
from plumbing.command_line import ScriptParser, add_flags, file_flags, parse, refuse_same
from plumbing.corpus import read_document_bytes, read_documents, sample_documents
from plumbing.errors import UserError, run_script
from plumbing.inputs import Unchanged
from plumbing.text import byte_size, plural, print_next, shown_path

# Of the corpus, so that an id occurs about 200 times; and the smallest vocabulary that is recommended.
BYTES_PER_ID, SMALLEST = 700, 512
UNSEEN = "naïve façade, 日本語, 🐍, \t\r\n and a NUL \0 too"  # every byte has an id, so any text must come back


def documents_to_learn(settings: Settings) -> Iterator[str]:
    """The documents of the corpus; of a large corpus, a random sample; if no document is small enough for that, the
    start of the first one."""
    if settings.corpus.stat().st_size <= settings.tokenizer_megabytes * 1e6:
        return read_documents(settings.corpus)
    size = f"{settings.tokenizer_megabytes:g} MB"
    sample = sample_documents(settings.corpus, settings.seed, megabytes=settings.tokenizer_megabytes)
    if (first := next(sample, None)) is not None:
        print(f"The corpus is large: learning from a random {size} of it.")
        return chain([first], sample)
    print(f"The corpus is large: learning from the first {size} of it.")
    first = next(read_document_bytes(settings.corpus))[: int(settings.tokenizer_megabytes * 1e6)]
    return iter([first.decode(errors="ignore")])  # without a character that is cut


def show_merges(tokenizer: Tokenizer, merges: list[tuple[str, str]], count: int = 12) -> None:
    """Print the first and the last merges: the first are the most common pairs, the last are parts of rare words."""
    ids = tokenizer.library.get_vocab()
    print("The first merges, and the last:")
    for i in [*range(min(count, len(merges))), *range(max(count, len(merges) - count), len(merges))]:
        if i == len(merges) - count > count:
            print("  ...")
        left, right = (token_text(tokenizer, ids[string]) for string in merges[i])
        print(f"  id {ids[''.join(merges[i])]:>5}: {left} + {right} = {left}{right}")


def show_tokens(tokenizer: Tokenizer, corpus: Path) -> None:
    lines = (line for text in read_documents(corpus) for line in text.split("\n"))
    example = max(islice(filter(str.strip, lines), 50), key=len, default="")
    print("A line of the corpus cut into tokens, with their ids:")
    for row in token_rows(tokenizer, tokenizer.encode(example[:120])):
        print(f"  {row}")


def advise_size(vocab_size: int, settings: Settings, bytes_per_token: float) -> None:
    """Warn of a vocabulary that is too large for the corpus, and name one that fits."""
    size = settings.corpus.stat().st_size
    fitting = max(SMALLEST, 1 << int(math.log2(max(size / BYTES_PER_ID, 1))))
    if vocab_size > fitting:
        print(
            f"Warning: in {byte_size(size)} of text each id occurs {size / bytes_per_token / vocab_size:.0f} times on "
            f"average, too rarely to learn much about it. Try --vocab-size {fitting}, or characters."
        )


def main() -> None:
    parser = ScriptParser(__doc__)
    add_flags(parser, BPE, "corpus tokenizer_file vocab_size tokenizer_megabytes seed debug")
    settings, _ = parse(parser, BPE)
    refuse_same({"--tokenizer-file": settings.tokenizer_file}, settings.corpus)
    if next(read_documents(settings.corpus), None) is None:
        raise UserError(f"{shown_path(settings.corpus)} holds no document, so there is nothing to learn.")

    start = time.perf_counter()
    corpus = Unchanged(settings.corpus)
    with corpus:
        library = train_bpe_tokenizer(documents_to_learn(settings), settings.vocab_size, settings.debug)
    seconds = time.perf_counter() - start

    tokenizer = reloaded(library)
    merges = json.loads(tokenizer.json_text)["model"]["merges"]
    with corpus:
        tokens, utf8_bytes = check_round_trip(tokenizer, islice(read_documents(settings.corpus), 200))
        if settings.debug:
            show_merges(tokenizer, merges)
            show_tokens(tokenizer, settings.corpus)
    check_round_trip(tokenizer, [UNSEEN])
    save_tokenizer(tokenizer, settings.tokenizer_file)
    print(f"Reloaded and checked: {utf8_bytes:,} bytes came back unchanged, {utf8_bytes / tokens:.3f} bytes per token")
    if tokenizer.vocab_size < settings.vocab_size:
        print(f"The text had only {plural(len(merges), 'merge')} to offer.")
    print(f"{tokenizer.vocab_size:,} ids in {shown_path(settings.tokenizer_file)}, learned in {seconds:.1f} s")
    advise_size(tokenizer.vocab_size, settings, utf8_bytes / tokens)
    print_next(f"python scripts/prepare_dataset_bpe.py{file_flags(settings, BPE, 'corpus tokenizer_file')}")


if __name__ == "__main__":
    run_script(main)
