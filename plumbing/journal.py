"""A journal of how far a long step has come, so that the same command resumes it after a kill."""

import json
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from plumbing.errors import UserError
from plumbing.files import flush_to_disk, only_writer, real_path, whole_file

SECONDS = 5.0  # between journal entries: a killed run loses at most this much work


class Journal:
    """A file beside the outputs of a step that says how much of them is finished. `state` is what the last run noted,
    or None if this run starts from the beginning. It is used only if everything that the result depends on is
    unchanged, and it never counts bytes that are not on the disk."""

    def __init__(self, outputs: list[Path], depends_on: list):
        self.outputs = [real_path(path) for path in outputs]
        self.path = self.outputs[0].with_name(self.outputs[0].name + ".journal.tmp")
        self.depends_on = json.loads(json.dumps([self.outputs, depends_on], default=str))
        self.state, self.sizes, self.saved, self.last = None, {}, False, time.monotonic()
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
            sizes = dict(zip(self.outputs, content["sizes"], strict=True))
            complete = all(self.unfinished(path).stat().st_size >= size for path, size in sizes.items())
            if content["depends_on"] == self.depends_on and complete:
                self.state, self.sizes, self.saved = content["state"], sizes, True

    def unfinished(self, path: Path) -> Path:
        return path.with_name(path.name + ".unfinished.tmp")

    def size(self, path: Path) -> int:
        return self.sizes.get(path, 0)

    def note(self, files: list, state: dict) -> None:
        """Write an entry, at most every few seconds: the open files are finished up to here, and `state` is what a
        resumed run needs to continue. The files reach the disk before the entry does."""
        if time.monotonic() - self.last < SECONDS:
            return
        for file in files:
            flush_to_disk(file)
        sizes = [file.tell() for file in files]
        with whole_file(self.path) as file:
            file.write(json.dumps({"depends_on": self.depends_on, "sizes": sizes, "state": state}).encode())
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
