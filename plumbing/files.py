"""Atomic writes: a file is written under a temporary name, locked, flushed to the disk, and then renamed."""

import errno
import glob
import io
import json
import os
import re
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from plumbing.errors import UserError
from plumbing.text import shown_path

if os.name == "posix":
    import fcntl
    import resource
else:
    import msvcrt

CHUNK = 1 << 20  # bytes read at once
TEMPORARY = r"\.[0-9a-f]{16}\.tmp"  # what whole_file() appends to a name
WRITTEN_EARLY = 1 << 24  # 16 MB: bytes that the system gets at once to write them to the disk
OTHER_FILES = 256  # that a process may have open, beside those it asks for with allow_open_files()


def check_replaceable(path: Path) -> None:
    """Raise UserError or OSError if whole_file() could not write `path` here: before the work whose result it is."""
    if path.exists() and not path.is_file():  # a folder, or a device such as /dev/null, which a rename would replace
        raise UserError(f"{shown_path(path)} is not a file that can be replaced. Name another one.")
    try:
        make_folder(path.parent)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, shown_path(path)) from None


@contextmanager
def whole_file(path: Path, journal=None, check: Callable[[Path], object] | None = None):
    """Open a binary file that appears under `path` only if the block ends without an error. It is written in the same
    folder as `path`.RANDOM.tmp, flushed to the disk, then renamed. If the run is killed or the disk fills up, the
    earlier file is unchanged. The next run removes what a killed one left. With a journal (plumbing.journal.Journal)
    it continues that file instead, after the bytes that the journal counts as finished. Where `path` is a symbolic
    link, the file that it names is replaced, and the link stays. Before the rename, check() may look at the finished
    file under its temporary name; if it raises an error, the earlier file is unchanged."""
    path = real_path(path)
    check_replaceable(path)
    with explaining_disk_errors(path):
        temporary, file = continued_file(path, journal) if journal else temporary_file(path)
        try:
            with file:
                yield file
                flush_to_disk(file)  # or the rename could reach the disk before the bytes
            if check:
                check(temporary)
            rename(temporary, path)
        except BaseException:
            if not (journal and journal.saved):
                temporary.unlink(missing_ok=True)
            raise


class EarlyFile(io.FileIO):
    """A file that the system starts to write to the disk while more bytes come, not only when it is flushed. So the
    flush at the end has little to wait for."""

    waiting = 0  # bytes since the system was last told to start

    def write(self, data) -> int:
        written = super().write(data)
        self.waiting += written
        if self.waiting >= WRITTEN_EARLY and hasattr(os, "posix_fadvise"):
            # Linux starts to write what it is advised to forget, and forgets only what is already on the disk.
            with suppress(OSError):
                os.posix_fadvise(self.fileno(), self.tell() - self.waiting, self.waiting, os.POSIX_FADV_DONTNEED)
            self.waiting = 0
        return written


def open_early(path: Path, mode: str) -> BinaryIO:
    """open() with an EarlyFile and a buffer of 1 MB, to write ("wb") or also to read ("r+b")."""
    raw = EarlyFile(path, mode)
    return (io.BufferedRandom if raw.readable() else io.BufferedWriter)(raw, 1 << 20)


def temporary_file(path: Path) -> tuple[Path, BinaryIO]:
    """A new file beside `path` to write to, locked to show that its writer is alive, after removing those of writers
    that were killed. The name is random: process ids are not, where two containers share a folder."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.tmp"):
        if re.fullmatch(TEMPORARY, left.name.removeprefix(path.name)):
            remove_abandoned(left)
    while True:
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
        if file := open_locked(temporary):  # else another run took it for abandoned
            return temporary, file


def continued_file(path: Path, journal) -> tuple[Path, BinaryIO]:
    temporary = journal.unfinished(path)
    file = open_early(temporary, "r+b" if temporary.exists() else "wb")
    file.seek(file.truncate(journal.size(path)))
    return temporary, file


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold the lock of an output while the block runs: of one that consists of several files, or that a later run
    continues. Raises UserError if another process holds it."""
    path = real_path(path)
    make_folder(path.parent)
    name = path.with_name(f"{path.name}.lock.tmp")
    with explaining_disk_errors(path):
        lock = open_locked(name)
    if lock is None:
        raise UserError(f"Another run is writing {shown_path(path)}. Wait for it, or name another output.")
    try:
        yield
    finally:
        with suppress(OSError), lock:  # removed while it is locked; Windows does not remove an open file
            name.unlink()


def real_path(path: Path) -> Path:
    """The absolute path without symbolic links. Unlike Path.resolve(), it takes links that go round in a circle."""
    return Path(os.path.realpath(path))


def checksum(entry: dict) -> int:
    """CRC-32 of a dict, as JSON spells it: for small files and lines that say what is in a larger one."""
    return zlib.crc32(json.dumps(entry).encode())


def flush_to_disk(file) -> None:
    file.flush()
    os.fsync(file.fileno())


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, and flush their names to the disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with explaining_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in [*missing, folder]:  # `folder` also if it exists: a run may have been killed before it was flushed
            flush_names(path.parent)


def rename(source: Path, target: Path) -> None:
    """Rename a file or folder, replacing a file at `target`, and flush both names to the disk."""
    os.replace(source, target)
    for folder in {target.parent, source.parent}:
        flush_names(folder)


def flush_names(folder: Path) -> None:
    """Flush the names in a folder to the disk: without it, a power failure can undo a rename or a new name in it."""
    if os.name != "posix":  # Windows cannot open a folder
        return
    try:
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
    except OSError as error:  # a folder above ours that may be used but not read, or a system that flushes none
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EINVAL, errno.EROFS):
            raise


def try_lock(file) -> bool:
    """Lock an open file until it is closed or the process ends, however it ends. False if another process holds it;
    True also on a file system without locks, where nobody is warned."""
    try:
        if os.name == "posix":
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass
    return True


def allow_open_files(count: int) -> None:
    """Let this process have so many files open at once. Raises UserError if the system does not allow it."""
    if os.name != "posix":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted, unlimited = count + OTHER_FILES, resource.RLIM_INFINITY
    if unlimited != hard < wanted:
        raise UserError(f"{count:,} files are too many to open at once, the system allows {hard:,}. Merge some first.")
    if unlimited != soft < wanted:
        with suppress(ValueError):  # a system with a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def open_locked(path: Path) -> BinaryIO | None:
    """Make a file, or empty the one that is there, and lock it. Returns None if another process holds its lock."""
    while True:
        file = open_early(path, "wb")
        if not try_lock(file):
            file.close()
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # it was moved or removed before we had the lock, which would keep nobody out


def remove_abandoned(temporary: Path) -> None:
    """Remove a temporary file if its writer was killed."""
    with suppress(OSError):  # already gone
        with open(temporary, "r+b") as file:
            abandoned = try_lock(file)
            if abandoned and os.name == "posix":  # while it is locked, so that a writer that is just starting notices
                temporary.unlink()
        if abandoned and os.name != "posix":  # Windows does not remove an open file
            temporary.unlink()


@contextmanager
def explaining_disk_errors(path: Path):
    """Wrap the writing of a file: add the file's name and the free space to the error of a full or broken disk, which
    the system leaves out."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO) or error.filename:
            raise
        folder = next(folder for folder in path.absolute().parents if folder.exists())
        free = shutil.disk_usage(folder).free / 1e6
        reason = f"{error.strerror}, with {free:,.0f} MB free; earlier files are unchanged"
        raise OSError(error.errno, reason, shown_path(path)) from None
