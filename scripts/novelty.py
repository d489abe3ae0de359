"""Memorised or invented? Find the longest passages of a text that are also in the training data, word for word.

    python generate.py --prompt "def " --tokens 2000 --quiet > data/written.py
    python scripts/novelty.py data/written.py
    python scripts/novelty.py data/written.py --corpus data/corpus_sample.txt --shortest 60

Reads   a text, and the corpus that the model was trained on
Writes  to stdout: the longest matches, where in the corpus each one is, and how much of the text they cover
Next    more data, a smaller model or fewer steps, if too much is copied

The comparison is by bytes, so tokenization does not matter. Short matches mean nothing: every program shares
"return self." with others. Every match of 32 bytes or more is found, with two exceptions: one that contains 24 equal
bytes in a row (indentation, rulers), and one that repeats very often, because for each 16 bytes only their first 256
occurrences in the text and their first 256 in the corpus are compared.

The search is seed and extend, as in BLAST (Altschul et al. 1990): look up short seeds of fixed length by their hashes,
then extend each hit in both directions for as long as the bytes agree.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

from pathlib import Path

import numpy as np
from tqdm import tqdm

from config import CHAR
from plumbing.command_line import ScriptParser, add_flags, at_least_one, parse
from plumbing.corpus import MARKER, SEPARATOR
from plumbing.errors import UsageError, UserError, run_script
from plumbing.text import byte_size, printable, shown_path, visible

SEED = 16  # bytes that are looked up at once
STRIDE = 8  # bytes between the seeds of the corpus; a match of SEED + STRIDE - 1 bytes contains a whole one
MAX_HITS = 256  # occurrences of a seed that are compared, in the text and in the corpus; tables repeat more often
CHUNK = 1 << 24  # bytes of the corpus to search at a time, a multiple of STRIDE


def main(argv: list[str] | None = None) -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="the text to look up")
    parser.add_argument("--shortest", type=int, default=40, help="shortest match to report, in bytes, from 32 [40]")
    parser.add_argument("--most", type=at_least_one, default=10, help="number of matches to report [10]")
    add_flags(parser, CHAR, "corpus debug")
    settings, args = parse(parser, CHAR, argv)
    if args.shortest < SEED + 2 * STRIDE:
        raise UsageError(f"--shortest must be at least {SEED + 2 * STRIDE}, and it is {args.shortest}.")
    for path, what in ((args.file, "text"), (settings.corpus, "corpus")):
        if not path.is_file():
            raise UserError(f"There is no {what} {shown_path(path)}. Name another one.")
        if path.stat().st_size == 0:
            raise UserError(f"{shown_path(path)} is empty: there is nothing to compare.")

    text = args.file.read_bytes()
    corpus = np.memmap(settings.corpus, dtype=np.uint8, mode="r")
    matches, covered = find_matches(text, corpus, args.shortest, args.most)
    size = byte_size(len(corpus))
    print(f"{printable(args.file.name)}, {len(text):,} bytes, against {size} of {shown_path(settings.corpus)}")
    for start, source, length in matches:
        passage = visible(text[start : start + length].decode("utf-8", errors="replace"))
        if len(passage) > 90:
            passage = passage[:60] + " ... " + passage[-25:]
        print(f"  {length:>5} bytes at {start:,}: {passage}")
        if settings.debug:
            document, line, first = locate(corpus, source)
            print(f"        document {document:,} of the corpus, line {line:,}; it begins: {visible(first[:60])}")
    if not matches:
        print(f"No passage of {args.shortest} bytes or more is in the corpus: the model did not copy this text.")
    print(f"{covered:,} of {len(text):,} bytes ({covered / len(text):.1%}) are in matches of {args.shortest} or more.")
    print("Next: compare with --shortest 100, or with a text of yours that the model never saw.")


def find_matches(text: bytes, corpus: np.ndarray, shortest: int, most: int) -> tuple[list[tuple[int, int, int]], int]:
    """The longest matches of at least `shortest` bytes, longest first, each as (start in the text, start in the corpus,
    bytes), without those of which longer ones cover half or more; and how many bytes of the text are in any match."""
    own = np.frombuffer(text, np.uint8)
    t, c = find_seeds(own, corpus)
    equal = np.ones(len(t), bool)
    for i in range(SEED):
        equal &= own[t + i] == corpus[c + i]  # otherwise only their hashes are equal
    t, c = t[equal], c[equal]
    # Seeds that follow each other in both are parts of one match: extend the first to the left, the last to the right.
    order = np.lexsort((t, c - t))
    t, c = t[order], c[order]
    new = np.append(True, (np.diff(c - t) != 0) | (np.diff(t) > SEED))[: len(t)]
    first, last = np.flatnonzero(new), np.flatnonzero(np.append(new[1:], True)[: len(t)])
    left = extend(own, corpus, t[first] - 1, c[first] - 1, -1)
    length = left + t[last] - t[first] + extend(own, corpus, t[last], c[last], 1)
    keep = np.flatnonzero(length >= shortest)
    t, c, length = (t[first] - left)[keep], (c[first] - left)[keep], length[keep]

    changes = np.zeros(len(text) + 1, np.int64)  # +1 where a match starts, -1 where one has ended
    np.add.at(changes, t, 1)
    np.add.at(changes, t + length, -1)
    covered = int((changes.cumsum() > 0).sum())
    taken, matches = np.zeros(len(text), bool), []
    for i in np.lexsort((c, t, -length)):  # longest first; of equal ones the earliest
        if len(matches) == most:
            break
        if taken[t[i] : t[i] + length[i]].mean() < 0.5:
            taken[t[i] : t[i] + length[i]] = True
            matches.append((int(t[i]), int(c[i]), int(length[i])))
    return matches, covered


def find_seeds(text: np.ndarray, corpus: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where seeds of equal hash start in the text and in the corpus, (hits,) each: the first MAX_HITS of a seed in
    both. Equal hashes can be chance, so the bytes must still be compared."""
    hashes, useful = hash_seeds(text, 1)
    starts = np.flatnonzero(useful)
    starts = starts[np.argsort(hashes[starts], kind="stable")]
    known, first, text_count = np.unique(hashes[starts], return_index=True, return_counts=True)
    text_count = np.minimum(text_count, MAX_HITS)
    met = np.zeros(len(known), np.int64)  # how often each seed has occurred in the corpus so far
    text_hits, corpus_hits = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start in tqdm(range(0, len(corpus), CHUNK), desc="searching", unit="chunk", delay=2, leave=False):
        hashes, useful = hash_seeds(np.asarray(corpus[start : start + CHUNK + SEED - 1]), STRIDE)
        seeds = np.searchsorted(known, hashes)
        found = np.flatnonzero(useful & (seeds < len(known)))
        found = found[known[seeds[found]] == hashes[found]]
        found = found[np.argsort(seeds[found], kind="stable")]
        seeds = seeds[found]  # sorted
        nth = met[seeds] + np.arange(len(seeds)) - np.searchsorted(seeds, seeds)  # occurrence of the seed, from 0
        met += np.bincount(seeds, minlength=len(met))
        found, seeds = found[nth < MAX_HITS], seeds[nth < MAX_HITS]
        count = text_count[seeds]
        nth = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)  # occurrence in the text, from 0
        text_hits.append(starts[np.repeat(first[seeds], count) + nth])
        corpus_hits.append(start + STRIDE * np.repeat(found, count))
    return np.concatenate(text_hits), np.concatenate(corpus_hits)


