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
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from config import CHAR, Settings, UsageError, UserError, add_flags, parse, run, shown_path
from dataset import flush_to_disk, open_tokens, split_documents, token_writer, withdraw
from model.insight import cut_line, visible
from model.tokenizer import Tokenizer, load_tokenizer

BATCH_CHARACTERS = 1 << 20  # text that is encoded at once: enough to keep the library busy, little to hold in memory


def in_batches(documents: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Group (part, text) pairs into lists of about BATCH_CHARACTERS."""
    batch, size = [], 0
    for part, text in documents:
        batch.append((part, text))
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def show_written(settings: Settings, tokenizer: Tokenizer, firsts: dict[str, str]) -> None:
    """Open the written files as training does, decode their first tokens, and compare with the source."""
    for part, path in (("train", settings.train_file), ("val", settings.val_file)):
        data = open_tokens(path)
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


def main(settings: Settings = CHAR, description: str | None = __doc__, kind: str = "char") -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, settings, "corpus tokenizer_file train_file val_file val_fraction debug")
    settings, _ = parse(parser, settings)
    if not 0 < settings.val_fraction < 1:
        raise UsageError(f"--val-fraction must lie between 0 and 1, and is {settings.val_fraction}.")

    if len({path.resolve() for path in (settings.corpus, settings.train_file, settings.val_file)}) < 3:
        raise UsageError("--corpus, --train-file and --val-file must be three different files.")

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

    # === encode and write =============================================================================================
    start = time.perf_counter()
    unknown: Counter[str] = Counter()
    firsts: dict[str, str] = {}  # the first document of each part
    documents = split_documents(settings.corpus, settings.val_fraction)
    with token_writer(settings.train_file, facts) as train, token_writer(settings.val_file, facts) as val:
        writers = {"train": train, "val": val}
        with tqdm(desc="encoding", unit="B", unit_scale=True, delay=2) as progress:
            for batch in in_batches(documents):
                for (part, text), ids in zip(batch, tokenizer.encode_batch([text for _, text in batch]), strict=True):
                    missing = tokenizer.unknown(text, ids)
                    unknown.update(missing)
                    utf8_bytes = len(text.encode())
                    if settings.debug and train.documents + val.documents < 3:
                        cut = cut_line(tokenizer, ids[:28]) + "|..." * (len(ids) > 28)
                        print(f"{utf8_bytes:,} bytes for {part}, {len(ids):,} tokens: {cut}")
                    firsts.setdefault(part, text)
                    writers[part].add(ids, utf8_bytes, len(missing))
                    progress.update(utf8_bytes)
        for part in writers:
            if not writers[part].utf8_bytes:  # raised inside `with`, so that neither file is replaced
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
    print(f"Next: python {'train.py' if kind == 'char' else 'trainv2.py'}")


if __name__ == "__main__":
    run(main)
