"""Long work in pieces: on all cores, in order, in bounded memory, and picked up where it was stopped.

A step cuts its input into pieces, works on several of them at once, and writes the results in their order, so that the
output does not depend on the number of workers. Workers are threads: pyarrow, numpy, hashing, files and the tokenizers
library leave Python's lock alone while they work, so threads keep all cores busy and share what they read. They start
at once and work alike on Linux, macOS and Windows.

While a long step runs, a journal beside its output says how far it has come. What a killed run has finished stays, and
the same command goes on behind it.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from plumbing.errors import UsageError

AHEAD = 4  # results of a piece that wait to be written, if nothing else is said: all that it may hold in memory


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


def in_input_order(work: Callable, items: Iterable, workers: int, ahead: int = AHEAD) -> Iterator[tuple]:
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


def shard_path(path: Path, shard: tuple[int | str, int] | None) -> Path:
    """The name of a shard's output: corpus.txt becomes corpus.2-of-8.txt; or of all of them, with "*" for a number."""
    return path if shard is None else path.with_name(f"{path.stem}.{shard[0]}-of-{shard[1]}{path.suffix}")
