"""Which files a script reads: those that were named, and those below named folders. What is left out is counted, and
named by reason."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from plumbing.errors import UserError
from plumbing.text import printable, shown_path


class Unchanged:
    """Input files as they are now. compare() raises UserError if one has been replaced or changed since then, because a
    result would then be of two different texts. As a context manager it compares at the end, and after an error, which
    such a change may have caused."""

    def __init__(self, *paths: Path):
        self.files = {path: fingerprint(path) for path in paths}

    def compare(self) -> None:
        for path, before in self.files.items():
            if fingerprint(path) != before:
                raise UserError(f"{shown_path(path)} was replaced or changed while it was read. Run this again.")

    def __enter__(self):
        return self

    def __exit__(self, error_type, error, traceback):
        if error_type is None or issubclass(error_type, Exception):
            self.compare()


def fingerprint(file: Path | int) -> tuple[int, int, int] | None:
    """What changes when a file is written to or another one takes its name: size and times; None if there is none.
    Renaming sets the time of the last change of status, whatever time of modification a copy has kept."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def state_of(file: BinaryIO) -> tuple[int, int]:
    """What changes when an open file is written to, and not when another one takes its name: size and time."""
    return fingerprint(file.fileno())[:2]


class LeftOut:
    """What a script leaves out, by reason."""

    def __init__(self):
        self.reasons: dict[str, Counter[str]] = defaultdict(Counter)

    def add(self, reason: str, name: str | Path) -> None:
        """Count something by its reason. `name` is its name, or an ending that it shares with others."""
        self.reasons[reason][printable(str(name))] += 1

    def lines(self) -> list[str]:
        """One text per reason, the most common first: "not Parquet: 3 (.md 2, .json)"."""
        texts = []
        for reason, names in sorted(self.reasons.items(), key=lambda item: -item[1].total()):
            some = [f"{name} {count:,}" if count > 1 else name for name, count in names.most_common(3)]
            while len(some) > 1 and len(", ".join(some)) > 50:
                some.pop()
            more = ", ..." if len(names) > len(some) else ""
            texts.append(f"{reason}: {names.total():,} ({', '.join(some)}{more})")
        return texts

    def sentences(self) -> str:
        """The same for an error: " Left out, not Parquet: 3 (.md 2, .json)."."""
        return "".join(f" Left out, {line}." for line in self.lines())

    def show(self) -> None:
        for line in self.lines():
            print(f"  left out, {line}")


def find_files(given: Iterable[Path], why_not: Callable[[Path], str], left_out: LeftOut) -> Iterator[Path]:
    """Yield the files given and those below the folders given, sorted, each file once, whatever its name looks like. Of
    a folder, why_not(path) says why one of its files or folders is left out, or "". A link that leads nowhere is
    yielded, because reading it names it. Raises UserError for a path that does not exist, or is a pipe or a device."""
    seen = set()
    for path in given:
        if not path.exists():
            raise UserError(f"There is no {shown_path(path)}.")
        if not (path.is_file() or path.is_dir()):
            raise UserError(f"{shown_path(path)} is neither a file nor a folder. Save what it gives to a file first.")
        for file in sorted(files_below(path, why_not, left_out)) if path.is_dir() else [path]:
            if os.path.exists(file):
                status = os.stat(file)
                if (status.st_dev, status.st_ino) in seen:
                    left_out.add("the same file again", shown_path(file))
                    continue
                seen.add((status.st_dev, status.st_ino))
            yield file


def files_below(folder: Path, why_not: Callable[[Path], str], left_out: LeftOut) -> Iterator[Path]:
    """Yield the files below a folder. Links to folders are not followed, so a loop of links does no harm."""
    unreadable = lambda error: left_out.add("folders that cannot be opened", shown_path(error.filename))  # noqa: E731
    for parent, folders, names in os.walk(folder, onerror=unreadable):
        for path in (Path(parent) / name for name in names):
            if path.name.startswith("."):
                left_out.add("hidden", shown_path(path))
            elif os.path.exists(path) and not os.path.isfile(path):
                left_out.add("not a regular file", shown_path(path))
            elif reason := why_not(path):
                left_out.add(reason, path.suffix or "no ending")
            else:
                yield path
        inner, folders[:] = [Path(parent) / name for name in folders], []
        for path in inner:
            hidden, link = path.name.startswith("."), path.is_symlink()
            if reason := "hidden" if hidden else "links to folders" if link else why_not(path):
                left_out.add(reason, shown_path(path))
            else:
                folders.append(path.name)


def why_not_parquet(path: Path) -> str:
    """For find_files(): why a file or folder below a folder holds no Parquet; folders with _ are Spark's own."""
    if path.is_dir():
        return "hidden" if path.name.startswith("_") else ""
    return "" if path.suffix.lower() == ".parquet" else "not Parquet"


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files below a folder, sorted; none if it does not exist."""
    return list(find_files([folder], why_not_parquet, LeftOut())) if folder.is_dir() else []
