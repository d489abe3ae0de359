"""Step 1, without an account: gather source files from your own folders into one Parquet file.

    python ingestion/ingest_folder.py                        (the standard library of the running Python)
    python ingestion/ingest_folder.py ~/projects --pattern '*.py'

Reads   the folders given; without one, Python's own standard library, except for its test suites
        and its tables of characters
Writes  data/parquet/folder.parquet: one row per file, with the columns content and path
Next    python scripts/extract_parquets_to_text.py

Text is UTF-8, or what the file declares: Python's own files by a `# -*- coding: ... -*-` line, as Python reads them,
others by such a line only if they are not UTF-8. Hidden files and folders, virtual environments and links to folders
are left out; whatever is left out is counted and named.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

import argparse
import fnmatch
import hashlib
import platform
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path

from tqdm import tqdm

from config import CHAR
from plumbing.command_line import ScriptParser, add_flags
from plumbing.errors import UserError, run_script
from plumbing.inputs import LeftOut, find_files
from plumbing.text import byte_size, plural, printable, shown_path

DECLARING = {".py", ".pyi", ".pyw", ".pyx", ".pxd", ".pxi"}  # Python and Cython
SKIPPED_FOLDERS = {"__pycache__", "node_modules", "site-packages", "dist-packages"}
# Folders and files of the standard library, a third of it: tests, and tables of characters, which have line after line
# like `0x00c1: 0x00c1,  # LATIN CAPITAL LETTER A WITH ACUTE`.
NO_PROSE = {"test", "tests", "idle_test", "encodings", "entities.py"}


def why_not_source(pattern: str, skipped: set[str], path: Path) -> str:
    """For find_files(): why a file or folder below a folder is left out."""
    if not os.path.isdir(path):
        if path.name in skipped:
            return "tables of characters"
        return "" if fnmatch.fnmatchcase(path.name.lower(), pattern.lower()) else f"not {pattern}"
    if os.path.exists(path / "pyvenv.cfg"):
        return "virtual environments: other people's packages"
    return "folders of packages, tests or compiled files" if path.name in skipped else ""


def decode_source(data: bytes, path: Path) -> str:
    """The text of a source file. Raises SyntaxError, LookupError or ValueError if its encoding is unknown or another
    one than declared."""
    if path.suffix.lower() not in DECLARING:
        with suppress(UnicodeDecodeError):
            return data.decode("utf-8-sig")
    encoding, _ = tokenize.detect_encoding(BytesIO(data).readline)  # the one that the file declares (PEP 263)
    return data.decode(encoding)


def read_source(path: Path, max_bytes: int, seen: set[bytes]) -> tuple[str | None, str]:
    """The text of a file, or None and the reason to leave it out. `seen` has the hashes of the files taken so far."""
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
        text = decode_source(data, path)
        if not text.strip():  # only a byte order mark, say
            return None, "empty"
        digest = hashlib.sha256(text.encode()).digest()
    except (SyntaxError, LookupError, ValueError):
        return None, "undecodable"
    if digest in seen:
        return None, "duplicate"
    seen.add(digest)
    return text, ""


def gather(folders: list[Path], skipped: set[str], args: argparse.Namespace, left_out: LeftOut) -> Iterator:
    """Yield (text, path below its folder) for each file to take, and count the reasons to leave others out."""
    seen: set[bytes] = set()
    for folder in folders:
        found = find_files([folder], partial(why_not_source, args.pattern, skipped), left_out)
        for path in tqdm(found, unit=" files", delay=2):
            text, reason = read_source(path, args.max_bytes, seen)
            if text is None:
                left_out.add(reason, shown_path(path))
                continue
            name = path.relative_to(folder)
            if args.debug and len(seen) <= 3:
                print(f"  {printable(str(name))}: {len(text.encode()):,} bytes, {text.count(chr(10)):,} lines")
            yield text, name
    if not seen:
        reasons = ". ".join(left_out.lines()) or "none found"
        raise UserError(
            f"No file matching {args.pattern!r} was taken. Left out: {reasons}.{other_pattern(folders, skipped)}"
        )


def other_pattern(folders: list[Path], skipped: set[str]) -> str:
    """What to type for the files that there are, or an empty text."""
    why_not = partial(why_not_source, "*", skipped)
    endings = Counter(path.suffix.lower() for path in find_files(folders, why_not, LeftOut()) if path.suffix)
    names = ", ".join(f"--pattern '*{ending}' ({count:,})" for ending, count in endings.most_common(3))
    return f" There are files for {names}." if names else ""


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="folders to gather from")
    parser.add_argument("--pattern", default="*.py", help="names of the files to take [%(default)s]")
    parser.add_argument("--max-bytes", type=int, default=1_000_000, help="leave out longer files [%(default)s]")
    parser.add_argument("--output", type=Path, default=CHAR.parquet_dir / "folder.parquet", help="file to write")
    add_flags(parser, CHAR, "debug")
    args = parser.parse_args()

    from plumbing.parquet import show_extraction, write_parquet

    folders = args.folders or [Path(sysconfig.get_path("stdlib"))]
    for folder in folders:
        if not folder.is_dir():
            way_out = " For one text, you need no ingestion: name it with --corpus from step 4 on."
            raise UserError(f"{shown_path(folder)} is not a folder.{way_out if folder.is_file() else ''}")
        name = shown_path(folder) if args.folders else f"the standard library of Python {platform.python_version()}"
        print(f"Gathering {args.pattern} from {name}")

    skipped = SKIPPED_FOLDERS if args.folders else SKIPPED_FOLDERS | NO_PROSE
    left_out = LeftOut()
    files, size = write_parquet(args.output, gather(folders, skipped, args, left_out))
    left_out.show()
    print(f"{plural(files, 'file')}, {byte_size(size)} of text, in {shown_path(args.output)}")
    show_extraction(args.output, CHAR.parquet_dir)


if __name__ == "__main__":
    run_script(main)
