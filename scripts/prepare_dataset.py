"""Step 5, for characters: turn the corpus into token ids, in one file to train on and one to validate on.

    python scripts/prepare_dataset.py
    python scripts/prepare_dataset.py --corpus data/corpus_sample.txt

Reads   data/corpus.txt and data/tokenizer_char.json
Writes  data/train.bin and data/val.bin: uint16 ids, <|endoftext|> after every document; a description beside each
Next    python train.py

Whether a document is for training or for validation follows from a hash of its text. The model never trains on the
validation file, so its loss there says what it has learned and not what it remembers.
"""

import argparse
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import _root
import numpy as np
from tqdm import tqdm

from config import CHAR, Settings
from dataset import open_tokens, token_writer, withdraw
from model.tokenization.bpe_encoder import END, BPEEncoder
from model.tokenization.character_encoder import CharacterEncoder
from model.tokenization.display import cut_line
from model.tokenization.tokenizer import Tokenizer, load_tokenizer
from plumbing.command_line import add_flags, file_flags, parse, refuse_same, shard_flag
from plumbing.corpus import cut_at_borders, cut_in_two, find_border, only_document, read_document_bytes, split_of
from plumbing.errors import UsageError, UserError, run_script
from plumbing.files import flush_to_disk
from plumbing.journal import Journal, identity
from plumbing.parallel import in_input_order, pick_workers, shard_path
from plumbing.text import shown_path, visible

PIECE_BYTES = 1 << 23  # of the corpus in a piece, 8 MB: enough to be worth the change, little to hold in memory
RESULT_TOKENS = 1 << 22  # handed to the writer at once


@dataclass
class Encoded:
    """Some tokens of one part of the corpus, and what they were made from."""

    part: str
    ids: list[np.ndarray]
    documents: int = 0
    utf8_bytes: int = 0
    unknown: dict[str, int] = field(default_factory=dict)  # characters without an id: how often


class Encode:
    """Turns pieces of the corpus into tokens, on several threads."""

    def __init__(self, settings: Settings, tokenizer: Tokenizer):
        self.settings, self.tokenizer = settings, tokenizer
        # Characters are a table; what one thread has learned about words, the others use, too.
        self.words = BPEEncoder(tokenizer) if tokenizer.kind == "bpe" else None

    def __call__(self, piece: tuple[int, int] | dict[str, bytes]) -> Iterator[Encoded]:
        """Yield the tokens of a piece: (start, end) in the corpus, or the two parts of its only document."""
        encoder, parts = self.words or CharacterEncoder(self.tokenizer), {"train": [], "val": []}
        if isinstance(piece, dict):
            parts = {part: [text] for part, text in piece.items()}
        else:
            for document in read_document_bytes(self.settings.corpus, *piece):
                parts[split_of(document, self.settings.val_fraction)].append(document)
        for part, documents in parts.items():
            counts = {"documents": len(documents), "utf8_bytes": sum(map(len, documents))}
            text = bytes([END]).join([*documents, b""])
            documents.clear()
            ids: list[np.ndarray] = []
            for some in encoder.encode(text):
                ids.append(some)
                if sum(map(len, ids)) >= RESULT_TOKENS:
                    yield Encoded(part, ids)
                    ids = []
            unknown = getattr(encoder, "unknown", {})
            yield Encoded(part, ids, **counts, unknown=dict(unknown))
            unknown.clear()


def show_first(work: Encode, piece: tuple[int, int] | dict[str, bytes]) -> dict[str, str]:
    """Print how the first documents fall apart. Returns the beginning of the first document of each part."""
    settings, tokenizer = work.settings, work.tokenizer
    firsts: dict[str, str] = {}
    if isinstance(piece, dict):
        documents = iter(piece.items())
    else:
        found = read_document_bytes(settings.corpus, *piece)
        documents = ((split_of(document, settings.val_fraction), document) for document in found)
    encoder = work.words or CharacterEncoder(tokenizer)
    for number, (part, document) in enumerate(documents):
        if settings.debug and number < 3:
            ids = next(encoder.encode(document + bytes([END])))
            whole = f", {len(ids) - 1:,} tokens" if ids[-1] == tokenizer.end_of_text_id else ""  # not of long ones
            cut = cut_line(tokenizer, ids[: min(28, len(ids) - 1)]) + "|..." * (len(ids) > 29)
            print(f"{len(document):,} bytes for {part}{whole}: {cut}")
        firsts.setdefault(part, document[:300].decode(errors="ignore"))
        if number >= 2 and len(firsts) == 2:
            break
    return firsts


def show_written(settings: Settings, tokenizer: Tokenizer, firsts: dict[str, str]) -> None:
    """Open the written files as training does, decode their first tokens, and compare with the source."""
    for part, path in (("train", settings.train_file), ("val", settings.val_file)):
        data = open_tokens(path, may_be_empty=True)
        if part not in firsts:
            print(f"{shown_path(path)}: no document of this share fell to {part}")
            continue
        source = firsts[part][:70]
        decoded = tokenizer.decode(data.tokens[: len(source.encode())])[: len(source)]
        if settings.debug:
            print(f"The beginning of {shown_path(path)}, read back and decoded, above its source:")
            print(f"  {visible(decoded)}\n  {visible(source)}")
        known = tokenizer.decode(tokenizer.encode(source))  # characters without an id come back as <|unk|>
        if decoded[: len(source)] != known[: len(source)]:
            raise UserError(f"{shown_path(path)} does not decode to its source. Train the tokenizer again and repeat.")
        print(
            f"{shown_path(path)}: {data.facts['documents']:,} documents, {len(data.tokens):,} tokens, "
            f"{data.facts['utf8_bytes']:,} bytes, {1 / data.tokens_per_byte:.3f} bytes a token"
        )


