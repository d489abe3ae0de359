"""Step 5, for characters: turn the corpus into token ids, one file for training and one for validation.

    python scripts/prepare_dataset.py
    python scripts/prepare_dataset.py --corpus data/corpus_sample.txt

Reads   data/corpus.txt and data/tokenizer_char.json
Writes  data/train.bin and data/val.bin: uint16 ids, <|endoftext|> after every document; a description beside each
Next    python train.py

A hash of its text decides whether a document is for training or for validation (split_of in
plumbing/corpus.py). The model never trains on the validation file, so its loss there shows what it has learned, not
what it has memorised.

The corpus is cut into chunks between documents, which are encoded on all cores. If the run is stopped, the same command
resumes it.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from config import CHAR, Settings
from dataset import TokenWriter, open_tokens, remove_sidecars, token_writer
from model.tokenization.bpe_encoder import BPEEncoder
from model.tokenization.character_encoder import CharacterEncoder
from model.tokenization.display import cut_line
from model.tokenization.pre_tokens import END, join_documents
from model.tokenization.tokenizer import Tokenizer, load_tokenizer
from plumbing.command_line import ScriptParser, add_flags, file_flags, parse, refuse_same, shard_flag
from plumbing.corpus import cut_in_two, cut_into_chunks, find_border, only_document, split_documents
from plumbing.errors import UserError, run_script
from plumbing.files import flush_to_disk
from plumbing.inputs import Unchanged
from plumbing.journal import Journal, identity
from plumbing.parallel import cores, in_input_order, shard_path, shard_pattern
from plumbing.text import byte_rate, byte_size, plural, print_next, quoted_path, shown_path, visible

CHUNK_BYTES = 1 << 23  # 8 MB of the corpus: enough for large arrays, and little enough to hold several chunks in memory
BLOCKS_AT_ONCE = 22  # computed ahead of the writer: more than a chunk has, so only a very long document waits


class CorpusEncoder:
    """Turns chunks of the corpus into ids. Threads share it."""

    def __init__(self, settings: Settings, tokenizer: Tokenizer):
        self.settings, self.tokenizer, self.input = settings, tokenizer, Unchanged(settings.corpus)
        only = only_document(settings.corpus)
        self.only = only is not None
        self.halves = cut_in_two(only, settings.val_fraction) if self.only else {}  # in memory until it is encoded
        # One BPE encoder, because it remembers the words that any thread has met. Character encoders count, so they are
        # made for each chunk.
        self.bpe = BPEEncoder(tokenizer) if tokenizer.kind == "bpe" else None

    def documents(self, chunk: tuple[int, int]) -> Iterable[tuple[str, bytes]]:
        """("train" or "val", document) for the documents of a chunk, given as (start, end) in the corpus."""
        if self.only:
            return self.halves.items()
        return split_documents(self.settings.corpus, self.settings.val_fraction, *chunk)

    def encode(self, chunk: tuple[int, int]) -> Iterator[tuple[str, np.ndarray, int, int, dict[str, int]]]:
        """Yield the ids of a chunk block by block, first for training, then for validation: (split, ids, documents,
        bytes of text, how often each character without an id was met). A split ends with a block without ids, which
        has the counts of all its blocks."""
        for split, documents in self.by_split(chunk).items():
            count, utf8_bytes = len(documents), sum(map(len, documents))
            text = join_documents(documents)
            documents.clear()  # a long document should not be in memory twice
            encoder = self.bpe or CharacterEncoder(self.tokenizer)
            for ids in encoder.encode(text):
                yield split, ids, 0, 0, {}
            yield split, np.empty(0, "<u2"), count, utf8_bytes, encoder.unknown

    def by_split(self, chunk: tuple[int, int]) -> dict[str, list[bytes]]:
        found = {"train": [], "val": []}
        for split, document in self.documents(chunk):
            found[split].append(document)
        self.halves.clear()
        return found


def shard_range(encoder: CorpusEncoder, shard: tuple[int, int]) -> tuple[int, int]:
    """Where a shard, (I, N), of the corpus starts and ends, in bytes."""
    (number, of), corpus = shard, encoder.settings.corpus
    if of > 1 and encoder.only:
        raise UserError(f"{shown_path(corpus)} is a single document, which --shard cannot divide.")
    size = corpus.stat().st_size
    return find_border(corpus, size * (number - 1) // of), find_border(corpus, size * number // of)


@contextmanager
def two_writers(files: list[Path], facts: dict, journal: Journal) -> Iterator[tuple[TokenWriter, TokenWriter]]:
    with token_writer(files[0], facts, journal) as train, token_writer(files[1], facts, journal) as val:
        yield train, val


def write_token_files(encoder: CorpusEncoder, facts: dict, shard: tuple[int, int] | None) -> tuple[dict, Counter, int]:
    """Encode a corpus or a shard of it into the two token files. Writes both or neither. Returns (the beginning of the
    first document of each split, how often each character without an id was met, the bytes of text)."""
    settings = encoder.settings
    start, end = shard_range(encoder, shard or (1, 1))
    depends_on = [facts, identity(settings.corpus), settings.val_fraction, start, end]
    files = [settings.train_file, settings.val_file]
    progress = tqdm(desc="encoding", total=end - start, unit="B", unit_scale=True, delay=2)
    with Journal(files, depends_on) as journal, two_writers(files, facts, journal) as (train, val), progress:
        writers = {"train": train, "val": val}
        done, unknown = start, Counter()
        if journal.state:
            for split, writer in writers.items():
                writer.resume(journal.state[split])
            done, unknown = journal.state["at"], Counter(journal.state["unknown"])
            print(f"Resuming after the {(done - start) / 1e6:,.1f} MB that an earlier run has finished.")
        progress.initial = progress.n = done - start
        beginnings = show_first_documents(encoder, (start, end))
        chunks = cut_into_chunks(settings.corpus, done, end, end if encoder.only else CHUNK_BYTES)
        for chunk, blocks in in_input_order(encoder.encode, chunks, settings.workers or cores(), BLOCKS_AT_ONCE):
            for split, ids, documents, utf8_bytes, missing in blocks:
                writers[split].extend(ids)
                writers[split].count(documents, utf8_bytes, sum(missing.values()))
                unknown.update(missing)
            counts = {split: writer.counts() for split, writer in writers.items()}
            journal.note([train.file, val.file], {"at": chunk[1], "unknown": unknown, **counts})
            progress.update(chunk[1] - chunk[0])
        for split, writer in writers.items():
            if not writer.utf8_bytes and not shard:  # inside `with`, so that neither file is replaced
                raise UserError(
                    f"No document of {shown_path(settings.corpus)} is in the {split} split. Use more documents, or "
                    f"another --val-fraction than {settings.val_fraction}."
                )
        encoder.input.compare()
        # A new file beside the other's earlier version could contain the same documents.
        flush_to_disk(train.file)
        flush_to_disk(val.file)
        check_unfinished(journal, encoder, beginnings)
        facts["pairs"] = [train.pair_of(val)]  # for both sidecars, which are written from here on
        remove_sidecars(settings.train_file, settings.val_file)
    return beginnings, unknown, train.utf8_bytes + val.utf8_bytes


def show_first_documents(encoder: CorpusEncoder, chunk: tuple[int, int]) -> dict[str, str]:
    """Print the tokens of the first three documents. Returns the beginning of the first document of each split."""
    tokenizer, beginnings = encoder.tokenizer, {}
    ids_of = encoder.bpe or CharacterEncoder(tokenizer)
    for number, (split, document) in enumerate(encoder.documents(chunk)):
        if encoder.settings.debug and number < 3:
            ids = next(ids_of.encode(document + bytes([END])))  # a long document has more blocks, which are not shown
            total = f", {len(ids) - 1:,} tokens" if ids[-1] == tokenizer.end_of_text_id else ""
            line = cut_line(tokenizer, ids[: min(28, len(ids) - 1)])
            print(f"{len(document):,} bytes for {split}{total}: {line}{'|...' if len(ids) > 29 else ''}")
        beginnings.setdefault(split, document[:300].decode(errors="ignore"))
        if number >= 2 and len(beginnings) == 2:
            break
    return beginnings


def check_unfinished(journal: Journal, encoder: CorpusEncoder, beginnings: dict[str, str]) -> None:
    """Decode the first ids of both files, before they get their names, and compare them with the source."""
    settings, tokenizer = encoder.settings, encoder.tokenizer
    for split, path in (("train", settings.train_file), ("val", settings.val_file)):
        source = beginnings.get(split, "")[:70]
        decoded = tokenizer.decode(np.fromfile(journal.unfinished(path), "<u2", len(source.encode())))
        known = tokenizer.decode(tokenizer.encode(source))  # characters without an id come back as <|unk|>
        if decoded[: len(source)] != known[: len(source)]:
            raise UserError(
                f"What was to become {shown_path(path)} does not decode to its source, and was not written. "
                "Train the tokenizer again and repeat."
            )


def check_written(settings: Settings, tokenizer: Tokenizer, beginnings: dict[str, str]) -> None:
    """Open the token files as training does, and show their first ids, decoded, and what they were made from."""
    for split, path in (("train", settings.train_file), ("val", settings.val_file)):
        data = open_tokens(path, may_be_empty=True)
        if split not in beginnings:
            print(f"{shown_path(path)}: this shard has no document in the {split} split")
            continue
        source = beginnings[split][:70]
        decoded = tokenizer.decode(data.tokens[: len(source.encode())])[: len(source)]
        if settings.debug:
            print(f"The beginning of {shown_path(path)}, read back and decoded, above its source:")
            print(f"  {visible(decoded)}\n  {visible(source)}")
        print(
            f"{shown_path(path)}: {plural(data.facts['documents'], 'document')}, {len(data.tokens):,} tokens, "
            f"{data.facts['utf8_bytes']:,} bytes, {1 / data.tokens_per_byte:.3f} bytes per token"
        )


def main(default: Settings = CHAR, description: str | None = __doc__, kind: str = "char") -> None:
    parser = ScriptParser(description)
    shard_flag(parser, "documents")
    add_flags(parser, default, "corpus tokenizer_file train_file val_file val_fraction workers debug")
    given, args = parse(parser, default)
    train_file, val_file = shard_path(given.train_file, args.shard), shard_path(given.val_file, args.shard)
    settings = replace(given, train_file=train_file, val_file=val_file)
    refuse_same({"--train-file": train_file, "--val-file": val_file}, settings.corpus, settings.tokenizer_file)
    tokenizer = load_tokenizer(settings.tokenizer_file)
    if tokenizer.kind != kind:
        other = {"char": "scripts/prepare_dataset_bpe.py", "bpe": "scripts/prepare_dataset.py"}[kind]
        raise UserError(f"{shown_path(settings.tokenizer_file)} is a {tokenizer.kind} tokenizer: use {other} for it.")
    facts = {
        "tokenizer_kind": tokenizer.kind,
        "tokenizer_sha256": tokenizer.sha256,
        "tokenizer_meaning": tokenizer.meaning,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text_id": tokenizer.end_of_text_id,
        "source": shown_path(settings.corpus),
        "val_fraction": settings.val_fraction,
    }
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # our threads already keep all cores busy

    start = time.perf_counter()
    encoder = CorpusEncoder(settings, tokenizer)
    with encoder.input:
        beginnings, unknown, size = write_token_files(encoder, facts, args.shard)
    seconds = time.perf_counter() - start

    if unknown:
        some = ", ".join(f"{visible(c)} ({n:,} times)" for c, n in unknown.most_common(5))
        print(f"{unknown.total():,} characters are not in the tokenizer and became <|unk|>, among them {some}")
        if unknown.total() > size / 100:
            print("Warning: so many that it was trained on other text. Step 4 trains one on this corpus.")
    check_written(settings, tokenizer, beginnings)
    print(f"Prepared {byte_size(size)} of text{byte_rate(size, seconds)}")
    if args.shard:
        shards = shard_pattern(given.train_file, args.shard[1])
        print("Next, when all shards are written, for train and likewise for val:")
        print(f"  python scripts/merge_token_files.py {shards} --output {quoted_path(given.train_file)}")
    else:
        flags = file_flags(given, default, "train_file val_file tokenizer_file")
        print_next(f"python {'train.py' if kind == 'char' else 'trainv2.py'}{flags}")


if __name__ == "__main__":
    run_script(main)
