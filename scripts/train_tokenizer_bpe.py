"""Step 4, for byte pairs: learn which pieces of text deserve an id of their own.

    python scripts/train_tokenizer_bpe.py
    python scripts/train_tokenizer_bpe.py --vocab-size 8192 --corpus data/corpus_sample.txt

Reads   data/corpus.txt, or a sample of it where it is large (--tokenizer-megabytes)
Writes  data/tokenizer_bpe.json, a file of the tokenizers library
Next    python scripts/prepare_dataset_bpe.py

Byte-pair encoding starts with the 256 bytes and merges the commonest pair of neighbours into a new token, again and
again, until the vocabulary is full. Common words become one token, and any text can still be written byte by byte.
"""

import argparse
import json
import sys
import time
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import BPE, UsageError, UserError, add_flags, corpus_flag, parse, run, shown_path
from dataset import MAX_VOCAB_SIZE, read_documents, sample_documents
from model.bpe import train_bpe_tokenizer
from model.insight import readable, token_rows
from model.tokenizer import LETTER_TO_BYTE, check_round_trip, load_tokenizer, save_tokenizer

SMALLEST = 257  # <|endoftext|> and the 256 bytes: no merge at all
UNSEEN = "naïve façade, 日本語, 🐍, \t\r\n and a NUL \0 too"  # every byte has an id, so any text must come back


def show_merges(merges: list[tuple[str, str]], ids: dict[str, int], number: int = 12) -> None:
    """Print the first and the last merges: the first are the commonest pairs, the last rare words."""
    for i in [*range(min(number, len(merges))), *range(max(number, len(merges) - number), len(merges))]:
        if i == len(merges) - number > number:
            print("  ...")
        left, right = (readable(bytes(LETTER_TO_BYTE[letter] for letter in piece)) for piece in merges[i])
        print(f"  id {ids[''.join(merges[i])]:>5}: {left} + {right} = {left}{right}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, BPE, "corpus tokenizer_file vocab_size tokenizer_megabytes seed debug")
    settings, _ = parse(parser, BPE)
    if not SMALLEST <= settings.vocab_size <= MAX_VOCAB_SIZE:
        raise UsageError(f"--vocab-size must be from {SMALLEST} to {MAX_VOCAB_SIZE:,}, and is {settings.vocab_size:,}.")
    if not settings.tokenizer_megabytes > 0:
        raise UsageError(f"--tokenizer-megabytes must be above 0, and is {settings.tokenizer_megabytes}.")
    if next(read_documents(settings.corpus), None) is None:
        raise UserError(f"{shown_path(settings.corpus)} is empty: there is nothing to learn.")

    # === learn ========================================================================================================
    documents = read_documents(settings.corpus)
    if settings.corpus.stat().st_size > settings.tokenizer_megabytes * 1e6:
        print(f"The corpus is large: learning from a random {settings.tokenizer_megabytes:g} MB of it.")
        documents = sample_documents(settings.corpus, settings.seed, megabytes=settings.tokenizer_megabytes)
    start = time.perf_counter()
    save_tokenizer(train_bpe_tokenizer(documents, settings.vocab_size, settings.debug), settings.tokenizer_file)
    seconds = time.perf_counter() - start

    # === check what was written =======================================================================================
    tokenizer = load_tokenizer(settings.tokenizer_file)
    tokens, utf8_bytes = check_round_trip(tokenizer, islice(read_documents(settings.corpus), 200))
    check_round_trip(tokenizer, [UNSEEN])
    merges = json.loads(tokenizer.json_text)["model"]["merges"]
    if settings.debug:
        print("The first merges, and the last:")
        show_merges(merges, tokenizer.library.get_vocab())
        print("A line of the corpus cut into tokens, with their ids:")
        lines = (line for text in read_documents(settings.corpus) for line in text.split("\n"))
        example = max(islice(filter(str.strip, lines), 50), key=len, default="")
        for row in token_rows(tokenizer, tokenizer.encode(example[:120])):
            print(f"  {row}")
    print(f"Reloaded and checked: {utf8_bytes:,} bytes came back as they were, {utf8_bytes / tokens:.3f} bytes a token")
    if tokenizer.vocab_size < settings.vocab_size:
        print(f"The text offered no more than {len(merges):,} merges.")
    print(f"{tokenizer.vocab_size:,} ids in {shown_path(settings.tokenizer_file)}, learned in {seconds:.1f} s")
    print(f"Next: python scripts/prepare_dataset_bpe.py{corpus_flag(settings, BPE)}")


if __name__ == "__main__":
    run(main)
