"""Which files a script reads: those that were named, and those below named folders. What is left out is counted, and
named by reason."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from plumbing.errors import UserError
from plumbing.text import shown_path


class LeftOut:
    """What a script leaves out, by reason."""

    def __init__(self):
        self.reasons: dict[str, Counter[str]] = defaultdict(Counter)

    def add(self, reason: str, name: str | Path) -> None:
        """Count something by its reason. `name` is its name, or an ending that it shares with others."""
        self.reasons[reason][os.fsencode(name).decode("utf-8", errors="backslashreplace")] += 1

    def lines(self) -> list[str]:
        """One text per reason, the most common first: "not Parquet: 3 (.md 2, .json)"."""
        texts = []
        for reason, names in sorted(self.reasons.items(), key=lambda item: -item[1].total()):
            some = [f"{name} {count:,}" if count > 1 else name for name, count in names.most_common(3)]
            texts.append(f"{reason}: {names.total():,} ({', '.join(some)}{', ...' if len(names) > 3 else ''})")
        return texts

    def show(self) -> None:
        for line in self.lines():
            print(f"  left out, {line}")


def ending(name: str | Path) -> str:
    """The ending of a file's name as messages show it."""
    return "".join(Path(name).suffixes[-2:]) or "no ending"


def find_files(given: Iterable[Path], why_not: Callable[[Path], str], left_out: LeftOut) -> Iterator[Path]:
    """Yield the files given and those below the folders given, each file once, whatever its name looks like. Of a
    folder, why_not(path) says why one of its files or folders is left out, or "". A link that leads nowhere is yielded,
    because reading it names it. Raises UserError for a path that does not exist or is a pipe or a device."""
    seen = set()
    for path in given:
        if not path.exists():
            raise UserError(f"There is no {shown_path(path)}.")
        if not (path.is_file() or path.is_dir()):
            raise UserError(f"{shown_path(path)} is neither a file nor a folder. Save what it gives to a file first.")
        for file in files_below(path, why_not, left_out) if path.is_dir() else [path]:
            status = os.stat(file) if os.path.exists(file) else None
            if status and (status.st_dev, status.st_ino) in seen:
                left_out.add("the same file again", shown_path(file))
                continue
            if status:
                seen.add((status.st_dev, status.st_ino))
            yield file


def files_below(folder: Path, why_not: Callable[[Path], str], left_out: LeftOut) -> Iterator[Path]:
    """Yield the files below a folder, each folder's own ones first, sorted. Links to folders are not followed, so a
    loop of links does no harm."""
    unreadable = lambda error: left_out.add("folders that cannot be opened", shown_path(error.filename))  # noqa: E731
    for parent, folders, names in os.walk(folder, onerror=unreadable):
        taken = []
        for name in sorted([*folders, *names]):
            path = Path(parent) / name
            if name.startswith("."):
                left_out.add("hidden", shown_path(path))
            elif name in folders and path.is_symlink():
                left_out.add("links to folders", shown_path(path))
            elif name in names and os.path.exists(path) and not os.path.isfile(path):
                left_out.add("not a regular file", shown_path(path))
            elif reason := why_not(path):
                left_out.add(reason, ending(path) if name in names else shown_path(path))
            elif name in names:
                yield path
            else:
                taken.append(name)
        folders[:] = taken


def why_not_parquet(path: Path) -> str:
    """For find_files(): why a file or folder below a folder holds no Parquet; folders with _ are Spark's own."""
    if path.is_dir():
        return "hidden" if path.name.startswith("_") else ""
    return "" if path.suffix.lower() == ".parquet" else "not Parquet"


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files below a folder, sorted; none if it does not exist."""
    return sorted(find_files([folder], why_not_parquet, LeftOut())) if folder.is_dir() else []
