"""Step 2: parquet files to one text file.

    python scripts/extract_parquets_to_text.py
    python scripts/extract_parquets_to_text.py my.parquet folder/of/parquets --column text

Reads   the files and folders given, else data/parquet, else what ingestion/ingest.py downloaded to the hub's cache
Writes  data/corpus.txt: UTF-8, the documents separated by a line <|endoftext|>
Next    python scripts/sample_corpus_subset.py --megabytes 4, or step 4 if the corpus is no larger than that

The text stays as it is, indentation and blank lines included; only line ends become LF. Row groups are read on all
cores, about 1 MB at a time. If the run is stopped, the same command resumes it. Exit code 3 means that --skip-bad left
something out.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

import argparse
import functools
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem
from tqdm import tqdm

from config import CHAR, Settings
from plumbing.command_line import ScriptParser, add_flags, file_flags, parse, refuse_same, shard_flag
from plumbing.corpus import MARKER, SEPARATOR, SeenDocuments, document_hashes, read_document_bytes, split_at_marker
from plumbing.errors import UserError, run_script
from plumbing.files import whole_file
from plumbing.inputs import LeftOut, Unchanged, find_files, parquet_files, why_not_parquet
from plumbing.journal import Journal, identity
from plumbing.parallel import cores, in_input_order, shard_path, shard_pattern
from plumbing.text import byte_rate, byte_size, plural, print_next, printable, quoted_path, shown_path, visible

ROWS = 256  # read at once, at most,
BATCH_BYTES = 1 << 20  # and about so much text: little enough to stay in the processor's caches until it is written
ITEM_BYTES = 1 << 24  # 16 MB of text in the row groups that a thread reads, or one larger row group
ENOUGH = 4  # megabytes for a first training; of a larger corpus, a sample comes next
BATCHES_AT_ONCE = ITEM_BYTES // BATCH_BYTES  # read ahead of the writer: a thread waits only in larger row groups


@contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a file by its name, whatever the name looks like. Compares pages with their checksums, if the file has some,
    and reads in small portions. Errors that a damaged file causes become a ValueError that names it."""
    try:
        file = LocalFileSystem().open_input_file(os.fsencode(path.absolute()))
        with file, pq.ParquetFile(file, page_checksum_verification=True, buffer_size=1 << 16) as parquet:
            yield parquet
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        state = "cannot be read" if getattr(error, "errno", None) else "is damaged"
        raise ValueError(f"{shown_path(path)} {state}: {str(error).splitlines()[0]}") from None


