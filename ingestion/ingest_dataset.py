"""Steps 1 and 2 for texts that lie elsewhere: JSON lines, text, CSV and parquet files, and folders of datasets.

    python ingestion/ingest_dataset.py stories.jsonl --column text
    python ingestion/ingest_dataset.py folder/of/files notes.txt --corpus data/mine.txt

Reads   files ending in .jsonl, .json, .csv, .parquet or .arrow (a row is a document, its text in one column), also
        packed (.gz, .xz, .zst); in .txt or .md (a file is a document); all such files below a folder; what
        save_to_disk() of `datasets` has written
Writes  data/corpus.txt: UTF-8, the documents separated by a line <|endoftext|>
Next    python scripts/sample_corpus_subset.py --megabytes 20

The library `datasets` reads them, row by row; nothing is downloaded, and nothing that stands in a file is run.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import _root
from tqdm import tqdm

from config import CHAR
from plumbing.command_line import add_flags, file_flags, parse, refuse_same
from plumbing.corpus import decode_text, write_documents
from plumbing.errors import UserError, run_script
from plumbing.text import shown_path, visible

READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow"}  # of `datasets`
TEXTS = {".txt", ".md"}
PACKED = {".gz", ".xz", ".zst"}
SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk() leaves in a folder, of several splits or of one
USUAL_COLUMNS = ("content", "text")


def kind_of(path: Path) -> str:
    """The ending that says what a file holds: "a.jsonl.gz" gives ".jsonl"."""
    return path.with_suffix("").suffix if path.suffix in PACKED else path.suffix


def find_inputs(places: list[Path]) -> list[Path]:
    """The files to read, and folders that save_to_disk() has written, in sorted order. Raises UserError for none."""
    found = []
    for place in places:
        if not place.exists():
            raise UserError(f"There is no {shown_path(place)}.")
        if place.is_file() or any((place / name).is_file() for name in SAVED):
            found.append(place)
        else:
            files = [path for path in sorted(place.rglob("*")) if path.is_file()]
            found += [path for path in files if path.suffix in TEXTS or kind_of(path) in READERS]
    if not found:
        raise UserError(f"No file in {' or '.join(map(shown_path, places))} ends in {', '.join([*READERS, *TEXTS])}.")
    return found


def read_rows(path: Path) -> Iterator[dict]:
    """Yield the rows of a file, or of a folder that save_to_disk() has written."""
    import datasets  # takes a second to import

    if path.is_dir():
        saved = datasets.load_from_disk(str(path))
        for part in saved.values() if isinstance(saved, dict) else [saved]:
            yield from part
    else:
        yield from datasets.load_dataset(READERS[kind_of(path)], data_files=str(path), split="train", streaming=True)


def read_texts(path: Path, column: str | None, counts: Counter) -> Iterator[str]:
    """Yield the texts of an input. Raises UserError where it cannot be read or the column is not there or no text."""
    if path.is_file() and path.suffix in TEXTS:
        if text := decode_text(path.read_bytes(), path).removeprefix("\ufeff"):  # a byte order mark
            yield text
        else:
            counts["empty files"] += 1
        return
    if path.is_file() and path.suffix in PACKED and kind_of(path) in TEXTS:
        raise UserError(f"Unpack {shown_path(path)} first: only {', '.join(READERS)} can be read packed.")
    if path.is_file() and kind_of(path) not in READERS:
        raise UserError(f"{shown_path(path)} ends in none of {', '.join([*READERS, *TEXTS])}.")
    try:
        for row in read_rows(path):
            name = column or next((name for name in USUAL_COLUMNS if name in row), None)
            if name is None or name not in row:
                raise UserError(
                    f"{shown_path(path)} has no column {name or ' or '.join(USUAL_COLUMNS)}. It has: "
                    f"{', '.join(map(str, row))[:300]}. Name the one that holds the text with --column."
                )
            text = row[name]
            if text is not None and not isinstance(text, str):
                raise UserError(f"The column {name} of {shown_path(path)} holds {type(text).__name__}, not text.")
            if text:
                yield text
            else:
                counts["empty rows"] += 1
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:  # the library raises those of every format that it reads
        if isinstance(error.__cause__, StopIteration):  # of a file of JSON without any
            counts["empty files"] += 1
            return
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{shown_path(path)} cannot be read: {reason}") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", type=Path, metavar="PATH", help="files, or folders of them")
    parser.add_argument("--column", help="the column that holds the text [content, else text]")
    add_flags(parser, CHAR, "corpus debug")
    settings, args = parse(parser, CHAR)

    paths = find_inputs(args.inputs)
    refuse_same({"--corpus": settings.corpus}, *paths)
    counts: Counter[str] = Counter()
    start = time.perf_counter()

    def documents() -> Iterator[str]:
        for path in tqdm(paths, unit=" files", delay=2):
            for text in read_texts(path, args.column, counts):
                if settings.debug and counts["documents"] < 3:
                    print(f"  {path.name}: a document of {len(text):,} characters begins: {visible(text[:50])}")
                counts["documents"] += 1
                yield text.replace("\r\n", "\n").replace("\r", "\n")

    written, size = write_documents(settings.corpus, documents())
    for reason in ("empty rows", "empty files"):
        if counts[reason]:
            print(f"  {reason}: {counts[reason]:,}")
    rate = size / 1e6 / (time.perf_counter() - start)
    print(f"{written:,} documents, {size / 1e6:.1f} MB, in {shown_path(settings.corpus)} ({rate:.0f} MB/s)")
    print(f"Next: python scripts/sample_corpus_subset.py --megabytes 20{file_flags(settings, CHAR, 'corpus')}")


if __name__ == "__main__":
    run_script(main)
