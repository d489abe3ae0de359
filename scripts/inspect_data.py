"""What is in a corpus or a token file, and is anything wrong with it?

    python scripts/inspect_data.py data/corpus.txt
    python scripts/inspect_data.py data/train_bpe.bin

Reads   a text file, or a token file with its sidecar, or a folder of them (and the tokenizer that made them, to show
        tokens as text)
Writes  nothing. For text it prints document sizes, duplicates, white space and long lines; for tokens, bytes per token,
        unused ids, the longest and the most common tokens, and the text around the borders of documents
Next    for a corpus: python scripts/train_tokenizer_bpe.py; for tokens: python trainv2.py
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

import array
import functools
import heapq
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from config import BPE, CHAR
from dataset import TokenFile, open_tokens, sidecar
from model.tokenization.display import token_text
from model.tokenization.pre_tokens import WHITE
from model.tokenization.tokenizer import Tokenizer, load_tokenizer
from plumbing.command_line import ScriptParser, file_flags
from plumbing.corpus import NO_TEXT, SeenDocuments, document_hashes, read_document_bytes
from plumbing.errors import UserError, run_script
from plumbing.inputs import Unchanged
from plumbing.text import bar, plural, shown_path, visible

SAMPLE_DOCUMENTS = 200  # encoded to estimate the bytes per token of a corpus
SAMPLE_BYTES = 1 << 20  # longest document that is encoded for it
DOCUMENTS_AT_ONCE = 256
TOKENS_AT_ONCE = 1 << 22


def show_sizes(sizes: np.ndarray, unit: str) -> None:
    """Print the distribution of document sizes: some percentiles, and a histogram over powers of two."""
    if len(sizes) == 1:
        print(f"It is one document, of {sizes[0]:,} {unit}")
        return
    ordered = np.sort(sizes)
    names = {"smallest": 0, "10th percentile": 0.1, "median": 0.5, "90th percentile": 0.9, "largest": 1}
    percentiles = [f"{name} {ordered[round(q * (len(ordered) - 1))]:,}" for name, q in names.items()]
    print(f"Document sizes in {unit}: {', '.join(percentiles)}; mean {sizes.mean():,.0f}")
    powers = np.frexp(np.maximum(sizes, 1))[1] - 1  # 2**power <= size
    counts = np.bincount(powers)
    for power in range(int(powers.min()), len(counts)):
        length = counts[power] / counts.max()
        print(f"  from {2**power:>13,} {bar(length)} {counts[power]:>11,} {counts[power] / len(sizes):6.1%}")


# === a corpus =========================================================================================================


def read_corpus(path: Path) -> tuple[np.ndarray, Counter, list[tuple[int, int, bytes]]]:
    """One pass over the documents, with about 50 bytes of memory per document. Returns the size of each document in
    bytes, what was counted, and (bytes, document, start) of three long lines, each of another document."""
    sizes, counts, longest = array.array("q"), Counter(), []
    seen, documents = SeenDocuments(), read_document_bytes(path)
    with tqdm(total=path.stat().st_size if path.exists() else 0, unit="B", unit_scale=True, delay=2) as progress:
        while batch := list(itertools.islice(documents, DOCUMENTS_AT_ONCE)):
            for document, new in zip(batch, seen.new(document_hashes(batch)).tolist(), strict=True):
                counts["duplicates"] += not new
                counts["bytes of duplicates"] += 0 if new else len(document)
                counts["white"] += len(document) - len(document.translate(None, WHITE))
                counts["lines"] += document.count(b"\n") + (not document.endswith(b"\n"))
                counts["carriage returns"] += document.count(b"\r")
                counts["zeros"] += document.count(b"\0")
                line = max(document.split(b"\n"), key=len)
                longest = heapq.nlargest(3, [*longest, (len(line), len(sizes), line[:60])])
                sizes.append(len(document))
                progress.update(len(document))
    if not sizes:
        raise UserError(f"{shown_path(path)} holds no document.")
    if counts["zeros"] * 4 > sum(sizes):
        raise UserError(f"{shown_path(path)} is not text. {NO_TEXT}")
    return np.frombuffer(sizes, np.int64), counts, longest


def inspect_corpus(path: Path, tokenizers: list[Path]) -> None:
    sizes, counts, longest = read_corpus(path)
    documents, total, lines, duplicates = len(sizes), int(sizes.sum()), counts["lines"], counts["duplicates"]
    texts = f"{plural(documents, 'document')}, {total:,} bytes of text in {plural(lines, 'line')}"
    print(f"{shown_path(path)} is a corpus: {texts}")
    show_sizes(sizes, "bytes")
    fractions = f"({duplicates / documents:.1%}), {counts['bytes of duplicates'] / total:.1%} of the text"
    print(f"Exact duplicates: {plural(duplicates, 'document')} {fractions}")
    print(f"White space: {counts['white'] / total:.1%} of the bytes; {total / lines:.1f} bytes per line")
    if counts["carriage returns"] or counts["zeros"]:
        unusual = plural(counts["carriage returns"], "carriage return"), plural(counts["zeros"], "NUL character")
        print(f"Unusual in code: {', '.join(unusual)}")
    print("The longest lines:")
    for length, document, start in longest:
        print(f"  {length:,} bytes in document {document + 1:,}: {visible(start.decode(errors='ignore'))}")
    for file in filter(Path.exists, tokenizers):
        show_bytes_per_token(path, file)
    if duplicates:
        print("Leave duplicates out with: python scripts/extract_parquets_to_text.py --deduplicate")


def show_bytes_per_token(corpus: Path, tokenizer_file: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_file)
    documents = list(itertools.islice(read_document_bytes(corpus), SAMPLE_DOCUMENTS))
    sample = [document for document in documents if len(document) < SAMPLE_BYTES]
    tokens = sum(len(tokenizer.encode(document.decode())) for document in sample)
    if tokens:
        ratio = sum(map(len, sample)) / tokens
        part = "" if len(documents) < SAMPLE_DOCUMENTS else f" in the first {len(documents)} documents"
        print(f"{shown_path(tokenizer_file)}: {ratio:.3f} bytes per token{part}")


# === a token file =====================================================================================================


def find_tokenizer(data: TokenFile, files: list[Path]) -> Tokenizer | None:
    """The tokenizer that made a token file, if it is among these; says so either way."""
    wanted, others = data.facts["tokenizer_sha256"], []
    for file in filter(Path.exists, files):
        tokenizer = load_tokenizer(file)
        if tokenizer.made(data.facts):
            print(f"Its tokenizer is {shown_path(file)}: the hash matches.")
            return tokenizer
        others.append(shown_path(file))
    print(
        f"Its tokenizer has the hash {wanted[:12]}..., which is none of: {', '.join(others) or '(none found)'}. "
        "Tokens are shown as numbers. Name the tokenizer with --tokenizer-file, or prepare the data again."
    )
    return None


def read_counts(data: TokenFile) -> tuple[np.ndarray, np.ndarray]:
    """One pass over the tokens: (how often each id occurs, (V,); where the end-of-text ids are)."""
    counts, ends = np.zeros(data.facts["vocab_size"], np.int64), []
    for start in range(0, len(data), TOKENS_AT_ONCE):
        ids = data.tokens[start : start + TOKENS_AT_ONCE]
        counts += np.bincount(ids, minlength=len(counts))
        ends.append(np.flatnonzero(ids == data.facts["end_of_text_id"]) + start)
    return counts, np.concatenate(ends)


def documents_in(data: TokenFile, begins: np.ndarray, ends: np.ndarray) -> Iterator[list[bytes]]:
    """Yield the documents as bytes of their ids, some at a time."""
    for first in tqdm(range(0, len(ends), DOCUMENTS_AT_ONCE), desc="comparing documents", delay=2):
        a, b = begins[first : first + DOCUMENTS_AT_ONCE], ends[first : first + DOCUMENTS_AT_ONCE]
        ids = data.tokens[a[0] : b[-1]]
        yield [ids[start:end].tobytes() for start, end in zip((a - a[0]).tolist(), (b - a[0]).tolist(), strict=True)]


def show_usage(counts: np.ndarray, tokenizer: Tokenizer | None) -> None:
    token_name = functools.partial(token_text, tokenizer) if tokenizer else "id {}".format
    unused = np.flatnonzero(counts == 0)
    names = ", ".join(map(token_name, unused[:8].tolist()))
    print(f"Unused ids: {len(unused):,} of {len(counts):,}" + (f", such as {names}" if names else ""))
    print("The most common tokens:")
    for token in np.argsort(-counts, kind="stable")[:8].tolist():
        fraction = counts[token] / counts.sum()
        print(f"  {token_name(token):12} {counts[token]:>13,} {bar(fraction)} {fraction:6.1%}")
    if tokenizer:
        print("The longest tokens in use:")
        for token in sorted(np.flatnonzero(counts).tolist(), key=lambda token: -len(tokenizer.token_bytes(token)))[:5]:
            print(f"  {token_name(token):24} {plural(counts[token], 'time'):>17}")


def show_borders(data: TokenFile, ends: np.ndarray, tokenizer: Tokenizer) -> None:
    print("Around the borders of documents:")
    for border in ends[np.unique(np.linspace(0, max(len(ends) - 2, 0), 3).astype(int))].tolist():
        before = tokenizer.decode(data.tokens[max(border - 24, 0) : border])
        after = tokenizer.decode(data.tokens[border + 1 : border + 25])
        print(f"  ...{visible(before[-36:])} | {visible(after[:36])}...")


def inspect_tokens(path: Path, tokenizers: list[Path]) -> str | None:
    """Three passes over the tokens, one of them for the checksum. Returns the kind of the tokenizer that made them."""
    data = open_tokens(path)
    facts, ratio = data.facts, 1 / data.tokens_per_byte
    print(
        f"{shown_path(path)} has {facts['tokens']:,} tokens of {plural(facts['documents'], 'document')}, "
        f"{facts['utf8_bytes']:,} bytes of text: {ratio:.3f} bytes per token. Its checksum is right."
    )
    tokenizer = find_tokenizer(data, tokenizers)
    counts, ends = read_counts(data)
    if not len(ends):
        raise UserError(f"{shown_path(path)} has no end-of-text id, so nobody can tell where a document ends.")
    if len(ends) != facts["documents"] or ends[-1] != len(data) - 1:
        print(f"Warning: {len(ends):,} end-of-text ids for {plural(facts['documents'], 'document')}.")
    begins = np.append(0, ends[:-1] + 1)
    show_sizes(ends - begins, "tokens")
    seen = SeenDocuments()
    duplicates = sum(int((~seen.new(document_hashes(some))).sum()) for some in documents_in(data, begins, ends))
    print(f"Exact duplicates: {plural(duplicates, 'document')} ({duplicates / len(ends):.1%})")
    if facts.get("unknown_characters"):
        print(f"Characters that the tokenizer does not know: {facts['unknown_characters']:,}")
    show_usage(counts, tokenizer)
    if tokenizer:
        show_borders(data, ends, tokenizer)
    return facts.get("tokenizer_kind")


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="a corpus, or a token file, or a folder of them")
    parser.add_argument("--tokenizer-file", type=Path, help="the tokenizer [those of config.py, if they exist]")
    args = parser.parse_args()
    if args.tokenizer_file:
        load_tokenizer(args.tokenizer_file)  # says what is wrong with it
    tokenizers = [args.tokenizer_file] if args.tokenizer_file else [CHAR.tokenizer_file, BPE.tokenizer_file]
    own = {"tokenizer_file": args.tokenizer_file} if args.tokenizer_file else {}
    if sidecar(args.file).exists() or args.file.is_dir():
        kind = inspect_tokens(args.file, tokenizers)
        script, default = ("train.py", CHAR) if kind == "char" else ("trainv2.py", BPE)
        if args.file.resolve() != default.val_file.resolve():
            own["train_file"] = args.file
        print(f"Next: python {script}{file_flags(replace(default, **own), default, 'train_file tokenizer_file')}")
    else:
        with Unchanged(args.file):
            inspect_corpus(args.file, tokenizers)
        print(f"Next: python scripts/train_tokenizer_bpe.py{file_flags(replace(BPE, corpus=args.file), BPE, 'corpus')}")


if __name__ == "__main__":
    run_script(main)
