"""Step 4, for characters: give every character of the corpus an id.

    python scripts/train_tokenizer_character_level.py
    python scripts/train_tokenizer_character_level.py --corpus data/corpus_sample.txt

Reads   data/corpus.txt
Writes  data/tokenizer_char.json, a file of the tokenizers library
Next    python scripts/prepare_dataset.py

There is little to learn here: the tokenizer is the list of the characters that occur. It is about the smallest
vocabulary that can write the text, at the price of many tokens: the model spends its context on single letters.
"""

import argparse
from collections import Counter
from itertools import islice

import _root
from tqdm import tqdm

from config import CHAR
from dataset import MAX_VOCAB_SIZE
from model.tokenization.display import token_rows
from model.tokenization.tokenizer import check_round_trip, load_tokenizer, make_character_tokenizer, save_tokenizer
from plumbing.command_line import add_flags, file_flags, parse, refuse_same
from plumbing.corpus import read_documents
from plumbing.errors import UserError, run_script
from plumbing.text import bar, shown_path, visible

SPECIAL_TOKENS = 2  # <|endoftext|> and <|unk|>


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, CHAR, "corpus tokenizer_file debug")
    settings, _ = parse(parser, CHAR)
    refuse_same({"--tokenizer-file": settings.tokenizer_file}, settings.corpus)

    # === count ========================================================================================================
    counts: Counter[str] = Counter()
    documents = 0
    for text in tqdm(read_documents(settings.corpus), desc="counting characters", unit=" documents", delay=2):
        counts.update(text)
        documents += 1
    if not counts:
        raise UserError(f"{shown_path(settings.corpus)} holds no document: there is no character to learn.")
    if len(counts) + SPECIAL_TOKENS > MAX_VOCAB_SIZE:
        raise UserError(
            f"{len(counts):,} different characters are more than the {MAX_VOCAB_SIZE:,} ids of a token file. "
            "Use a sample of the corpus, or BPE (scripts/train_tokenizer_bpe.py)."
        )
    total = counts.total()
    print(f"{documents:,} documents, {total:,} characters, {len(counts):,} different ones")
    if settings.debug:
        ranked = counts.most_common()
        print("The alphabet, commonest first:")
        for character, count in ranked[:12]:
            print(f"  {visible(character):8} {count:>12,} {bar(count / total)} {count / total:6.1%}")
        rare = [character for character, count in ranked if count == 1]
        print(f"  and so on; {len(rare):,} occur once, such as {visible(''.join(rare[:20]))}")

    # === write, and check what was written ============================================================================
    save_tokenizer(make_character_tokenizer(counts), settings.tokenizer_file)
    tokenizer = load_tokenizer(settings.tokenizer_file)
    tokens, utf8_bytes = check_round_trip(tokenizer, islice(read_documents(settings.corpus), 200))
    check_round_trip(tokenizer, ["".join(sorted(counts, reverse=True))])  # and a text that the corpus does not hold
    if settings.debug:
        print("A line of it cut into tokens, with their ids:")
        lines = (line for text in read_documents(settings.corpus) for line in text.split("\n"))
        example = next(filter(str.strip, lines), "")
        for row in token_rows(tokenizer, tokenizer.encode(example[:60]), per_row=20):
            print(f"  {row}")
        unseen = next(c for c in map(chr, range(0x3B1, 0x110000)) if c not in counts)  # from the Greek alpha on
        print(f"One that it has not seen, such as {unseen}, becomes id {tokenizer.encode(unseen)[0]} (<|unk|>).")
    print(f"Reloaded and checked: {utf8_bytes:,} bytes came back as they were, {utf8_bytes / tokens:.3f} bytes a token")
    print(f"{tokenizer.vocab_size:,} ids, two of them special, in {shown_path(settings.tokenizer_file)}")
    print(f"Next: python scripts/prepare_dataset.py{file_flags(settings, CHAR, 'corpus tokenizer_file')}")


if __name__ == "__main__":
    run_script(main)
