"""Work on several items at once, on all cores, with the results in input order and in bounded memory.

Workers are threads: pyarrow, numpy, hashing, files and the tokenizers library release Python's lock while they work, so
threads keep all cores busy and share what they have read. The results do not depend on the number of workers.
"""

import os
import shlex
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path

from plumbing.text import quoted_path


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_input_order(work: Callable, items: Iterable, workers: int, at_once: int = 4) -> Iterator[tuple]:
    """Yield (item, results) for each item, in order. work(item) is a generator, and `results` iterates over what it
    yields. An error of work(item) is raised by `results`, after the results before it.

    A thread computes up to `at_once` results of an item, and the next `at_once` while those are being used. So memory
    holds a few results per worker, however many an item has. An item with fewer than `at_once` results, the usual case,
    is finished without waiting for the caller. With one worker, nothing runs at the same time as the caller."""
    if workers == 1:
        yield from ((item, work(item)) for item in items)
        return
    items, started = iter(items), deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                for item in islice(items, workers + 1 - len(started)):  # one more: no thread waits for the caller
                    results = work(item)
                    started.append((item, results, pool.submit(next_results, results, at_once)))
                if not started:
                    return
                item, results, future = started.popleft()
                yield item, finished_results(pool, results, future, at_once)
        finally:
            pool.shutdown(cancel_futures=True)


def next_results(results: Iterator, number: int) -> tuple[deque, BaseException | None]:
    """The next results of a generator, at most `number`, and its error if it raised one."""
    computed: deque = deque()
    try:
        computed.extend(islice(results, number))  # has those before an error
    except BaseException as error:
        return computed, error
    return computed, None


def finished_results(pool: ThreadPoolExecutor, results: Iterator, future: Future, at_once: int) -> Iterator:
    """Yield the results of one item. `future` computes the first of them in the pool."""
    while future:
        while not wait([future], timeout=0.5).done:  # with a timeout, because on Windows Ctrl-C has to wait for its end
            pass
        computed, error = future.result()
        future = pool.submit(next_results, results, at_once) if len(computed) == at_once else None
        while computed:
            yield computed.popleft()  # so that its memory is free as soon as the caller is done with it
        if error:
            raise error


def shard_path(path: Path, shard: tuple[int, int] | None) -> Path:
    """The output of a shard: corpus.txt becomes corpus.2-of-8.txt."""
    return path if shard is None else path.with_name(f"{path.stem}.{shard[0]}-of-{shard[1]}{path.suffix}")


def shard_pattern(path: Path, number: int) -> str:
    """All shards of an output for a shell's command line: corpus.*-of-8.txt."""
    return f"{quoted_path(path.with_name(path.stem))}.*-of-{number}{shlex.quote(path.suffix) if path.suffix else ''}"
