"""How far a long step has come, so that the same command resumes it."""

import json
import time
from contextlib import suppress
from pathlib import Path

from plumbing.errors import UserError
from plumbing.files import flush_to_disk, try_lock, whole_file
from plumbing.text import shown_path

SECONDS = 5.0  # between entries in the journal: what a killed run can lose


class Journal:
    """How far a long step has come, in a file beside its outputs, so that the same command goes on from there.

    `state` is what the last run had noted (None: begin at the beginning). It counts only where everything that the
    result depends on is the same, and never says more than what is on the disk.
    """

    def __init__(self, outputs: list[Path], depends_on: list):
        self.outputs = [Path(path) for path in outputs]
        self.path = self.outputs[0].with_name(self.outputs[0].name + ".journal.tmp")
        depends_on = [[path.resolve() for path in self.outputs], depends_on]
        self.depends_on = json.loads(json.dumps(depends_on, default=str))
        self.state, self.sizes, self.saved, self.last = None, {}, False, time.monotonic()
        for path in map(self.unfinished, self.outputs):
            with suppress(OSError), open(path, "r+b") as file:
                if not try_lock(file):
                    raise UserError(f"Another run is writing {shown_path(path)}. Wait for it, or name another output.")
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(self.path.read_text("utf-8"))
            sizes = dict(zip(self.outputs, content["sizes"], strict=True))
            whole = all(self.unfinished(path).stat().st_size >= size for path, size in sizes.items())
            if content["depends_on"] == self.depends_on and whole:
                self.state, self.sizes, self.saved = content["state"], sizes, True

    def unfinished(self, path: Path) -> Path:
        """Under which name an output is written."""
        return path.with_name(path.name + ".unfinished.tmp")

    def size(self, path: Path) -> int:
        """How many bytes of it are finished."""
        return self.sizes.get(path, 0)

    def note(self, files: list, state: dict) -> None:
        """A piece is written to the open files: every few seconds, say so on the disk, after the files themselves."""
        if time.monotonic() - self.last < SECONDS:
            return
        for file in files:
            flush_to_disk(file)
        sizes = [file.tell() for file in files]
        with whole_file(self.path) as file:
            file.write(json.dumps({"depends_on": self.depends_on, "sizes": sizes, "state": state}).encode())
        self.saved, self.last = True, time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        """At the end, and at an error that running again would meet again, nothing is left. A run that was stopped, or
        found the disk full, leaves what it has finished."""
        if kind is None or issubclass(kind, UserError):
            for path in (self.path, *map(self.unfinished, self.outputs)):
                path.unlink(missing_ok=True)


def identity(path: Path) -> list:
    """What tells that an input file is still the same: its path, size and time of change."""
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]