def main(default: Settings = CHAR, description: str | None = __doc__, kind: str = "char") -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    shard_flag(parser, "documents")
    add_flags(parser, default, "corpus tokenizer_file train_file val_file val_fraction workers debug")
    settings, args = parse(parser, default)
    if not 0 < settings.val_fraction < 1:
        raise UsageError(f"--val-fraction must lie between 0 and 1, and is {settings.val_fraction}.")
    outputs = {name: shard_path(getattr(settings, name), args.shard) for name in ("train_file", "val_file")}
    unsharded, settings = settings, replace(settings, **outputs)
    written = {"--train-file": settings.train_file, "--val-file": settings.val_file}
    refuse_same(written, settings.corpus, settings.tokenizer_file)

    tokenizer = load_tokenizer(settings.tokenizer_file)
    if tokenizer.kind != kind:
        other = {"char": "scripts/prepare_dataset_bpe.py", "bpe": "scripts/prepare_dataset.py"}[kind]
        raise UserError(f"{shown_path(settings.tokenizer_file)} is a {tokenizer.kind} tokenizer: use {other} for it.")
    facts = {
        "tokenizer_kind": tokenizer.kind,
        "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text_id": tokenizer.end_of_text_id,
        "source": shown_path(settings.corpus),
    }

    # === cut the corpus into pieces ===================================================================================
    start = time.perf_counter()
    only = only_document(settings.corpus)
    share, shares = args.shard or (1, 1)
    size = settings.corpus.stat().st_size
    begin, end = (find_border(settings.corpus, size * i // shares) for i in (share - 1, share))
    if only is not None and shares > 1:
        raise UserError(f"{shown_path(settings.corpus)} is a single document, which --shard cannot divide.")
    depends_on = [facts, identity(settings.corpus), settings.val_fraction, begin, end]

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the pieces keep all cores busy

    # === encode and write =============================================================================================
    unknown: Counter[str] = Counter()
    progress = {"desc": "encoding", "total": end - begin, "unit": "B", "unit_scale": True, "delay": 2}
    with (
        Journal([settings.train_file, settings.val_file], depends_on) as journal,
        token_writer(settings.train_file, facts, journal) as train,
        token_writer(settings.val_file, facts, journal) as val,
        tqdm(**progress) as progress,
    ):
        writers, at = {"train": train, "val": val}, begin
        if journal.state:
            at, unknown = journal.state["at"], Counter(journal.state["unknown"])
            for part, writer in writers.items():
                writer.take_up(journal.state[part])
            progress.initial = progress.n = at - begin
            print(f"Going on behind the {(at - begin) / 1e6:,.1f} MB that an earlier run has finished.")
        if only is not None:
            pieces = [cut_in_two(only, settings.val_fraction)]
        else:
            pieces = cut_at_borders(settings.corpus, at, end, PIECE_BYTES)
        work = Encode(settings, tokenizer)
        firsts = show_first(work, pieces[0] if only is not None else (begin, end))
        only = None  # a long document need not stand in memory twice
        for piece, results in in_input_order(work, pieces, pick_workers(settings.workers)):
            for encoded in results:
                writer = writers[encoded.part]
                for ids in encoded.ids:
                    writer.extend(ids)
                writer.count(encoded.documents, encoded.utf8_bytes, sum(encoded.unknown.values()))
                unknown.update(encoded.unknown)
            if not isinstance(piece, dict):
                state = {"at": piece[1], "unknown": unknown, **{p: w.counts() for p, w in writers.items()}}
                journal.note([train.file, val.file], state)
                progress.update(piece[1] - piece[0])
        for part in writers:
            if not writers[part].utf8_bytes and not args.shard:  # inside `with`, so that neither file is replaced
                raise UserError(
                    f"No document of {shown_path(settings.corpus)} fell to {part}. Use more documents, or another "
                    f"--val-fraction than {settings.val_fraction}."
                )
        # Both files are replaced, or neither: a new one beside the other's earlier version could hold the same text.
        flush_to_disk(train.file)
        flush_to_disk(val.file)
        withdraw(settings.train_file, settings.val_file)
    seconds = time.perf_counter() - start

    # === check what was written =======================================================================================
    if unknown:
        some = ", ".join(f"{visible(c)} ({n:,} times)" for c, n in unknown.most_common(5))
        print(f"{unknown.total():,} characters are not in the tokenizer and became <|unk|>, among them {some}")
    show_written(settings, tokenizer, firsts)
    print(f"{(train.utf8_bytes + val.utf8_bytes) / 1e6 / seconds:.1f} MB/s")
    if args.shard:
        whole = unsharded.train_file
        shares_of_it = shown_path(shard_path(whole, ("*", shares)))
        print("Next, when all shares are there, and for val as for train:")
        print(f"  python scripts/merge_token_files.py {shares_of_it} --output {shown_path(whole)}")
    else:
        flags = file_flags(settings, default, "train_file val_file tokenizer_file")
        print(f"Next: python {'train.py' if kind == 'char' else 'trainv2.py'}{flags}")


if __name__ == "__main__":
    run_script(main)
