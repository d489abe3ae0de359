"""A journal of how far a long step has come, so that the same command resumes it after a kill."""

import json
import time
import zlib
from contextlib import ExitStack, suppress
from pathlib import Path

from plumbing.errors import UserError
from plumbing.files import CHUNK, checksum, flush_to_disk, only_writer, real_path, whole_file

SECONDS = 5.0  # between journal entries: a killed run loses at most this much work


class Journal:
    """A file beside the outputs of a step that says how much of them is finished. `state` is what the last run noted,
    or None if this run starts from the beginning. It is used only if everything that the result depends on is
    unchanged, it never counts bytes that are not on the disk, and it has a checksum of those and of itself."""

    def __init__(self, outputs: list[Path], depends_on: list):
        self.outputs = [real_path(path) for path in outputs]
        self.path = self.outputs[0].with_name(self.outputs[0].name + ".journal.tmp")
        self.depends_on = json.loads(json.dumps([self.outputs, depends_on], default=str))
        self.state, self.sizes, self.crcs, self.saved, self.last = None, {}, {}, False, time.monotonic()
        self.locks = ExitStack()

    def __enter__(self):
        """Lock the outputs until the end, and read what an earlier run noted. Raises UserError if another run is
        writing one of them."""
        with ExitStack() as locks:
            for path in self.outputs:
                locks.enter_context(only_writer(path))
            self.locks = locks.pop_all()
        self.read()
        return self

    def read(self) -> None:
        with suppress(OSError, ValueError, KeyError, TypeError):  # no journal, or a damaged one
            content = json.loads(self.path.read_text("utf-8"))
            if content.pop("crc32") != checksum(content) or content["depends_on"] != self.depends_on:
                return
            sizes = dict(zip(self.outputs, content["sizes"], strict=True))
            crcs = {path: self.crc_up_to(path, size) for path, size in sizes.items()}
            if list(crcs.values()) == content["crcs"]:  # else a file is shorter, or damaged: it is made anew
                self.state, self.sizes, self.crcs, self.saved = content["state"], sizes, crcs, True

    def unfinished(self, path: Path) -> Path:
        return path.with_name(path.name + ".unfinished.tmp")

    def size(self, path: Path) -> int:
        return self.sizes.get(path, 0)

    def crc_up_to(self, path: Path, size: int) -> int | None:
        """CRC-32 of the first `size` bytes of an unfinished file; None if it is shorter. Reads only what is new."""
        crc, at = self.crcs.get(path, 0), self.sizes.get(path, 0)
        with open(self.unfinished(path), "rb") as file:
            file.seek(at)
            while at < size and (data := file.read(min(CHUNK, size - at))):
                crc, at = zlib.crc32(data, crc), at + len(data)
        return crc if at == size else None

    def note(self, files: list, state: dict) -> None:
        """Write an entry, at most every few seconds: the open files are finished up to here, and `state` is what a
        resumed run needs to continue. The files reach the disk before the entry does."""
        if time.monotonic() - self.last < SECONDS:
            return
        for file in files:
            flush_to_disk(file)
        sizes = {path: file.tell() for path, file in zip(self.outputs, files, strict=True)}
        self.crcs = {path: self.crc_up_to(path, size) for path, size in sizes.items()}
        self.sizes = sizes
        lists = {"sizes": list(sizes.values()), "crcs": list(self.crcs.values())}
        entry = json.loads(json.dumps({"depends_on": self.depends_on, **lists, "state": state}))
        with whole_file(self.path) as file:
            file.write(json.dumps({**entry, "crc32": checksum(entry)}).encode())
        self.saved, self.last = True, time.monotonic()

    def __exit__(self, error_type, error, traceback):
        """Remove the journal and unfinished outputs at the end, and after a UserError, which the next run would meet
        again. A run that was stopped or found the disk full leaves them, to be resumed."""
        if error_type is None or issubclass(error_type, UserError):
            for path in (self.path, *map(self.unfinished, self.outputs)):
                path.unlink(missing_ok=True)
        self.locks.close()


def identity(path: Path) -> list:
    """What identifies an unchanged input file: its path, size and time of modification."""
    status = path.stat()
    return [str(real_path(path)), status.st_size, status.st_mtime_ns]
