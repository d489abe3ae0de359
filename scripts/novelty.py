"""Memorised or invented? Find the longest stretches of a text that stand word for word in the training data.

    python generate.py --prompt "def " --tokens 2000 --quiet > data/written.py
    python scripts/novelty.py data/written.py
    python scripts/novelty.py data/written.py --corpus data/corpus_sample.txt --shortest 60

Reads   a text, and the corpus that the model learned from
Writes  to stdout: the longest stretches, where each stands, and how much of the text they make up
Next    more data, a smaller model or fewer steps, where too much is copied

Compared are bytes, so it does not matter how the text was cut into tokens. Short stretches say nothing: every program
shares "return self." with others. A stretch of 32 bytes and more is sure to be found, unless 24 bytes of it in a row
are equal (indentation, rulers), or it is such as stands often: of the same 16 bytes, the first 256 places in the text
and the first 256 in the corpus are looked at.
"""

import argparse
from pathlib import Path

import _root

from config import CHAR, Settings
from plumbing.command_line import add_flags, parse_before_torch
from plumbing.errors import UsageError, UserError, run_script
from plumbing.text import shown_path


def command_line(argv: list[str] | None = None):
    """Returns (settings, arguments)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="the text to look up")
    parser.add_argument("--shortest", type=int, default=40, help="shortest stretch to report, in bytes, from 32 [40]")
    parser.add_argument("--most", type=int, default=10, help="stretches to report [10]")
    add_flags(parser, CHAR, "corpus debug")
    return parse_before_torch(parser, CHAR, argv)


if __name__ == "__main__":
    settings, args = command_line()

import numpy as np
from tqdm import tqdm

from plumbing.corpus import MARKER, SEPARATOR
from plumbing.text import visible

SEED = 16  # bytes that are looked up at once
STRIDE = 8  # every so many bytes of the corpus: a stretch of SEED + STRIDE - 1 bytes holds a whole seed
PLACES = 256  # of a seed are looked at in the text, as many in the corpus: what repeats itself, as tables do, has more
CHUNK = 1 << 24  # bytes of the corpus at a time, a multiple of STRIDE


def hashes(data: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """A number for each seed of `data` (bytes) that begins at a multiple of `stride`, and whether it is worth looking
    up: one that is a single byte repeated stands everywhere."""
    n = max(0, len(data) - SEED + 1)
    windows = np.lib.stride_tricks.sliding_window_view(data, SEED)[:n:stride] if n else data[:0].reshape(0, SEED)
    halves = np.ascontiguousarray(windows).view("<u8")  # (seeds, 2)
    with np.errstate(over="ignore"):
        numbers = halves[:, 0] * np.uint64(0x9E3779B97F4A7C15) + halves[:, 1] * np.uint64(0xC2B2AE3D27D4EB4F)
    repeated = (halves[:, 0] == halves[:, 1]) & (halves[:, 0] == windows[:, 0] * np.uint64(0x0101010101010101))
    return numbers, ~repeated


def find_seeds(text: np.ndarray, corpus: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places (in the text, in the corpus) at which the same seed may stand, (hits,) each: hashes can agree by chance,
    which comparing the bytes will show. Of each seed, the first PLACES of both are taken."""
    numbers, useful = hashes(text, 1)
    places = np.flatnonzero(useful)
    places = places[np.argsort(numbers[places], kind="stable")]
    known, first, in_text_count = np.unique(numbers[places], return_index=True, return_counts=True)
    in_text_count = np.minimum(in_text_count, PLACES)
    met = np.zeros(len(known), np.int64)  # how often each seed stood in the corpus so far
    in_text, in_corpus = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start in tqdm(range(0, len(corpus), CHUNK), desc="searching", unit="chunk", delay=2, leave=False):
        numbers, useful = hashes(np.asarray(corpus[start : start + CHUNK + SEED - 1]), STRIDE)
        seeds = np.searchsorted(known, numbers)
        found = np.flatnonzero(useful & (seeds < len(known)))
        found = found[known[seeds[found]] == numbers[found]]
        found = found[np.argsort(seeds[found], kind="stable")]
        seeds = seeds[found]  # sorted
        nth = met[seeds] + np.arange(len(seeds)) - np.searchsorted(seeds, seeds)  # time that this seed is met
        met += np.bincount(seeds, minlength=len(met))
        found, seeds = found[nth < PLACES], seeds[nth < PLACES]
        count = in_text_count[seeds]
        nth = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)  # place of this seed in the text
        in_text.append(places[np.repeat(first[seeds], count) + nth])
        in_corpus.append(start + STRIDE * np.repeat(found, count))
    return np.concatenate(in_text), np.concatenate(in_corpus)


