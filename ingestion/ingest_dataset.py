"""Step 1, for text that you have in another format: JSON lines, text, CSV, Parquet, Arrow, or folders of these.

    python ingestion/ingest_dataset.py stories.jsonl --column text
    python ingestion/ingest_dataset.py folder/of/files notes.txt --output data/parquet/mine.parquet

Reads   files ending in .jsonl, .json, .csv, .parquet or .arrow (a document per row, in one column), also packed (.gz,
        .xz, .zst); in .txt or .md (a document per file, or several with a line <|endoftext|> between them); all such
        files below a folder; what save_to_disk() of `datasets` wrote
Writes  data/parquet/dataset.parquet: one row per document, with the columns content and path
Next    python scripts/extract_parquets_to_text.py

The library `datasets` reads the rows one by one. It downloads nothing and runs nothing that a file contains.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import _root
from tqdm import tqdm

from config import CHAR
from plumbing.command_line import add_flags, refuse_same
from plumbing.corpus import decode_text, split_at_marker
from plumbing.errors import UserError, run_script
from plumbing.text import shown_path, visible

READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow"}  # of `datasets`
TEXTS = {".txt", ".md"}
PACKED = {".gz", ".xz", ".zst"}
SAVED = ("dataset_dict.json", "state.json")  # save_to_disk() writes one of these: for several splits, for a single one
USUAL_COLUMNS = ("content", "text")


def inner_suffix(path: Path) -> str:
    """The ending that tells a file's format: "a.jsonl.gz" gives ".jsonl"."""
    return path.with_suffix("").suffix if path.suffix in PACKED else path.suffix


def find_readable(given: list[Path]) -> list[Path]:
    """The files to read, and folders that save_to_disk() wrote, in sorted order. Raises UserError if there are none."""
    found = []
    for path in given:
        if not path.exists():
            raise UserError(f"There is no {shown_path(path)}.")
        if path.is_file() or any((path / name).is_file() for name in SAVED):
            found.append(path)
        else:
            files = [file for file in sorted(path.rglob("*")) if file.is_file()]
            found += [file for file in files if file.suffix in TEXTS or inner_suffix(file) in READERS]
    if not found:
        raise UserError(f"No file in {' or '.join(map(shown_path, given))} ends in {', '.join([*READERS, *TEXTS])}.")
    return found


def read_texts(path: Path, column: str | None) -> Iterator[str | None]:
    """Yield the texts of an input, and None or "" for its empty rows. Raises UserError for one that cannot be read."""
    if path.is_dir() or inner_suffix(path) in READERS:
        for row in read_rows(path):
            yield row_text(row, column, path)
    elif path.suffix in TEXTS:
        text = decode_text(path.read_bytes(), path).removeprefix("\ufeff")  # a byte order mark
        documents = split_at_marker(text.replace("\r\n", "\n").replace("\r", "\n").encode())
        yield from (document.decode() for document in documents if document)
    elif inner_suffix(path) in TEXTS:
        raise UserError(f"Unpack {shown_path(path)} first: only {', '.join(READERS)} can be read packed.")
    else:
        raise UserError(f"{shown_path(path)} ends in none of {', '.join([*READERS, *TEXTS])}.")


def read_rows(path: Path) -> Iterator[dict]:
    """Yield the rows of a file, or of a folder that save_to_disk() wrote."""
    import datasets  # takes a second to import

    try:
        if path.is_dir():
            saved = datasets.load_from_disk(str(path))
            for split in saved.values() if isinstance(saved, dict) else [saved]:
                yield from split
        else:
            reader = READERS[inner_suffix(path)]
            yield from datasets.load_dataset(reader, data_files=str(path), split="train", streaming=True)
    except StopIteration:  # an empty JSON file
        return
    except Exception as error:  # the library raises those of every format that it reads
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{shown_path(path)} cannot be read: {reason}") from None


def row_text(row: dict, column: str | None, path: Path) -> str | None:
    """The text of a row. Raises UserError if the column is missing or holds something else."""
    name = column or next((name for name in USUAL_COLUMNS if name in row), None)
    if name is None or name not in row:
        raise UserError(
            f"{shown_path(path)} has no column {name or ' or '.join(USUAL_COLUMNS)}. It has: "
            f"{', '.join(map(str, row))[:300]}. Name the one that holds the text with --column."
        )
    text = row[name]
    if text is not None and not isinstance(text, str):
        raise UserError(f"The column {name} of {shown_path(path)} holds {type(text).__name__}, not text.")
    return text


def read_inputs(paths: list[Path], args: argparse.Namespace, counts: Counter) -> Iterator[tuple[str, Path]]:
    """Yield (text, its file) for each document of the inputs. Counts what is empty."""
    for path in tqdm(paths, unit=" files", delay=2):
        rows = 0
        for text in read_texts(path, args.column):
            rows += 1
            if not text:
                counts["empty rows"] += 1
                continue
            counts["documents"] += 1
            if args.debug and counts["documents"] <= 3:
                print(f"  {path.name}: a document of {len(text):,} characters begins: {visible(text[:50])}")
            yield text, path
        counts["empty files"] += not rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", type=Path, metavar="PATH", help="files, or folders of them")
    parser.add_argument("--column", help="the column that holds the text [content, else text]")
    parser.add_argument("--output", type=Path, default=CHAR.parquet_dir / "dataset.parquet", help="file to write")
    add_flags(parser, CHAR, "debug")
    args = parser.parse_args()

    from plumbing.parquet import show_extraction, write_parquet

    paths = find_readable(args.inputs)
    refuse_same({"--output": args.output}, *paths)
    counts: Counter[str] = Counter()
    start = time.perf_counter()
    written, size = write_parquet(args.output, read_inputs(paths, args, counts))
    for reason in ("empty rows", "empty files"):
        if counts[reason]:
            print(f"  {reason}: {counts[reason]:,}")
    rate = size / 1e6 / (time.perf_counter() - start)
    print(f"{written:,} documents, {size / 1e6:.1f} MB of text, in {shown_path(args.output)} ({rate:.0f} MB/s)")
    show_extraction(args.output, CHAR.parquet_dir)


if __name__ == "__main__":
    run_script(main)
