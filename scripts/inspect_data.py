"""A data doctor: what is in a corpus or a token file, and is anything wrong with it?

    python scripts/inspect_data.py data/corpus.txt
    python scripts/inspect_data.py data/train_bpe.bin

Reads   a text file, or a token file with its description, or a folder of them (and the tokenizer that made them, to
        show tokens as text)
Writes  nothing: how large documents are, what stands twice, white space, long lines; for tokens, bytes a token, ids
        that are never used, the longest and the commonest tokens, and what stands around the borders of documents
Next    for a corpus: python scripts/train_tokenizer_bpe.py; for tokens: python trainv2.py
"""

import argparse
import array
import heapq
import itertools
from dataclasses import replace
from pathlib import Path

import _root
import numpy as np
from tqdm import tqdm

from config import BPE, CHAR
from dataset import TokenFile, open_tokens, sidecar
from model.tokenization.tokenizer import Tokenizer, load_tokenizer
from plumbing.command_line import file_flags
from plumbing.corpus import NO_TEXT, SeenDocuments, document_hashes, read_document_bytes
from plumbing.errors import UserError, run_script
from plumbing.text import bar, readable, shown_path, visible

WHITE = b" \t\n\r\v\f"
SAMPLE_DOCUMENTS = 200  # encoded to tell the bytes a token of a corpus
AT_ONCE = 1 << 22  # tokens looked at at once


def show_sizes(sizes: np.ndarray, unit: str) -> None:
    """Print how the documents' sizes are spread: a few of them in order, and how many lie between powers of two."""
    ordered = np.sort(sizes)
    named = {"smallest": 0, "a tenth below": 0.1, "half below": 0.5, "a tenth above": 0.9, "largest": 1}
    places = [f"{name} {ordered[round(q * (len(ordered) - 1))]:,}" for name, q in named.items()]
    print(f"Sizes of documents, in {unit}: {', '.join(places)}; mean {sizes.mean():,.0f}")
    powers = np.frexp(np.maximum(sizes, 1))[1] - 1  # 2**power <= size
    counts = np.bincount(powers)
    for power in range(int(powers.min()), len(counts)):
        share = counts[power] / len(sizes)
        print(f"  from {2**power:>13,} {bar(share / (counts.max() / len(sizes)))} {counts[power]:>11,} {share:6.1%}")


# === a corpus =========================================================================================================


def inspect_corpus(path: Path, tokenizers: list[Path]) -> None:
    """One pass over the documents; memory: about 50 bytes a document, and the longest one a few times over."""
    sizes, seen = array.array("q"), SeenDocuments()
    duplicates = duplicate_bytes = white = lines = carriage_returns = zeros = 0
    longest: list[tuple[int, int, bytes]] = []  # (bytes, document, beginning) of the longest line of some documents
    documents = read_document_bytes(path)
    with tqdm(total=path.stat().st_size if path.exists() else 0, unit="B", unit_scale=True, delay=2) as progress:
        while some := list(itertools.islice(documents, 256)):
            fresh = seen.new(document_hashes(some))
            duplicates += int((~fresh).sum())
            for document, new in zip(some, fresh.tolist(), strict=True):
                duplicate_bytes += 0 if new else len(document)
                white += len(document) - len(document.translate(None, WHITE))
                lines += document.count(b"\n") + (not document.endswith(b"\n"))
                carriage_returns += document.count(b"\r")
                zeros += document.count(b"\0")
                line = max(document.split(b"\n"), key=len)
                entry = (len(line), len(sizes), line[:60])
                (heapq.heappush if len(longest) < 3 else heapq.heappushpop)(longest, entry)
                sizes.append(len(document))
                progress.update(len(document))
    if not sizes:
        raise UserError(f"{shown_path(path)} holds no document.")
    sizes = np.frombuffer(sizes, np.int64)
    total = int(sizes.sum())
    if zeros * 4 > total:
        raise UserError(f"{shown_path(path)} is no text. {NO_TEXT}")
    print(f"{shown_path(path)} is a corpus: {len(sizes):,} documents, {total:,} bytes of text in {lines:,} lines")
    show_sizes(sizes, "bytes")
    share = duplicate_bytes / total
    print(f"Exact duplicates: {duplicates:,} documents ({duplicates / len(sizes):.1%}), {share:.1%} of the text")
    print(f"White space: {white / total:.1%} of the bytes; lines have {total / lines:.1f} bytes on average")
    if carriage_returns or zeros:
        print(f"Characters that code seldom holds: {carriage_returns:,} carriage returns, {zeros:,} NUL")
    print("The longest lines:")
    for length, number, beginning in sorted(longest, reverse=True):
        print(f"  {length:,} bytes in document {number + 1:,}: {visible(beginning.decode(errors='ignore'))}")
    for file in filter(Path.exists, tokenizers):
        tokenizer = load_tokenizer(file)
        texts = list(itertools.islice(read_document_bytes(path), SAMPLE_DOCUMENTS))
        tokens = sum(len(tokenizer.encode(text.decode())) for text in texts if len(text) < 1 << 20)
        if tokens:
            share = sum(len(text) for text in texts if len(text) < 1 << 20) / tokens
            print(f"{shown_path(file)}: {share:.3f} bytes a token, in the first {len(texts)} documents")
    if duplicates:
        print("Leave duplicates out with: python scripts/extract_parquets_to_text.py --deduplicate")


