"""Step 4, for characters: give every character of the corpus an id.

    python scripts/train_tokenizer_character_level.py
    python scripts/train_tokenizer_character_level.py --corpus data/corpus_sample.txt

Reads   data/corpus.txt
Writes  data/tokenizer_char.json, a file of the tokenizers library
Next    python scripts/prepare_dataset.py

There is little to learn here: the tokenizer is the list of the characters that occur. That is a very small vocabulary,
at the price of many tokens: the model spends its context on single letters.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

from collections import Counter
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from config import CHAR
from dataset import MAX_VOCAB_SIZE
from model.tokenization.display import token_rows
from model.tokenization.tokenizer import (
    Tokenizer,
    check_round_trip,
    make_character_tokenizer,
    reloaded,
    save_tokenizer,
)
from plumbing.command_line import ScriptParser, add_flags, file_flags, parse, refuse_same
from plumbing.corpus import read_documents
from plumbing.errors import UserError, run_script
from plumbing.inputs import Unchanged
from plumbing.text import bar, plural, print_next, shown_path, visible


def count_characters(corpus: Path) -> tuple[Counter[str], int]:
    """(how often each character occurs, the number of documents)."""
    counts, documents = Counter(), 0
    for text in tqdm(read_documents(corpus), desc="counting characters", unit=" documents", delay=2):
        counts.update(text)
        documents += 1
    if not counts:
        raise UserError(f"{shown_path(corpus)} holds no document, so there is nothing to learn.")
    if len(counts) + 2 > MAX_VOCAB_SIZE:
        raise UserError(
            f"{len(counts):,} different characters and two special tokens are more than the {MAX_VOCAB_SIZE:,} ids of "
            "a token file. Use a sample of the corpus, or BPE (scripts/train_tokenizer_bpe.py)."
        )
    return counts, documents


def show_alphabet(counts: Counter[str]) -> None:
    ranked, total = counts.most_common(), counts.total()
    print("The alphabet, most common first:")
    for character, count in ranked[:12]:
        print(f"  {visible(character):8} {count:>12,} {bar(count / total)} {count / total:6.1%}")
    rare = [character for character, count in ranked if count == 1]
    examples = f", such as {' '.join(map(visible, rare[:20]))}" if rare else ""
    print(f"  {'and so on; ' if len(ranked) > 12 else ''}characters that occur once: {len(rare):,}{examples}")


def show_ids(tokenizer: Tokenizer, corpus: Path) -> None:
    example = next((line for text in read_documents(corpus) for line in text.split("\n") if line.strip()), "")
    print("A line of it cut into tokens, with their ids:")
    for row in token_rows(tokenizer, tokenizer.encode(example[:60]), per_row=20):
        print(f"  {row}")
    known = tokenizer.library.get_vocab()
    unseen = next(c for c in map(chr, range(0x3B1, 0x110000)) if c not in known)  # from the Greek alpha on
    print(f"A character that it has not seen, such as {unseen}, becomes id {tokenizer.encode(unseen)[0]} (<|unk|>).")


def main() -> None:
    parser = ScriptParser(__doc__)
    add_flags(parser, CHAR, "corpus tokenizer_file debug")
    settings, _ = parse(parser, CHAR)
    refuse_same({"--tokenizer-file": settings.tokenizer_file}, settings.corpus)

    corpus = Unchanged(settings.corpus)
    with corpus:  # compared before the tokenizer is replaced
        counts, documents = count_characters(settings.corpus)
    print(f"{plural(documents, 'document')}, {counts.total():,} characters, {len(counts):,} different ones")
    if settings.debug:
        show_alphabet(counts)
    library = make_character_tokenizer(counts)

    tokenizer = reloaded(library)
    with corpus:  # compared before the tokenizer is replaced
        tokens, utf8_bytes = check_round_trip(tokenizer, islice(read_documents(settings.corpus), 200))
        if settings.debug:
            show_ids(tokenizer, settings.corpus)
    check_round_trip(tokenizer, ["".join(sorted(counts, reverse=True))])  # a text that is not in the corpus
    save_tokenizer(tokenizer, settings.tokenizer_file)
    print(f"Reloaded and checked: {utf8_bytes:,} bytes came back unchanged, {utf8_bytes / tokens:.3f} bytes per token")
    print(f"{tokenizer.vocab_size:,} ids, two of them special, in {shown_path(settings.tokenizer_file)}")
    print_next(f"python scripts/prepare_dataset.py{file_flags(settings, CHAR, 'corpus tokenizer_file')}")


if __name__ == "__main__":
    run_script(main)
