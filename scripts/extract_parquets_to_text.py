"""Step 2: parquet files to one text file.

    python scripts/extract_parquets_to_text.py
    python scripts/extract_parquets_to_text.py my.parquet folder/of/parquets --column text

Reads   the files and folders given; else data/parquet; else what ingestion/ingest.py downloaded into the hub's cache
Writes  data/corpus.txt: UTF-8, the documents separated by a line <|endoftext|>
Next    python scripts/sample_corpus_subset.py --megabytes 20

What goes in comes out, indentation and blank lines included; only line ends become LF. One row group is in memory at a
time. Exit code 3 says that --skip-bad left something out.
"""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress, pairwise
from pathlib import Path

import _root
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from config import CHAR, Settings
from plumbing.command_line import add_flags, file_flags, parse, refuse_same, shard_flag
from plumbing.corpus import MARKER, SEPARATOR, SeenDocuments, document_hashes, read_document_bytes, split_at_marker
from plumbing.errors import UserError, run_script
from plumbing.files import whole_file
from plumbing.journal import Journal, identity
from plumbing.parallel import in_input_order, pick_workers, shard_path
from plumbing.text import shown_path, visible

ROWS = 256  # read at once at most,
BATCH_BYTES = 1 << 20  # and about so much text: little enough to stay in the processor's caches until it is written
PIECE_BYTES = 1 << 24  # of text in the row groups of a piece, 16 MB, where the row groups are not larger
AHEAD = PIECE_BYTES // BATCH_BYTES  # as many results as a piece has: no thread waits until another's are written


def hub_cache() -> Path:
    """Where the hub's library keeps downloads: HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def find_inputs(given: list[Path], settings: Settings) -> list[Path]:
    """The parquet files to read, in sorted order. Raises UserError where there are none."""
    stack = hub_cache() / "datasets--bigcode--the-stack" / "snapshots"
    if stack.is_dir():  # a folder for each revision that was downloaded: the newest
        stack = max(stack.iterdir(), key=lambda path: path.stat().st_mtime, default=stack)
    places = given or ([settings.parquet_dir] if any(settings.parquet_dir.rglob("*.parquet")) else [stack])
    files = []
    for place in places:
        if not place.exists() and place in given:
            raise UserError(f"There is no {shown_path(place)}.")
        files += [place] if place.is_file() else sorted(place.rglob("*.parquet"))
    if not files:
        looked = " or ".join(map(shown_path, given or [settings.parquet_dir, stack]))
        raise UserError(
            f"No parquet file in {looked}. Make some with ingestion/ingest_folder.py (your own files, or Python's "
            "standard library) or ingestion/ingest.py (the-stack), or name files and folders."
        )
    return files


@dataclass(frozen=True)
class Piece:
    """Some neighbouring row groups of a parquet file, or why it cannot be read."""

    path: Path
    groups: tuple[int, ...] = ()
    rows: int = 0  # that its description promises,
    bytes: int = 0  # and how large they are
    last: bool = True  # whether the file ends with it
    error: Exception | None = None


@dataclass
class Extracted:
    """Documents as they stand in the corpus, and what was met in the rows that they come from."""

    documents: list[bytes | memoryview]
    empty: int  # rows
    cut: int  # rows with a line <|endoftext|>
    hashes: np.ndarray | None  # of each document, to tell duplicates


@contextmanager
def naming_damage(path: Path):
    """Around reading a parquet file: whatever shows that it is damaged becomes a ValueError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{shown_path(path)} is damaged: {str(error).splitlines()[0]}") from None


def open_parquet(path: Path) -> pq.ParquetFile:
    """Pages are checked against their checksums, where the file has some, and read in small bites."""
    return pq.ParquetFile(path, page_checksum_verification=True, buffer_size=1 << 16)


