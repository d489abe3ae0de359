"""Step 1, for text that you have in another format: JSON lines, text, CSV, Parquet, Arrow, or folders of these.

    python ingestion/ingest_dataset.py stories.jsonl --column text
    python ingestion/ingest_dataset.py folder/of/files notes.txt --output data/parquet/mine.parquet

Reads   files ending in .jsonl, .ndjson, .json, .csv, .tsv, .parquet or .arrow (a document per row, in one column); in
        .txt or .md (a document per file, or several with a line <|endoftext|> between them); all of them also packed
        (.gz, .xz, .zst); all such files below a folder, also below one that save_to_disk() of `datasets` wrote
Writes  data/parquet/dataset.parquet: one row per document, with the columns content and path
Next    python scripts/extract_parquets_to_text.py

Only the one column is read, as the text that it is: no type is guessed, and other columns may hold anything. Whatever
is not read is counted and named.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

import argparse
import csv
import functools
import gzip
import io
import json
import lzma
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from config import CHAR
from plumbing.command_line import ScriptParser, add_flags, refuse_same
from plumbing.corpus import NO_TEXT, split_at_marker
from plumbing.errors import UserError, run_script
from plumbing.inputs import LeftOut, Unchanged, find_files
from plumbing.text import byte_rate, byte_size, plural, printable, shown_path, visible

USUAL_COLUMNS = ("content", "text")
ROWS = 256  # of a Parquet file, read at once
MAX_FIELD_BYTES = 2**31 - 1  # of a CSV, as in Parquet
SPACE = re.compile(r"\s*")
DESCRIPTIONS = ("dataset_info.json", "state.json")  # save_to_disk() writes both beside its Arrow files,
SPLITS = "dataset_dict.json"  # and this one above the folders of several splits


# --- which files ------------------------------------------------------------------------------------------------------


def inner_suffix(path: Path) -> str:
    """The ending that tells a file's format: "a.JSONL.gz" gives ".jsonl"."""
    return Path(path.stem if path.suffix.lower() in PACKED else path.name).suffix.lower()


