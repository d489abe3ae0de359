"""Atomic writes: a file is written under a temporary name, locked, flushed to the disk, and then renamed."""

import errno
import glob
import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

from plumbing.errors import UserError
from plumbing.text import shown_path

if os.name == "posix":
    import fcntl
else:
    import msvcrt

CHUNK = 1 << 20  # bytes read at once


@contextmanager
def whole_file(path: Path, journal=None):
    """Open a binary file that appears under `path` only if the block ends without an error. It is written in the same
    folder as `path`.PROCESS.tmp, flushed to the disk, then renamed. If the run is killed or the disk fills up, the
    earlier file is unchanged. The next run removes what a killed one left. With a journal (plumbing.journal.Journal)
    it continues that file instead, after the bytes that the journal counts as finished."""
    path = Path(path)
    if path.exists() and not path.is_file():  # a folder, or a device such as /dev/null, which a rename would replace
        raise UserError(f"{shown_path(path)} is not a file that can be replaced. Name another one.")
    make_folder(path.parent)
    if journal:
        temporary = journal.unfinished(path)
    else:
        remove_abandoned(path)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two processes never share one
    try:
        with explaining_disk_errors(path):
            with open(temporary, "r+b" if temporary.exists() else "wb", buffering=1 << 20) as file:
                try_lock(file)  # shows other runs that its writer is alive
                file.seek(file.truncate(journal.size(path) if journal else 0))
                yield file
                flush_to_disk(file)  # or the rename could reach the disk before the bytes
            rename(temporary, path)
    finally:
        if not (journal and journal.saved):
            temporary.unlink(missing_ok=True)


def flush_to_disk(file) -> None:
    file.flush()
    os.fsync(file.fileno())


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, and flush their names to the disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*missing, folder]:  # `folder` also if it is there: a run could have been killed before it was flushed
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
    with suppress(PermissionError):  # a folder above ours that may be used but not read
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


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


def remove_abandoned(path: Path) -> None:
    """Remove temporary files of `path` whose writers were killed."""
    for temporary in path.parent.glob(f"{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError):  # already gone, or Windows, which keeps open files
            with open(temporary, "ab") as file:
                abandoned = try_lock(file)
            if abandoned:
                temporary.unlink()


@contextmanager
def explaining_disk_errors(path: Path):
    """Wrap the writing of a file: add the file's name and the free space to the error of a full or broken disk, which
    the system leaves out."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        free = shutil.disk_usage(path.parent).free / 1e6
        reason = f"{error.strerror}, with {free:,.0f} MB free; earlier files are unchanged"
        raise OSError(error.errno, reason, shown_path(path)) from None