def hash_seeds(data: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """A hash of each seed of `data` (bytes) that starts at a multiple of `stride`, and whether to look it up: a single
    byte repeated occurs everywhere."""
    n = max(0, len(data) - SEED + 1)
    windows = np.lib.stride_tricks.sliding_window_view(data, SEED)[:n:stride] if n else data[:0].reshape(0, SEED)
    halves = np.ascontiguousarray(windows).view("<u8")  # (seeds, 2)
    with np.errstate(over="ignore"):
        hashes = halves[:, 0] * np.uint64(0x9E3779B97F4A7C15) + halves[:, 1] * np.uint64(0xC2B2AE3D27D4EB4F)
    repeated = (halves[:, 0] == halves[:, 1]) & (halves[:, 0] == windows[:, 0] * np.uint64(0x0101010101010101))
    return hashes, ~repeated


def extend(text: np.ndarray, corpus: np.ndarray, t: np.ndarray, c: np.ndarray, direction: int) -> np.ndarray:
    """How many bytes agree from t in the text and c in the corpus (hits,) on, in a direction (1 or -1)."""
    length, active = np.zeros(len(t), np.int64), np.arange(len(t))
    while len(active):
        a, b = t[active] + direction * length[active], c[active] + direction * length[active]
        inside = (a >= 0) & (a < len(text)) & (b >= 0) & (b < len(corpus))
        active, a, b = active[inside], a[inside], b[inside]
        active = active[text[a] == corpus[b]]
        length[active] += 1
    return length


def locate(corpus: np.ndarray, position: int) -> tuple[int, int, str]:
    """Where a position of the corpus is: the number of its document and its line in it, from 1, and the first line of
    that document with a letter or digit."""
    document, begin = 1, 0
    for start in range(0, position, CHUNK):
        # The overlap finds a separator that a chunk border cuts; one that ends after the position does not count.
        chunk = corpus[start : min(start + CHUNK + len(SEPARATOR) - 1, position)].tobytes()
        if count := chunk.count(SEPARATOR):
            document, begin = document + count, start + chunk.rfind(SEPARATOR) + len(SEPARATOR)
    line = 1 + int((corpus[begin:position] == ord("\n")).sum())
    head = corpus[begin : begin + 2000].tobytes().split(MARKER)[0].decode("utf-8", errors="replace")
    first = next((text.strip() for text in head.split("\n") if any(map(str.isalnum, text))), "")
    return document, line, first


if __name__ == "__main__":
    run_script(main)
