"""log.jsonl: the figures of a run, one JSON object per line, each with its step.

loss, surprise_bits, bits_per_byte, learning_rate, gradient_norm, tokens_per_second    of a training step
losses                                                           of all steps since the line before, this one last
val_loss, val_tokens, val_bits_per_byte, sample                                        of an evaluation
about, record                                                    for the page (model/monitoring/recorder.py)
warning                                                          of diagnostics.py

A new column is one more entry in Reporter.training() (reporter.py); scripts/plot_training.py draws those it knows.
"""

import json
from pathlib import Path

from model.storage.checks import is_integer
from plumbing.files import checksum, explaining_disk_errors, whole_file
from plumbing.text import plural, shown_path

READ_BACK = {"val_loss", "about"}  # an entry with one of these is used when a run resumes, so it has a checksum,
CHECKED = {*READ_BACK, "record"}  # and so has one that a page's program reads; records of old versions have none


class Log:
    """log.jsonl, open for a run. A run that resumes at `step` removes the lines of later steps; a new run, whose step
    is None, removes all lines. With folder None, nothing is read or written: for a process that is not the first.

    evaluations   {step: (validation loss, tokens scored)}
    recorded      the steps that have a record
    about         what the run says of itself for the page (model/monitoring/recorder.py), or None
    """

    def __init__(self, folder: Path | None, step: int | None):
        self.evaluations, self.recorded, self.about = {}, set(), None
        self.path = folder and folder / "log.jsonl"
        if self.path is None:
            return
        kept, damaged = [], 0
        for line in self.path.read_bytes().split(b"\n") if step is not None and self.path.exists() else []:
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
            print(f"{shown_path(self.path)}: left out {plural(damaged, 'damaged line')}")
        with whole_file(self.path) as file:
            file.writelines(kept)

    def write(self, **entry) -> None:
        if self.path is None:
            return
        entry = {name: None if value != value else value for name, value in entry.items()}  # JSON has no NaN
        if CHECKED & entry.keys():
            entry["crc32"] = checksum(entry)
        with explaining_disk_errors(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def read_line(line: bytes) -> dict | None:
    """The entry in a line of the log, or None if it is damaged."""
    try:
        entry = json.loads(line)
        if not is_integer(entry["step"], 0):
            return None
        checked = READ_BACK & entry.keys() or "crc32" in entry
        return None if checked and entry.pop("crc32") != checksum(entry) else entry
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
