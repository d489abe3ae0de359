"""Long work in pieces: on all cores, in order, in bounded memory, and picked up where it was stopped.

A step cuts its input into pieces, works on several of them at once, and writes the results in their order, so that the
output does not depend on the number of workers. Workers are threads: pyarrow, numpy, hashing, files and the tokenizers
library leave Python's lock alone while they work, so threads keep all cores busy and share what they read. They start
at once and work alike on Linux, macOS and Windows.

While a long step runs, a journal beside its output says how far it has come. What a killed run has finished stays, and
the same command goes on behind it.
"""

import argparse
import json
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from config import UsageError, UserError, shown_path
from dataset import flush_to_disk, hold, whole_file

AHEAD = 4  # results of a piece that wait to be written, if nothing else is said: all that it may hold in memory
SECONDS = 5.0  # between entries in the journal: what a killed run can lose


# --- several at once, in order ----------------------------------------------------------------------------------------


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_workers(workers: int) -> int:
    """How many pieces to work on at once: so many as asked for, or one for each core."""
    if workers < 0:
        raise UsageError(f"--workers must be 0 or more, and is {workers}.")
    return workers or cores()


class Stopped(Exception):
    """The results of a piece are no longer wanted."""


def in_order(work: Callable, items: Iterable, workers: int, ahead: int = AHEAD) -> Iterator[tuple]:
    """Yield (item, results) for each item, in order. work(item) is a generator of results; `workers` of them run at a
    time, each at most `ahead` results ahead of what is taken here. An error of work(item) is raised by its results.

    While the results of one item are taken, the work on the next ones stands still where it is that far ahead: to keep
    all workers busy, `ahead` must be about the number of results of an item. With one worker, nothing runs at the same
    time as the caller.
    """
    if workers == 1:
        yield from ((item, work(item)) for item in items)
        return
    stop = threading.Event()
    with ThreadPoolExecutor(workers) as pool:
        try:
            items, waiting = iter(items), []
            while True:
                while len(waiting) < workers + 1:
                    for item in items:
                        waiting.append((item, queue.Queue(ahead)))
                        pool.submit(fill, waiting[-1][1], work, item, stop)
                        break
                    else:
                        break
                if not waiting:
                    return
                item, results = waiting.pop(0)
                yield item, taken_from(results)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def fill(results: queue.Queue, work: Callable, item, stop: threading.Event) -> None:
    """Put the results of a piece into a queue as ("result", result), and at its end ("end", error or None)."""

    def put(kind: str, value) -> None:
        while not stop.is_set():
            with suppress(queue.Full):
                return results.put((kind, value), timeout=0.1)
        raise Stopped

    with suppress(Stopped):
        try:
            for result in work(item):
                put("result", result)
        except Stopped:
            raise
        except BaseException as error:
            put("end", error)
        else:
            put("end", None)


def taken_from(results: queue.Queue) -> Iterator:
    while True:
        with suppress(queue.Empty):
            kind, value = results.get(timeout=0.5)  # with a timeout, Ctrl-C gets through on Windows, too
            if kind == "result":
                yield value
            elif value is not None:
                raise value
            else:
                return


# --- stopped and started again ----------------------------------------------------------------------------------------


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
                if not hold(file):
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


# --- several machines -------------------------------------------------------------------------------------------------


def shard_flag(parser: argparse.ArgumentParser, of: str) -> None:
    """Add --shard I/N: this machine's share of the work."""

    def shard(text: str) -> tuple[int, int]:
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise argparse.ArgumentTypeError("give it as I/N, such as 2/8, from 1/8 to 8/8")
        return int(found[1]), int(found[2])

    parser.add_argument(
        "--shard", type=shard, metavar="I/N", help=f"only the I-th of N shares of the {of}; outputs get .I-of-N names"
    )


def shard_path(path: Path, shard: tuple[int | str, int] | None) -> Path:
    """The name of a shard's output: corpus.txt becomes corpus.2-of-8.txt; or of all of them, with "*" for a number."""
    return path if shard is None else path.with_name(f"{path.stem}.{shard[0]}-of-{shard[1]}{path.suffix}")
