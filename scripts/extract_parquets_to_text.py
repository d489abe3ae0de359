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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from config import CHAR, Settings, UserError, add_flags, parse, run, shown_path
from dataset import split_at_marker, write_documents
from model.insight import visible

ROWS = 256  # read at once: at most a row group, and few enough for a laptop's memory where rows are long


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


def read_rows(path: Path, column: str, counts: Counter) -> Iterator[str]:
    """Yield the texts of a parquet file. Raises ValueError where it is damaged, UserError where it lacks the column."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as parquet:  # where it has checksums
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
            rows = 0
            for batch in parquet.iter_batches(batch_size=ROWS, columns=[column]):
                rows += len(batch)
                for text in batch.column(0).to_pylist():
                    if not text:
                        counts["empty rows"] += 1
                    else:
                        yield text.replace("\r\n", "\n").replace("\r", "\n")
            if rows != parquet.metadata.num_rows:
                raise ValueError(
                    f"{shown_path(path)} is damaged: it has {rows:,} of {parquet.metadata.num_rows:,} rows"
                )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{shown_path(path)} is damaged: {str(error).splitlines()[0]}") from None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="*", type=Path, metavar="PATH", help="parquet files, or folders of them")
    parser.add_argument("--column", default="content", help="the column that holds the text [%(default)s]")
    parser.add_argument("--skip-bad", action="store_true", help="leave out damaged files instead of stopping")
    add_flags(parser, CHAR, "corpus debug")
    settings, args = parse(parser, CHAR)

    files = find_inputs(args.inputs, settings)
    print(f"Extracting the column {args.column!r} of {len(files)} parquet file{'s'[: len(files) > 1]}")
    counts: Counter[str] = Counter()
    bad: list[Path] = []
    start = time.perf_counter()

    def documents() -> Iterator[str]:
        sizes = [path.stat().st_size if path.exists() else 0 for path in files]  # a link can lead nowhere
        with tqdm(total=sum(sizes), unit="B", unit_scale=True, delay=2) as progress:
            for path, size in zip(files, sizes, strict=True):
                try:
                    for text in read_rows(path, args.column, counts):
                        parts = len(split_at_marker(text))
                        counts["files with a line <|endoftext|>, which cuts them in parts"] += parts > 1
                        if settings.debug and counts["rows"] < 3:
                            print(f"  a document of {len(text):,} characters begins: {visible(text[:70])}")
                        counts["rows"] += 1
                        yield text
                except (ValueError, UserError) as error:  # damage can take the name of a column, too
                    if not args.skip_bad:
                        advice = "" if isinstance(error, UserError) else ". Leave out such files with --skip-bad."
                        raise UserError(f"{error}{advice}") from None
                    bad.append(path)
                    tqdm.write(f"left out from where it broke off: {error}", file=sys.stderr)
                progress.update(size)

    written, size = write_documents(settings.corpus, documents())
    seconds = time.perf_counter() - start
    for reason, count in counts.items():
        if count and reason != "rows":
            print(f"  {reason}: {count:,}")
    megabytes, where = size / 1e6, shown_path(settings.corpus)
    print(f"{written:,} documents, {megabytes:.1f} MB, in {where} ({megabytes / seconds:.0f} MB/s)")
    print("Next: python scripts/sample_corpus_subset.py --megabytes 20")
    return 3 if bad else 0


if __name__ == "__main__":
    run(main)
