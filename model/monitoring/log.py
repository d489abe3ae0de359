"""log.jsonl: the figures of a run, one JSON object per line."""

import json
import zlib
from pathlib import Path

from model.storage.checks import is_integer
from plumbing.files import explaining_disk_errors, whole_file
from plumbing.text import shown_path


class Log:
    """log.jsonl: one JSON object a line. A run resumed at `step` takes out what came after that; a new run, whose
    step is None, takes out everything.

    What is read back carries a checksum, and without one, or with a wrong one, a line is not believed. Where `folder`
    is None, nothing is read or written: for a process that is not the first.
    """

    def __init__(self, folder: Path | None, step: int | None):
        self.evaluations, kept, damaged = {}, [], 0  # by step: (validation loss, tokens scored)
        self.recorded, self.about = set(), None  # steps that have a record, what a run that records says of itself
        self.path = folder and folder / "log.jsonl"
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if step is not None and self.path.exists():
            for line in self.path.read_bytes().split(b"\n"):
                entry = read_line(line)
                if entry is None:
                    damaged += line != b""
                elif entry["step"] <= step:
                    kept.append(line + b"\n")
                    if "val_loss" in entry:
                        self.evaluations[entry["step"]] = (entry["val_loss"], entry["val_tokens"])
                    if "record" in entry:
                        self.recorded.add(entry["step"])
                    self.about = entry.get("about", self.about)
        if damaged:  # a kill cuts one short
            print(f"{shown_path(self.path)}: left out {damaged} line{'s'[: damaged > 1]} not whole")
        with whole_file(self.path) as file:
            file.writelines(kept)

    def write(self, **entry) -> None:
        if self.path is None:
            return
        entry = {name: None if value != value else value for name, value in entry.items()}  # JSON has no NaN
        if READ_BACK & entry.keys():
            entry["crc32"] = checksum(entry)
        with explaining_disk_errors(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


READ_BACK = {"val_loss", "about"}  # an entry that has one of these is used when a run goes on


def checksum(entry: dict) -> int:
    """CRC-32 of an entry of the log as its line has it."""
    return zlib.crc32(json.dumps(entry).encode())


def read_line(line: bytes) -> dict | None:
    """The entry in a line of the log, or None where it is damaged."""
    try:
        entry = json.loads(line)
        if not is_integer(entry["step"], 0) or (READ_BACK & entry.keys() and entry.pop("crc32") != checksum(entry)):
            return None
        return entry
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