def pieces_of(path: Path, column: str, first_group: int = 0) -> Iterator[Piece]:
    """Cut a parquet file into pieces of about PIECE_BYTES, from a row group on; of a giant row group, one by itself."""
    try:
        with naming_damage(path), open_parquet(path) as parquet:
            columns = parquet.schema_arrow.names
            if columns.count(column) != 1:
                raise UserError(
                    f"{shown_path(path)} has no column {column!r}, or more than one. It has: {', '.join(columns)}. "
                    "Name the one that holds the text with --column."
                )
            kind = parquet.schema_arrow.field(column).type
            text_kind = kind.value_type if pa.types.is_dictionary(kind) else kind  # a pandas categorical, say
            if text_kind not in (pa.string(), pa.large_string(), pa.string_view()):
                raise UserError(f"The column {column!r} of {shown_path(path)} holds {kind}, not text.")
            groups = [parquet.metadata.row_group(i) for i in range(parquet.metadata.num_row_groups)]
            described = [(group.num_rows, group.total_byte_size) for group in groups]
            if sum(rows for rows, _ in described) != parquet.metadata.num_rows:
                raise ValueError(
                    f"{shown_path(path)} is damaged: its row groups have not {parquet.metadata.num_rows:,} rows"
                )
    except (ValueError, UserError) as error:
        yield Piece(path, error=error)
        return
    taken, rows, size = [], 0, 0
    for number, (group_rows, group_bytes) in enumerate(described):
        if number >= first_group:
            taken.append(number)
            rows, size = rows + group_rows, size + group_bytes
        last = number == len(described) - 1
        if taken and (size >= PIECE_BYTES or last):
            yield Piece(path, tuple(taken), rows, size, last)
            taken, rows, size = [], 0, 0