@functools.cache
def saved_files(folder: Path) -> set[str] | None:
    """The names of the Arrow files that save_to_disk() wrote to a folder; None if it is another folder."""
    if not all(os.path.isfile(folder / name) for name in DESCRIPTIONS):
        return None
    try:
        state = json.loads((folder / "state.json").read_text("utf-8"))
        return {file["filename"] for file in state["_data_files"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{shown_path(folder / 'state.json')} is damaged ({error!r}).") from None


def why_not_readable(path: Path) -> str:
    """For find_files(): why a file or folder below a folder is left out."""
    if os.path.isdir(path):
        return "hidden" if path.name.startswith("_") else ""
    saved = saved_files(path.parent)
    if path.name == SPLITS or (saved is not None and path.name in DESCRIPTIONS):
        return "describes a saved dataset"
    if saved is not None and path.name not in saved:
        return "not part of the saved dataset beside it"
    return "" if inner_suffix(path) in READERS else "of another format"


def find_readable(given: list[Path], left_out: LeftOut) -> list[Path]:
    """The files to read, each once. Raises UserError if there are none."""
    found = list(find_files(given, why_not_readable, left_out))
    if not found:
        reasons = left_out.sentences()
        raise UserError(f"No file in {' or '.join(map(shown_path, given))} ends in {', '.join(READERS)}.{reasons}")
    return found


# --- reading one ------------------------------------------------------------------------------------------------------


def pick_column(names: list[str], column: str | None) -> str:
    """The column with the text. Raises UserError if it is missing, or there more than once."""
    wanted = [column] if column else USUAL_COLUMNS
    for name in wanted:
        if names.count(name) == 1:
            return name
    number = "several columns" if any(name in names for name in wanted) else "no column"
    raise UserError(
        f"has {number} {' or '.join(wanted)}. It has: {', '.join(map(visible, names))[:300]}. "
        "Name the one that holds the text with --column."
    )


def json_values(file: BinaryIO) -> Iterator:
    """Yield the values of a file that has one per line, or of one whose values are longer than a line."""
    # A number beside the text must not stop the reading because it has more digits than Python converts.
    decoder = json.JSONDecoder(parse_int=lambda digits: int(digits[:9]))
    lines, first = io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n"), True
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        try:
            yield decoder.decode(line)
        except json.JSONDecodeError as error:
            if not first:
                raise ValueError(f"line {number:,}: {error.msg}") from None
            text, at = (line + lines.read()).strip(), 0
            while at < len(text):
                value, at = decoder.raw_decode(text, SPACE.match(text, at).end())
                yield value
        first = False


def json_texts(file: BinaryIO, column: str | None) -> Iterator:
    """Yield the text of each row, None where a row has no such column. A list in the file is a list of rows."""
    wanted, names, found = [column] if column else USUAL_COLUMNS, None, False
    for value in json_values(file):
        for row in value if isinstance(value, list) else [value]:
            if isinstance(row, dict):
                name = next((name for name in wanted if name in row), None)
                names, found = names or list(row), found or name is not None
                yield row.get(name)
            else:
                yield row  # a list of texts
    if names and not found:
        pick_column(names, column)  # raises UserError


def csv_texts(file: BinaryIO, column: str | None, delimiter: str = ",") -> Iterator[str | None]:
    csv.field_size_limit(MAX_FIELD_BYTES)
    lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        if header := next(rows, None):
            at = header.index(pick_column(header, column))
            for row in rows:
                if len(row) > len(header):
                    raise csv.Error(f"{len(row)} fields, and the header has {len(header)}")
                yield row[at] if at < len(row) else None
    except csv.Error as error:
        raise ValueError(f"line {rows.line_num:,}: {error}") from None


def parquet_texts(file: BinaryIO, column: str | None) -> Iterator:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = file if file.seekable() else pa.BufferReader(file.read())  # it begins with the end
    with pq.ParquetFile(source, page_checksum_verification=True) as parquet:
        name = pick_column(parquet.schema_arrow.names, column)
        for batch in parquet.iter_batches(ROWS, columns=[name]):
            yield from batch.column(name).to_pylist()  # by name, because columns=["a.b"] means b in a struct a as well


def arrow_texts(file: BinaryIO, column: str | None) -> Iterator:
    import pyarrow as pa

    stream = not file.peek(6).startswith(b"ARROW1")  # what save_to_disk() writes; to_feather() writes the other
    with pa.ipc.open_stream(file) if stream else pa.ipc.open_file(file) as reader:
        name = pick_column(reader.schema.names, column)
        for batch in reader if stream else map(reader.get_batch, range(reader.num_record_batches)):
            yield from batch.column(name).to_pylist()


def file_texts(file: BinaryIO, column: str | None) -> Iterator[str]:
    """Yield the documents of a text file."""
    text = file.read().decode().removeprefix("\ufeff")  # a byte order mark
    for document in split_at_marker(text.replace("\r\n", "\n").replace("\r", "\n").encode()):
        if document:
            yield document.decode()


READERS = {  # in: an open file and the name of a column; out: the text of each row
    ".jsonl": json_texts,
    ".ndjson": json_texts,
    ".json": json_texts,
    ".csv": csv_texts,
    ".tsv": functools.partial(csv_texts, delimiter="\t"),
    ".parquet": parquet_texts,
    ".arrow": arrow_texts,
    ".txt": file_texts,
    ".md": file_texts,
}


def open_zst(path: Path) -> BinaryIO:
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(pa.PythonFile(open(path, "rb"), "r"), compression="zstd"))


PACKED = {".gz": gzip.open, ".xz": lzma.open, ".zst": open_zst}


def read_texts(path: Path, column: str | None) -> Iterator[str | None]:
    """Yield the texts of a file, and None or "" for its empty rows. Raises UserError for one that cannot be read."""
    if (suffix := inner_suffix(path)) not in READERS:
        raise UserError(f"{shown_path(path)} ends in none of {', '.join(READERS)}.")
    try:
        with Unchanged(path), PACKED.get(path.suffix.lower(), functools.partial(open, mode="rb"))(path) as file:
            for row, text in enumerate(READERS[suffix](file, column), 1):
                if text is not None and not isinstance(text, str):
                    raise UserError(f"holds {type(text).__name__}, not text, in row {row:,} of the column.")
                if text and not text.isascii() and re.search("[\ud800-\udfff]", text):
                    raise UserError(f"holds half of a surrogate pair, which is no character, in row {row:,}.")
                yield text
    except UserError as error:
        raise UserError(f"{shown_path(path)} {error}") from None
    except UnicodeDecodeError as error:
        advice = NO_TEXT if b"\0" in error.object else "Convert it, for example with: iconv -f latin1 -t utf-8"
        raise UserError(f"{shown_path(path)} is not UTF-8 (byte 0x{error.object[error.start]:02x}). {advice}") from None
    except Exception as error:  # the libraries raise those of every format that they read
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{shown_path(path)} cannot be read: {reason}") from None


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
                print(f"  {printable(path.name)}: a document of {len(text):,} characters begins: {visible(text[:50])}")
            yield text, path
        counts["empty files"] += not rows


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("inputs", nargs="+", type=Path, metavar="PATH", help="files, or folders of them")
    parser.add_argument("--column", help="the column that holds the text [content, else text]")
    parser.add_argument("--output", type=Path, default=CHAR.parquet_dir / "dataset.parquet", help="file to write")
    add_flags(parser, CHAR, "debug")
    args = parser.parse_args()

    from plumbing.parquet import show_extraction, write_parquet

    left_out, counts = LeftOut(), Counter()
    paths = find_readable(args.inputs, left_out)
    left_out.show()
    refuse_same({"--output": args.output}, *paths)
    start = time.perf_counter()
    written, size = write_parquet(args.output, read_inputs(paths, args, counts))
    for reason, count in counts.items():
        if count and reason != "documents":
            print(f"  {reason}: {count:,}")
    text, rate = f"{byte_size(size)} of text", byte_rate(size, time.perf_counter() - start)
    print(f"{plural(written, 'document')}, {text}, in {shown_path(args.output)}{rate}")
    show_extraction(args.output, CHAR.parquet_dir)


if __name__ == "__main__":
    run_script(main)
