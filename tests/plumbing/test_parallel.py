"""plumbing/parallel.py: several items at once, results in order, bounded memory."""

import contextlib
import random
import threading
import time

import pytest

from plumbing.parallel import in_input_order


@pytest.mark.parametrize("at_once", [1, 3, 4])
@pytest.mark.parametrize("workers", [1, 2, 7])
def test_results_come_in_order(workers, at_once):
    def work(item):
        time.sleep(random.random() / 1000)
        yield from (f"{item}.{i}" for i in range(item % 7))

    found = [(item, list(results)) for item, results in in_input_order(work, range(30), workers, at_once)]
    assert found == [(item, [f"{item}.{i}" for i in range(item % 7)]) for item in range(30)]


@pytest.mark.parametrize("at_once", [1, 2, 3])
@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_comes_at_its_place_and_nothing_hangs(workers, at_once):
    def work(item):
        yield item
        if item == 4:
            raise ValueError("four")
        yield item

    taken = []
    with pytest.raises(ValueError, match="four"):
        for _, results in in_input_order(work, range(1000), workers, at_once):
            taken += results
    assert taken == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


def test_workers_do_not_run_far_ahead():
    """Memory is bounded: of 100 items of 100 results, few are computed before anything is taken."""
    made = []

    def work(item):
        for i in range(100):
            made.append((item, i))
            yield i

    stream = in_input_order(work, range(100), 2, at_once=5)
    _, results = next(stream)
    next(results)
    time.sleep(0.3)
    assert len(made) == (3 + 1) * 5  # of three items, and the next ones of the first
    stream.close()


def test_an_item_of_few_results_is_finished_before_they_are_taken():
    ended = threading.Event()

    def work(item):
        yield from range(20)
        if item == 1:
            ended.set()

    stream = in_input_order(work, range(2), 2, at_once=21)
    next(next(stream)[1])
    assert ended.wait(30)
    stream.close()


@pytest.mark.parametrize("workers", [1, 3])
def test_after_an_error_the_next_items_can_be_taken(workers):
    """As extraction does with --skip-bad: results before the error, then those of the items behind it."""

    def work(item):
        yield item
        if item % 3 == 1:
            raise ValueError
        yield item

    taken = []
    for _, results in in_input_order(work, range(9), workers):
        with contextlib.suppress(ValueError):
            taken.extend(results)  # keeps what came before the error
    assert taken == [item for item in range(9) for _ in range(1 if item % 3 == 1 else 2)]


def test_one_worker_does_nothing_ahead():
    made = []

    def work(item):
        made.append(item)
        yield item

    for number, (_, results) in enumerate(in_input_order(work, range(5), 1), 1):
        assert list(results) == [number - 1]
        time.sleep(0.01)
        assert len(made) == number
