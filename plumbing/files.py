"""Files that are whole or not there: written under a temporary name, locked, flushed, renamed."""

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
    """Open a binary file that appears under `path` only when the block ends without an error.

    It is written in the same folder as `path`.PROCESS.tmp, flushed to the disk, then renamed: a run that is killed, or
    a disk that fills up, leaves the earlier file as it was. What a killed run left is removed by the next one, or, with
    a journal (pieces.Journal), taken up: the file then opens behind the bytes that the journal vouches for.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a folder, or a device such as /dev/null, which a rename would replace
        raise UserError(f"{shown_path(path)} is not a file that can be replaced. Name another one.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if journal:
        temporary = journal.unfinished(path)
    else:
        remove_abandoned(path)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # no two processes write into the same one
    try:
        with explaining_disk_errors(path):
            with open(temporary, "r+b" if temporary.exists() else "wb", buffering=1 << 20) as file:
                try_lock(file)  # tells others that its writer lives
                file.seek(file.truncate(journal.size(path) if journal else 0))
                yield file
                flush_to_disk(file)  # the bytes before the name: a rename can reach the disk first
            os.replace(temporary, path)
            if os.name == "posix":  # and then the name itself; Windows cannot open a folder
                folder = os.open(path.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
    finally:
        if not (journal and journal.saved):
            temporary.unlink(missing_ok=True)


def flush_to_disk(file) -> None:
    """Hand what is buffered to the system, and have the system write it."""
    file.flush()
    os.fsync(file.fileno())


def try_lock(file) -> bool:
    """Lock an open file until it is closed or the process ends, however it ends. False where another holds it.

    True as well on a file system that has no locks: there, nobody is warned.
    """
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
    """Remove the temporary files of `path` whose writers have been killed."""
    for temporary in path.parent.glob(f"{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError):  # gone meanwhile, or held by a system that does not let go of open files
            with open(temporary, "ab") as file:
                abandoned = try_lock(file)
            if abandoned:
                temporary.unlink()


@contextmanager
def explaining_disk_errors(path: Path):
    """Around writing a file: the error of a full or broken disk gets the file's name and the space left, which the
    system does not say."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        free = shutil.disk_usage(path.parent).free / 1e6
        reason = f"{error.strerror}, with {free:,.0f} MB free; what was written before is whole"
        raise OSError(error.errno, reason, shown_path(path)) from None
