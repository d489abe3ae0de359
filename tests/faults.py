"""Ways to break things on purpose: processes that are killed and disks that are full, at the Nth call or the Nth byte;
files that are damaged."""

import contextlib
import io
import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from plumbing import files
from plumbing.files import checksum


def runs(quick: int, full: int):
    """Run a test with the argument `number`: a few in every run of the tests, all of them with `pytest -m soak`."""
    return pytest.mark.parametrize("number", [quick, pytest.param(full, marks=pytest.mark.soak)])


def start(function: Callable, errors: Path | None = None) -> int:
    """Run a function in a copy of this process, which has torch imported already. Returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        if errors is not None:
            os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            sys.stderr = open(2, "w", encoding="utf-8", buffering=1)  # noqa: SIM115 (until the end of the process)
        code = function() or 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def end_of(pid: int) -> int:
    """Wait for the end of a process: its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Faults:
    """Counts the calls and bytes with which whole_file() writes. At one of them, a fault: this process is killed, or,
    where `error` is an errno, the call fails with it, and so do all further ones until the context is left.
    """

    def __init__(self, at_call: int = 0, at_byte: int = -1, error: int | None = None):
        self.at_call, self.at_byte, self.error = at_call, at_byte, error
        self.calls = self.bytes = 0

    def strike(self) -> None:
        if self.error is None:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(self.error, os.strerror(self.error))

    def count(self) -> None:
        self.calls += 1
        if self.calls == self.at_call or (self.error is not None and 0 < self.at_call < self.calls):
            self.strike()

    @contextlib.contextmanager
    def __call__(self):
        with pytest.MonkeyPatch.context() as patch:
            for name in ("fsync", "replace", "unlink"):
                if name == "unlink" and self.error is not None:
                    continue  # a full disk lets files be removed
                patch.setattr(os, name, self.counted(getattr(os, name)))
            patch.setattr(files, "open_early", self.open)
            yield self

    def counted(self, function: Callable) -> Callable:
        def call(*args, **kwargs):
            self.count()
            return function(*args, **kwargs)

        return call

    def open(self, path, mode, real=files.open_early):
        if mode != "wb":
            return real(path, mode)
        self.count()
        return FaultyFile(path, self)


class FaultyFile(io.FileIO):
    """A file without a buffer, so that a kill leaves just what was written."""

    def __init__(self, path, faults: Faults):
        super().__init__(path, "w")
        self.faults = faults

    def write(self, data) -> int:
        self.faults.count()
        data = memoryview(data).cast("B")
        if 0 <= self.faults.at_byte < self.faults.bytes + len(data):
            super().write(data[: max(0, self.faults.at_byte - self.faults.bytes)])
            self.faults.strike()
        self.faults.bytes += len(data)
        return super().write(data)


def change_sidecar(path: Path, **facts) -> None:
    """Give the description beside a token file other facts, and the checksum that belongs to them."""
    beside = path.with_name(path.name + ".json")
    content = json.loads(beside.read_text("utf-8")) | facts
    del content["crc32"]
    beside.write_text(json.dumps({**content, "crc32": checksum(content)}), "utf-8")


def left_over(folder: Path) -> list[Path]:
    """The temporary files in a folder."""
    return list(folder.rglob("*.tmp"))


def damaged(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A file's bytes with one of the damages that disks and copies do. `other` is another file of about its size."""
    data, damage = bytearray(data), rng.randrange(7)
    at = rng.randrange(len(data))
    if damage == 0:
        return bytes(data[:at])
    if damage == 1:
        data[at] ^= 1 << rng.randrange(8)
    elif damage == 2:
        for _ in range(20):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif damage == 3:
        data[at:] = bytes(len(data) - at)
    elif damage == 4:
        data[at:] = other[at:]
    elif damage == 5:
        data[at : at + 512] = bytes(len(data[at : at + 512]))
    else:
        data[at:at] = rng.randbytes(rng.randrange(1, 100))
    return bytes(data)


@contextlib.contextmanager
def unflushed_names():
    """A set of the folders in which a name could be lost to a power failure at this moment: one was made or renamed
    there since the folder was last flushed."""
    dirty: set[str] = set()
    real = {name: getattr(os, name) for name in ("mkdir", "rename", "replace", "fsync")}

    def changing(name: str) -> Callable:
        def call(*paths, **options):
            result = real[name](*paths, **options)
            dirty.update(os.path.dirname(os.path.realpath(path)) for path in paths if isinstance(path, str | Path))
            return result

        return call

    def fsync(file):
        real["fsync"](file)
        dirty.discard(os.readlink(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}"))

    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "rename", "replace"):
            patch.setattr(os, name, changing(name))
        patch.setattr(os, "fsync", fsync)
        yield dirty