def extract(piece: Piece, column: str, hashing: bool) -> Iterator[Extracted]:
    """Yield the documents of a piece, some rows at a time. Raises ValueError where the file is damaged."""
    if piece.error:
        raise piece.error
    rows, size = 0, max(1, min(ROWS, BATCH_BYTES * piece.rows // max(piece.bytes, 1)))
    with naming_damage(piece.path), open_parquet(piece.path) as parquet:
        for batch in parquet.iter_batches(size, row_groups=list(piece.groups), columns=[column], use_threads=False):
            rows += len(batch)
            yield documents_of(batch.column(0), hashing)
    if rows != piece.rows:
        raise ValueError(f"{shown_path(piece.path)} is damaged: it has {rows:,} of {piece.rows:,} rows")


def documents_of(column: pa.Array, hashing: bool = False) -> Extracted:
    """Rows of text as documents of a corpus. They are taken as they lie in memory, except for a row that holds a CR, or
    what begins like <|endoftext|>: that one is looked at by itself."""
    column.validate(full=True)  # that it is UTF-8, for one: raises ArrowInvalid
    texts = column.cast(pa.large_string()).drop_null()
    _, borders, data = texts.buffers()
    borders = np.frombuffer(borders, np.int64, len(texts) + 1, texts.offset * 8)  # a row reaches from one to the next
    letters = np.frombuffer(data or b"", np.uint8)[: borders[-1]]
    places = np.flatnonzero((letters == ord("\r")) | (letters == MARKER[1]))
    places = places[(letters[places] == ord("\r")) | (letters[places - 1] == MARKER[0])]
    careful = set((np.searchsorted(borders, places, side="right") - 1).tolist())

    documents, empty, cut = [], len(column) - len(texts), 0
    for row, (start, end) in enumerate(pairwise(borders.tolist())):
        text = letters.data[start:end]
        if start == end:
            empty += 1
        elif row in careful:
            parts = split_at_marker(bytes(text).replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
            cut += len(parts) > 1
            documents += filter(None, parts)
        else:
            documents.append(text)
    return Extracted(documents, empty, cut, document_hashes(documents) if hashing else None)


def without_duplicates(some: Extracted, seen: SeenDocuments) -> tuple[list, int]:
    """The documents that were not there before, as (documents, bytes left out)."""
    kept = list(compress(some.documents, seen.new(some.hashes).tolist()))
    return kept, sum(map(len, some.documents)) - sum(map(len, kept))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="*", type=Path, metavar="PATH", help="parquet files, or folders of them")
    parser.add_argument("--column", default="content", help="the column that holds the text [%(default)s]")
    parser.add_argument("--skip-bad", action="store_true", help="leave out damaged files instead of stopping")
    parser.add_argument("--deduplicate", action="store_true", help="leave out documents that are there already")
    shard_flag(parser, "files")
    add_flags(parser, CHAR, "corpus workers debug")
    settings, args = parse(parser, CHAR)

    files = find_inputs(args.inputs, settings)
    if args.shard:
        files = files[args.shard[0] - 1 :: args.shard[1]]
        if not files:
            raise UserError("There are more shares than parquet files: nothing is left for this one.")
    corpus = shard_path(settings.corpus, args.shard)
    refuse_same({"--corpus": corpus}, *files)
    print(f"Extracting the column {args.column!r} of {len(files)} parquet file{'s'[: len(files) > 1]}")
    start = time.perf_counter()
    sizes = {path: path.stat().st_size if path.exists() else 0 for path in files}  # a link can lead nowhere
    inputs = [identity(path) if path.exists() else str(path) for path in files]
    depends_on = [inputs, args.column, args.skip_bad, args.deduplicate]
    counts, bad, seen = Counter(), [], SeenDocuments()

    # === extract and write ============================================================================================
    with Journal([corpus], depends_on) as journal, whole_file(corpus, journal) as file:
        at = [0, 0]  # the file and the row group that come next
        if journal.state:
            at, counts, bad = journal.state["at"], Counter(journal.state["counts"]), journal.state["bad"]
            print(f"Going on behind the {file.tell() / 1e6:,.1f} MB that an earlier run has finished.")
            if args.deduplicate:
                for document in read_document_bytes(journal.unfinished(corpus), check=False):
                    seen.new(document_hashes([document]))

        def pieces() -> Iterator[tuple[int, Piece]]:
            for number in range(at[0], len(files)):
                for piece in pieces_of(files[number], args.column, at[1] if number == at[0] else 0):
                    yield number, piece

        def work(item: tuple[int, Piece]) -> Iterator[Extracted]:
            return extract(item[1], args.column, args.deduplicate)

        broken = -1  # the file that broke off
        options = {"unit": "B", "unit_scale": True, "delay": 2}
        before = sum(sizes[path] for path in files[: at[0]])
        with tqdm(total=sum(sizes.values()), initial=before, **options) as progress:
            for (number, piece), results in in_input_order(work, pieces(), pick_workers(settings.workers), AHEAD):
                if number == broken:
                    continue
                try:
                    for some in results:
                        documents = some.documents
                        if args.deduplicate:
                            documents, left_out = without_duplicates(some, seen)
                            counts["duplicates left out"] += len(some.documents) - len(documents)
                            counts["bytes in them"] += left_out
                        for document in documents:
                            if settings.debug and counts["documents"] < 3:
                                show(document)
                            if counts["documents"]:
                                file.write(SEPARATOR)
                            file.write(document)
                            counts["documents"] += 1
                        counts["empty rows"] += some.empty
                        counts["files with a line <|endoftext|>, which cuts them in parts"] += some.cut
                except (ValueError, UserError) as error:  # damage can take the name of a column, too
                    if not args.skip_bad:
                        advice = "" if isinstance(error, UserError) else ". Leave out such files with --skip-bad."
                        raise UserError(f"{error}{advice}") from None
                    broken = number
                    bad.append(shown_path(piece.path))
                    tqdm.write(f"left out from where it broke off: {error}", file=sys.stderr)
                ended = piece.last or number == broken
                done = [number + 1, 0] if ended else [number, piece.groups[-1] + 1]
                journal.note([file], {"at": done, "counts": counts, "bad": bad})
                progress.update(sizes[piece.path] if ended else 0)
        if not counts["documents"]:
            raise UserError(f"Nothing to write to {shown_path(corpus)}: no document was found in the input.")
        if args.shard:  # so that the shares are joined by writing one behind the other
            file.write(SEPARATOR)
        size = file.tell()
    seconds = time.perf_counter() - start

    written = counts.pop("documents")
    for reason, count in counts.items():
        if count:
            print(f"  {reason}: {count:,}")
    megabytes, where = size / 1e6, shown_path(corpus)
    print(f"{written:,} documents, {megabytes:.1f} MB, in {where} ({megabytes / seconds:.0f} MB/s)")
    if args.shard:
        shares = shown_path(shard_path(settings.corpus, ("*", args.shard[1])))
        print(f"Next, when all shares are there: cat {shares} > {shown_path(settings.corpus)}")
    else:
        print(f"Next: python scripts/sample_corpus_subset.py --megabytes 20{file_flags(settings, CHAR, 'corpus')}")
    return 3 if bad else 0


def show(document: bytes | memoryview) -> None:
    """Print how a document begins."""
    letters = bytes(document).decode()
    print(f"  a document of {len(letters):,} characters begins: {visible(letters[:70])}")


if __name__ == "__main__":
    run_script(main)