def extend(text: np.ndarray, corpus: np.ndarray, t: np.ndarray, c: np.ndarray, direction: int) -> np.ndarray:
    """How many bytes agree from the places t of the text and c of the corpus on, in a direction (1 or -1)."""
    length = np.zeros(len(t), np.int64)
    going = np.arange(len(t))
    while len(going):
        a, b = t[going] + direction * length[going], c[going] + direction * length[going]
        inside = (a >= 0) & (a < len(text)) & (b >= 0) & (b < len(corpus))
        going, a, b = going[inside], a[inside], b[inside]
        going = going[text[a] == corpus[b]]
        length[going] += 1
    return length


def stretches(text: bytes, corpus: np.ndarray, shortest: int, most: int) -> tuple[list[tuple[int, int, int]], int]:
    """The longest stretches of both, as (place in the text, place in the corpus, bytes), longest first, none of which
    lies by half or more in longer ones; and how many bytes of the text are in a stretch of at least `shortest`."""
    own = np.frombuffer(text, np.uint8)
    t, c = find_seeds(own, corpus)
    equal = np.ones(len(t), bool)
    for i in range(SEED):
        equal &= own[t + i] == corpus[c + i]  # else their hashes agree by chance
    t, c = t[equal], c[equal]
    # Seeds that follow each other in both lie in one stretch, which reaches from the first of them to the last.
    order = np.lexsort((t, c - t))
    t, c = t[order], c[order]
    new = np.append(True, (np.diff(c - t) != 0) | (np.diff(t) > SEED))[: len(t)]
    first, last = np.flatnonzero(new), np.flatnonzero(np.append(new[1:], True)[: len(t)])
    left, right = extend(own, corpus, t[first] - 1, c[first] - 1, -1), extend(own, corpus, t[last], c[last], 1)
    length = left + t[last] - t[first] + right
    keep = np.flatnonzero(length >= shortest)
    t, c, length = (t[first] - left)[keep], (c[first] - left)[keep], length[keep]
    covered = np.zeros(len(text) + 1, np.int64)
    np.add.at(covered, t, 1)
    np.add.at(covered, t + length, -1)
    taken, chosen = np.zeros(len(text), bool), []
    for i in np.lexsort((c, t, -length)):  # of equally long ones the first
        if len(chosen) == most:
            break
        if taken[t[i] : t[i] + length[i]].mean() < 0.5:
            taken[t[i] : t[i] + length[i]] = True
            chosen.append((int(t[i]), int(c[i]), int(length[i])))
    return chosen, int((covered.cumsum() > 0).sum())


def locate(corpus: np.ndarray, place: int) -> tuple[int, int, str]:
    """Where a place of the corpus is: the number of its document and its line in it, from 1, and the first line of that
    document that says something."""
    document, begin = 1, 0
    for start in range(0, place, CHUNK):
        # A separator that ends behind the place does not count, one that a border of chunks cuts does.
        part = corpus[start : min(start + CHUNK + len(SEPARATOR) - 1, place)].tobytes()
        if count := part.count(SEPARATOR):
            document, begin = document + count, start + part.rfind(SEPARATOR) + len(SEPARATOR)
    line = 1 + int((corpus[begin:place] == ord("\n")).sum())
    head = corpus[begin : begin + 2000].tobytes().split(MARKER)[0].decode("utf-8", errors="replace")
    first = next((text.strip() for text in head.split("\n") if any(map(str.isalnum, text))), "")
    return document, line, first


def main(settings: Settings, args) -> None:
    if args.shortest < SEED + 2 * STRIDE:
        raise UsageError(f"--shortest must be at least {SEED + 2 * STRIDE}, and it is {args.shortest}.")
    if args.most < 1:
        raise UsageError(f"--most must be at least 1, and it is {args.most}.")
    for path, what in ((args.file, "text"), (settings.corpus, "corpus")):
        if not path.is_file():
            raise UserError(f"There is no {what} {shown_path(path)}. Name another one.")
        if path.stat().st_size == 0:
            raise UserError(f"{shown_path(path)} is empty: there is nothing to compare.")
    text = args.file.read_bytes()
    corpus = np.memmap(settings.corpus, dtype=np.uint8, mode="r")
    found, covered = stretches(text, corpus, args.shortest, args.most)

    print(
        f"{args.file.name}, {len(text):,} bytes, against {len(corpus) / 1e6:,.1f} MB of {shown_path(settings.corpus)}"
    )
    for place, source, length in found:
        document, line, first = locate(corpus, source)
        shown = visible(text[place : place + length].decode("utf-8", errors="replace"))
        print(f"  {length:>5} bytes at {place:,}: {shown if len(shown) <= 90 else shown[:60] + ' ... ' + shown[-25:]}")
        if settings.debug:
            print(f"        document {document:,} of the corpus, line {line:,}; it begins: {visible(first[:60])}")
    if not found:
        print(f"No stretch of {args.shortest} bytes or more stands in the corpus: invented, as far as words go.")
    print(
        f"{covered:,} of {len(text):,} bytes ({covered / len(text):.1%}) are in stretches of {args.shortest} and more."
    )
    print("Next: the same with --shortest 100, say, or for a text of yours that the model never saw, to compare.")


if __name__ == "__main__":
    run_script(lambda: main(settings, args))
