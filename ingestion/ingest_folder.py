"""Step 1, without an account: gather source files from your own folders into one parquet file.

    python ingestion/ingest_folder.py                        (the standard library of the running Python)
    python ingestion/ingest_folder.py ~/projects --pattern '*.py'

Reads   the folders given; without one, Python's own standard library, leaving out its test suites
Writes  data/parquet/folder.parquet: a row a file, with the columns content, path, size (bytes) and license ("unknown")
Next    python scripts/extract_parquets_to_text.py

Text is decoded as Python would decode it: by its byte order mark, by a `# -*- coding: ... -*-` line, else as UTF-8.
Hidden folders, virtual environments and links to folders are not entered, so a loop of links does no harm.
"""

import argparse
import fnmatch
import hashlib
import os
import platform
import shlex
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import _root
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from config import CHAR
from plumbing.command_line import add_flags, parse
from plumbing.errors import UserError, run_script
from plumbing.files import whole_file
from plumbing.text import shown_path

# The same names as in the public datasets of source code, so that extraction reads all of them alike.
SCHEMA = pa.schema([("content", pa.string()), ("path", pa.string()), ("size", pa.int64()), ("license", pa.string())])
ROW_GROUP_BYTES = 16_000_000  # text in a row group: what extraction holds in memory at once

SKIPPED_FOLDERS = {"__pycache__", "node_modules", "site-packages", "dist-packages"}
TEST_SUITES = {"test", "tests", "idle_test"}  # left out of the standard library, of which they are a third


def source_files(folder: Path, pattern: str, skipped: set[str]) -> Iterator[Path]:
    """Yield the files below a folder that match, sorted, so that the same folder gives the same parquet file."""
    for parent, folders, names in os.walk(folder):  # os.walk does not enter links to folders
        if "pyvenv.cfg" in names and Path(parent) != folder:  # a virtual environment: other people's packages
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if name not in skipped and not name.startswith("."))
        for name in sorted(names):
            if fnmatch.fnmatch(name, pattern):
                yield Path(parent) / name


def decode_source(data: bytes) -> str:
    r"""The text of a source file, in the encoding that it declares (PEP 263). Raises an error where that fails.

    b"# -*- coding: latin-1 -*-\n# caf\xe9" gives "# -*- coding: latin-1 -*-\n# café".
    """
    encoding, _ = tokenize.detect_encoding(BytesIO(data).readline)
    return data.decode(encoding)


def read_source(path: Path, max_bytes: int, seen: set[bytes]) -> tuple[str | None, str]:
    """The text of a file, or None and the reason to leave it out. `seen` holds the hashes of the files taken so far."""
    try:
        if not path.is_file():
            return None, "not a regular file"  # a broken link, a pipe
        if path.stat().st_size > max_bytes:
            return None, f"longer than {max_bytes:,} bytes"
        data = path.read_bytes()
    except OSError:
        return None, "unreadable"
    if b"\0" in data:
        return None, "binary"
    try:
        text = decode_source(data)
        if not text.strip():  # a byte order mark alone
            return None, "empty"
        digest = hashlib.sha256(text.encode()).digest()
    except (SyntaxError, LookupError, ValueError):  # an encoding that is unknown, or not the one declared
        return None, "undecodable"
    if digest in seen:
        return None, "duplicate"
    seen.add(digest)
    return text, ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="folders to gather from")
    parser.add_argument("--pattern", default="*.py", help="names of the files to take [%(default)s]")
    parser.add_argument("--max-bytes", type=int, default=1_000_000, help="leave out longer files [%(default)s]")
    parser.add_argument("--output", type=Path, default=CHAR.parquet_dir / "folder.parquet", help="file to write")
    add_flags(parser, CHAR, "debug")
    settings, args = parse(parser, CHAR)

    skipped = SKIPPED_FOLDERS if args.folders else SKIPPED_FOLDERS | TEST_SUITES
    folders = args.folders or [Path(sysconfig.get_path("stdlib"))]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{shown_path(folder)} is not a folder.")
        name = shown_path(folder) if args.folders else f"the standard library of Python {platform.python_version()}"
        print(f"Gathering {args.pattern} from {name}")

    rows: list[tuple[str, str, int, str]] = []
    pending = files = size = 0  # bytes in rows; files and bytes in all
    left_out: Counter[str] = Counter()
    seen: set[bytes] = set()
    options = {"compression": "zstd", "write_page_checksum": True}  # extraction compares the checksums
    with whole_file(args.output) as file, pq.ParquetWriter(file, SCHEMA, **options) as writer:

        def flush() -> None:
            writer.write_table(pa.table(list(zip(*rows, strict=True)), schema=SCHEMA))
            rows.clear()

        for folder in folders:
            for path in tqdm(source_files(folder, args.pattern, skipped), unit=" files", delay=2):
                text, reason = read_source(path, args.max_bytes, seen)
                if text is None:
                    left_out[reason] += 1
                    continue
                name = os.fsencode(path.relative_to(folder)).decode("utf-8", errors="replace")
                length = len(text.encode())
                if settings.debug and files < 3:
                    print(f"  {name}: {length:,} bytes, {text.count(chr(10)):,} lines")
                rows.append((text, name, length, "unknown"))
                files, size, pending = files + 1, size + length, pending + length
                if pending >= ROW_GROUP_BYTES:
                    flush()
                    pending = 0
        if rows:
            flush()
        if not files:
            raise UserError(f"No file matching {args.pattern!r} was taken. Left out: {dict(left_out) or 'none found'}.")

    for reason, count in left_out.most_common():
        print(f"  left out, {reason}: {count:,}")
    print(f"{files:,} files, {size / 1e6:.1f} MB of text, in {shown_path(args.output)}")
    by_itself = args.output.resolve().is_relative_to(CHAR.parquet_dir.resolve())  # extraction finds it
    where = "" if by_itself else f" {shlex.quote(shown_path(args.output))}"
    print(f"Next: python scripts/extract_parquets_to_text.py{where}")


if __name__ == "__main__":
    run_script(main)