# === a token file =====================================================================================================


def fitting_tokenizer(data: TokenFile, files: list[Path]) -> Tokenizer | None:
    """The tokenizer that made a token file, if it is among these; says so either way."""
    wanted, others = data.facts["tokenizer_sha256"], []
    for file in filter(Path.exists, files):
        tokenizer = load_tokenizer(file)
        if tokenizer.sha256 == wanted:
            print(f"Its tokenizer is {shown_path(file)}: the hash fits.")
            return tokenizer
        others.append(shown_path(file))
    print(
        f"Its tokenizer has the hash {wanted[:12]}..., which is none of: {', '.join(others) or '(none is there)'}. "
        "Tokens are shown as numbers. Name it with --tokenizer-file, or prepare the data again."
    )
    return None


def inspect_tokens(path: Path, tokenizers: list[Path]) -> str | None:
    """Two passes over the tokens, after that for the checksum; memory as above. Returns the kind of the tokenizer that
    made them."""
    data = open_tokens(path)  # compares the checksum
    facts, end = data.facts, data.facts["end_of_text_id"]
    print(
        f"{shown_path(path)} holds {facts['tokens']:,} tokens of {facts['documents']:,} documents, "
        f"{facts['utf8_bytes']:,} bytes of text: {1 / data.tokens_per_byte:.3f} bytes a token. Its checksum is right."
    )
    tokenizer = fitting_tokenizer(data, tokenizers)
    counts, ends = np.zeros(facts["vocab_size"], np.int64), []
    for start in range(0, len(data), AT_ONCE):
        ids = data.tokens[start : start + AT_ONCE]
        counts += np.bincount(ids, minlength=len(counts))
        ends.append(np.flatnonzero(ids == end) + start)
    ends = np.concatenate(ends)
    if len(ends) != facts["documents"] or not len(ends) or ends[-1] != len(data) - 1:
        print(f"Warning: {len(ends):,} end-of-text ids for {facts['documents']:,} documents.")
    begins = np.append(0, ends[:-1] + 1)
    show_sizes(ends - begins, "tokens")
    seen, duplicates = SeenDocuments(), 0
    for first in tqdm(range(0, len(ends), 256), desc="comparing documents", delay=2):
        a, b = begins[first : first + 256], ends[first : first + 256]
        some = data.tokens[a[0] : b[-1]]
        spans = zip((a - a[0]).tolist(), (b - a[0]).tolist(), strict=True)
        duplicates += int((~seen.new(document_hashes(some[start:end].tobytes() for start, end in spans))).sum())
    print(f"Exact duplicates: {duplicates:,} documents ({duplicates / len(ends):.1%})")
    if facts.get("unknown_characters"):
        print(f"Characters that the tokenizer does not know: {facts['unknown_characters']:,}")

    def shown(token: int) -> str:
        return readable(tokenizer.token_bytes(token)) if tokenizer else f"id {token}"

    unused = np.flatnonzero(counts == 0)
    some = ", ".join(shown(token) for token in unused[:8].tolist())
    print(f"Ids never used: {len(unused):,} of {len(counts):,}" + (f", such as {some}" if some else ""))
    print("The commonest tokens:")
    for token in np.argsort(-counts, kind="stable")[:8].tolist():
        share = counts[token] / len(data)
        print(f"  {shown(token):12} {counts[token]:>13,} {bar(share)} {share:6.1%}")
    if not tokenizer:
        return facts.get("tokenizer_kind")
    used = np.flatnonzero(counts).tolist()
    print("The longest tokens in use:")
    for token in sorted(used, key=lambda token: -len(tokenizer.token_bytes(token)))[:5]:
        print(f"  {shown(token):24} {counts[token]:>11,} times")
    print("Around the borders of documents:")
    for border in ends[np.linspace(0, max(len(ends) - 2, 0), 3).astype(int)].tolist():
        before, after = (
            tokenizer.decode(data.tokens[max(a, 0) : b]) for a, b in ((border - 24, border), (border + 1, border + 25))
        )
        print(f"  ...{visible(before[-36:])} | {visible(after[:36])}...")
    return facts.get("tokenizer_kind")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="a corpus, or a token file, or a folder of them")
    parser.add_argument("--tokenizer-file", type=Path, help="the tokenizer [the two of config.py, if they are there]")
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
        inspect_corpus(args.file, tokenizers)
        print(f"Next: python scripts/train_tokenizer_bpe.py{file_flags(replace(BPE, corpus=args.file), BPE, 'corpus')}")


if __name__ == "__main__":
    run_script(main)