def hub_cache() -> Path:
    """Where the hub's library keeps downloads: HF_HUB_CACHE (or by its old name, HUGGINGFACE_HUB_CACHE), else
    HF_HOME/hub, else ~/.cache/huggingface/hub. Each may start with ~ and contain variables."""
    get = os.environ.get
    home = get("HF_HOME") or Path(get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    cache = get("HF_HUB_CACHE") or get("HUGGINGFACE_HUB_CACHE") or Path(home) / "hub"
    return Path(os.path.expandvars(os.path.expanduser(cache)))


def find_inputs(given: list[Path], settings: Settings, left_out: LeftOut) -> list[Path]:
    """The parquet files to read, each once, those of a folder in sorted order. Raises UserError if there are none."""
    stack = hub_cache() / "datasets--bigcode--the-stack" / "snapshots"
    if stack.is_dir():  # one folder per downloaded revision: the newest
        stack = max(stack.iterdir(), key=lambda path: path.stat().st_mtime, default=stack)
    default = settings.parquet_dir if parquet_files(settings.parquet_dir) else stack
    files = list(find_files(given or [default] * default.exists(), why_not_parquet, left_out))
    if not files:
        searched = " or ".join(map(shown_path, given or [settings.parquet_dir, stack]))
        reasons = left_out.sentences()
        raise UserError(
            f"No parquet file in {searched}.{reasons} Make some with ingestion/ingest_folder.py (your own files, or "
            "Python's standard library) or ingestion/ingest.py (the-stack), or name files and folders."
        )
    return files


def row_group_sizes(path: Path, column: str) -> list[tuple[int, int]]:
    """(rows, bytes) of each row group. Raises UserError if there is no such text, ValueError if the file is damaged."""
    with open_parquet(path) as parquet:
        columns = parquet.schema_arrow.names
        if columns.count(column) != 1:
            raise UserError(
                f"{shown_path(path)} has no column {column!r}, or more than one. It has: {', '.join(columns)}. "
                "Name the one that holds the text with --column."
            )
        column_type = parquet.schema_arrow.field(column).type
        value_type = column_type.value_type if pa.types.is_dictionary(column_type) else column_type
        if value_type not in (pa.string(), pa.large_string(), pa.string_view(), pa.null()):  # null: only empty rows
            raise UserError(f"The column {column!r} of {shown_path(path)} holds {column_type}, not text.")
        groups = [parquet.metadata.row_group(i) for i in range(parquet.metadata.num_row_groups)]
        sizes = [(group.num_rows, group.total_byte_size) for group in groups]
        rows = parquet.metadata.num_rows
        if sum(group_rows for group_rows, _ in sizes) != rows:
            raise ValueError(f"{shown_path(path)} is damaged: its row groups do not have {rows:,} rows in all")
    return sizes


@dataclass(frozen=True)
class RowGroups:
    """Neighbouring row groups of a file, for one thread to read; or the error that keeps the file from being read."""

    path: Path
    file: int  # its number among the inputs
    groups: range = range(0)
    rows: int = 0  # according to the file's metadata
    bytes: int = 0
    last: bool = True  # whether the file ends here
    error: Exception | None = None


def row_groups_of(files: list[Path], column: str, start: tuple[int, int]) -> Iterator[RowGroups]:
    """Divide the files into RowGroups of about ITEM_BYTES. `start` is the first file and row group to read."""
    for file in range(start[0], len(files)):
        try:
            sizes = row_group_sizes(files[file], column)
        except (ValueError, UserError) as error:
            yield RowGroups(files[file], file, error=error)
            continue
        begin = start[1] if file == start[0] else 0
        rows = size = 0
        for number, (group_rows, group_bytes) in enumerate(sizes[begin:], begin):
            rows, size, last = rows + group_rows, size + group_bytes, number == len(sizes) - 1
            if size >= ITEM_BYTES or last:
                yield RowGroups(files[file], file, range(begin, number + 1), rows, size, last)
                begin, rows, size = number + 1, 0, 0


def extract(item: RowGroups, column: str, hashing: bool) -> Iterator[tuple]:
    """Yield documents_of() some rows of the row groups at a time. Raises ValueError if the file is damaged."""
    if item.error:
        raise item.error
    rows, size = 0, max(1, min(ROWS, BATCH_BYTES * item.rows // max(item.bytes, 1)))
    with open_parquet(item.path) as parquet:
        for batch in parquet.iter_batches(size, row_groups=list(item.groups), columns=[column], use_threads=False):
            rows += len(batch)
            yield documents_of(batch.column(column), hashing)  # by name: columns=["a.b"] means b in a struct a too
    if rows != item.rows:
        raise ValueError(f"{shown_path(item.path)} is damaged: it has {rows:,} of {item.rows:,} rows")


def documents_of(column: pa.Array, hashing: bool) -> tuple[list[bytes | memoryview], np.ndarray | None, int, int]:
    """Turn rows of text into documents: (documents as they go into the corpus, their hashes to find duplicates, empty
    rows, rows with a line <|endoftext|>). For speed, the documents are views of Arrow's memory, and only rows with a CR
    or the start of <|endoftext|> are examined one by one."""
    column.validate(full=True)  # UTF-8, for example: raises ArrowInvalid
    texts = column.cast(pa.large_string()).drop_null()
    _, borders, data = texts.buffers()
    borders = np.frombuffer(borders, np.int64, len(texts) + 1, texts.offset * 8)  # each row ends where the next begins
    text = np.frombuffer(data or b"", np.uint8)[: borders[-1]]
    found = np.flatnonzero((text == ord("\r")) | (text == MARKER[1]))
    found = found[(text[found] == ord("\r")) | (text[found - 1] == MARKER[0])]
    to_examine = set((np.searchsorted(borders, found, side="right") - 1).tolist())

    documents, empty, split = [], len(column) - len(texts), 0
    for row, (start, end) in enumerate(pairwise(borders.tolist())):
        if start == end:
            empty += 1
        elif row in to_examine:
            parts = split_at_marker(text[start:end].tobytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
            split += len(parts) > 1
            documents += filter(None, parts)
        else:
            documents.append(text.data[start:end])
    return documents, document_hashes(documents) if hashing else None, empty, split


class CorpusWriter:
    """Writes extracted documents to the open corpus file, and counts what was written and left out."""

    def __init__(self, file, show: bool, deduplicate: bool):
        self.file, self.show = file, show
        self.seen = SeenDocuments() if deduplicate else None
        self.counts: Counter[str] = Counter()
        self.bad: list[str] = []  # files that were left out, at least in part

    def resume(self, state: dict, corpus: Path) -> None:
        """Continue the corpus of a stopped run, which is `corpus` so far."""
        self.counts, self.bad = Counter(state["counts"]), state["bad"]
        print(f"Resuming after the {self.file.tell() / 1e6:,.1f} MB that an earlier run has finished.")
        if self.seen:
            for document in read_document_bytes(corpus, check=False):
                self.seen.new(document_hashes([document]))

    def add(self, documents: list, hashes: np.ndarray | None, empty: int, split: int) -> None:
        """Write documents_of() some rows."""
        new = documents
        if self.seen:
            new = list(compress(documents, self.seen.new(hashes).tolist()))
            self.counts["duplicates left out"] += len(documents) - len(new)
            self.counts["bytes in them"] += sum(map(len, documents)) - sum(map(len, new))
        for document in new:
            if self.show and self.counts["documents"] < 3:
                text = bytes(document).decode()
                print(f"  a document of {len(text):,} characters begins: {visible(text[:70])}")
            if self.counts["documents"]:
                self.file.write(SEPARATOR)
            self.file.write(document)
            self.counts["documents"] += 1
        self.counts["empty rows"] += empty
        self.counts["files with a line <|endoftext|>, which splits them"] += split


def write_corpus(writer: CorpusWriter, journal: Journal, files: list[Path], args: argparse.Namespace) -> None:
    """Extract the files into the corpus, from where the journal says that a stopped run came to."""
    start = journal.state["at"] if journal.state else [0, 0]
    sizes = [path.stat().st_size if path.exists() else 0 for path in files]  # a link may lead nowhere
    items = row_groups_of(files, args.column, start)
    work = functools.partial(extract, column=args.column, hashing=args.deduplicate)
    broken = -1  # the number of the file that turned out to be damaged
    options = {"total": sum(sizes), "initial": sum(sizes[: start[0]]), "unit": "B", "unit_scale": True, "delay": 2}
    with tqdm(**options) as progress:
        for item, results in in_input_order(work, items, args.workers or cores(), BATCHES_AT_ONCE):
            if item.file == broken:
                continue
            try:
                for extracted in results:
                    writer.add(*extracted)
            except (ValueError, UserError) as error:  # UserError too, because damage can change the name of a column
                if not args.skip_bad:
                    advice = "" if isinstance(error, UserError) else ". Leave out such files with --skip-bad."
                    raise UserError(f"{error}{advice}") from None
                broken = item.file
                writer.bad.append(shown_path(item.path))
                tqdm.write(f"left out from the damage on: {printable(str(error))}", file=sys.stderr)
            file_done = item.last or item.file == broken
            done = [item.file + 1, 0] if file_done else [item.file, item.groups[-1] + 1]
            journal.note([writer.file], {"at": done, "counts": writer.counts, "bad": writer.bad})
            progress.update(sizes[item.file] if file_done else 0)


def main() -> int:
    parser = ScriptParser(__doc__)
    parser.add_argument("inputs", nargs="*", type=Path, metavar="PATH", help="parquet files, or folders of them")
    parser.add_argument("--column", default="content", help="the column that holds the text [%(default)s]")
    parser.add_argument("--skip-bad", action="store_true", help="leave out damaged files instead of stopping")
    parser.add_argument("--deduplicate", action="store_true", help="leave out exact copies of earlier documents")
    shard_flag(parser, "files")
    add_flags(parser, CHAR, "corpus workers debug")
    settings, args = parse(parser, CHAR)

    left_out = LeftOut()
    files = find_inputs(args.inputs, settings, left_out)
    if args.shard:
        files = files[args.shard[0] - 1 :: args.shard[1]]
        if not files:
            raise UserError("There are more shards than parquet files: nothing is left for this one.")
    corpus = shard_path(settings.corpus, args.shard)
    refuse_same({"--corpus": corpus}, *files)
    print(f"Extracting the column {args.column!r} of {plural(len(files), 'parquet file')}")
    left_out.show()

    start, unchanged = time.perf_counter(), Unchanged(*files)
    inputs = [identity(path) if path.exists() else str(path) for path in files]
    depends_on = [inputs, args.column, args.skip_bad, args.deduplicate]
    with Journal([corpus], depends_on) as journal, whole_file(corpus, journal) as file, unchanged:
        writer = CorpusWriter(file, settings.debug, args.deduplicate)
        if journal.state:
            writer.resume(journal.state, journal.unfinished(corpus))
        write_corpus(writer, journal, files, args)
        if not writer.counts["documents"]:
            raise UserError(f"Nothing to write to {shown_path(corpus)}: no document was found in the input.")
        if args.shard:  # so that `cat` can join the shards
            file.write(SEPARATOR)
        size = file.tell()
    seconds = time.perf_counter() - start
    documents = writer.counts.pop("documents")
    for reason, count in writer.counts.items():
        if count:
            print(f"  {reason}: {count:,}")
    print(f"{plural(documents, 'document')}, {byte_size(size)}, in {shown_path(corpus)}{byte_rate(size, seconds)}")
    if args.shard:
        shards = shard_pattern(settings.corpus, args.shard[1])
        print(f"Next, when all shards are written: cat {shards} > {quoted_path(settings.corpus)}")
    else:
        sample = (
            f"sample_corpus_subset.py --megabytes {ENOUGH}"
            if size > 1e6 * ENOUGH
            else "train_tokenizer_character_level.py"
        )
        print_next(f"python scripts/{sample}{file_flags(settings, CHAR, 'corpus')}")
    return 3 if writer.bad else 0


if __name__ == "__main__":
    run_script(main)
