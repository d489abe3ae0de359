"""The Parquet files that ingestion from disk writes: one row per document, all with one schema, for extraction to read.
For a new source, start from ingestion/ingest_folder.py and yield (text, path) to write_parquet()."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from plumbing.corpus import END_OF_TEXT, is_cut_at_marker
from plumbing.errors import UserError
from plumbing.files import real_path, whole_file
from plumbing.inputs import parquet_files
from plumbing.text import print_next, quoted_path, shown_path

# The text, as the public datasets of source code call it, and the file that it comes from, for people.
SCHEMA = pa.schema([("content", pa.string()), ("path", pa.string())])
ROW_GROUP_BYTES = 16_000_000  # text per row group, which readers hold in memory at once
MAX_DOCUMENT_BYTES = 2**31 - 1  # a cell of Parquet cannot hold more


def write_parquet(path: Path, rows: Iterable[tuple[str, Path]]) -> tuple[int, int]:
    """Write (text, path of its file) rows to a Parquet file. Returns (documents, bytes of text). Raises UserError if
    there are no rows: an earlier file stays."""
    documents = size = cut = 0
    options = {"compression": "zstd", "write_page_checksum": True}  # extraction compares the checksums
    with whole_file(path) as file, pq.ParquetWriter(file, SCHEMA, **options) as writer:
        for group, group_bytes in row_groups(rows):
            writer.write_table(pa.table(list(zip(*group, strict=True)), schema=SCHEMA))
            documents, size = documents + len(group), size + group_bytes
            cut += sum(is_cut_at_marker(text) for text, _ in group)
        if not documents:
            raise UserError(f"Nothing to write to {shown_path(path)}: no document was found in the input.")
    if cut:
        print(f"  with a line {END_OF_TEXT}, where extraction cuts them: {cut:,}")
    return documents, size


def row_groups(rows: Iterable[tuple[str, Path]]) -> Iterator[tuple[list[tuple[str, str]], int]]:
    """Collect rows into groups of about ROW_GROUP_BYTES: (rows, bytes of their text)."""
    group, size = [], 0
    for text, path in rows:
        length = len(text.encode())
        if length > MAX_DOCUMENT_BYTES:
            raise UserError(
                f"{shown_path(path)} has a document of {length / 1e9:.1f} GB, and Parquet takes at most 2 GB. "
                "If it is a text file, you need no ingestion: name it as the --corpus of the next steps."
            )
        group.append((text, os.fsencode(path).decode("utf-8", errors="replace")))  # a name need not be UTF-8
        size += length
        if size >= ROW_GROUP_BYTES:
            yield group, size
            group, size = [], 0
    if group:
        yield group, size


def show_extraction(output: Path, folder: Path) -> None:
    """Print the command that extracts the text of a Parquet file. It reads the whole `folder` if no file is named."""
    if not real_path(output).is_relative_to(real_path(folder)):
        print_next(f"python scripts/extract_parquets_to_text.py {quoted_path(output)}")
        return
    if others := sum(real_path(path) != real_path(output) for path in parquet_files(folder)):
        print(
            f"Extraction reads every Parquet file in {shown_path(folder)}, and there are {others:,} more. "
            f"To read this one alone, add {quoted_path(output)}."
        )
    print_next("python scripts/extract_parquets_to_text.py")
