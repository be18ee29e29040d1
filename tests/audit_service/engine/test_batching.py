"""Batches without waiting, items that do not harm each other, and no work for those who have gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from audit_service.engine.batching import BatchWorker
from audit_service.errors import EngineBusyError, EngineTimeoutError, EngineUnavailableError

LIMIT_S = 60
"""Where an answer takes longer, it never comes."""


class Doubler:
    """Doubles numbers; 13 is an error of its own, and the first batch waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()

    def __call__(self, items: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(items))
        self.go.wait()
        if 99 in items:
            raise RuntimeError("the whole batch")
        return [ValueError("thirteen") if item == 13 else 2 * item for item in items]


@pytest.fixture
def doubler() -> Doubler:
    return Doubler()


@pytest.fixture
def worker(doubler: Doubler) -> Iterator[BatchWorker[int, int]]:
    worker: BatchWorker[int, int] = BatchWorker(doubler, max_batch=4, max_waiting=10)
    yield worker
    doubler.go.set()
    worker.close()


def later() -> float:
    """A deadline that does not come before the test has ended."""
    return time.monotonic() + 3600


def begin(worker: BatchWorker[int, int], doubler: Doubler) -> None:
    """The worker is busy with one item; what comes now waits."""
    worker.submit(0, group="g", deadline=later())
    while not doubler.batches:
        time.sleep(0.001)


def test_what_arrives_while_it_works_is_answered_in_batches(worker: BatchWorker[int, int], doubler: Doubler) -> None:
    begin(worker, doubler)
    futures = [worker.submit(n, group="g", deadline=later()) for n in range(1, 7)]
    doubler.go.set()
    assert [future.result(LIMIT_S) for future in futures] == [2, 4, 6, 8, 10, 12]
    assert doubler.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_a_single_item_does_not_wait_for_company(worker: BatchWorker[int, int], doubler: Doubler) -> None:
    doubler.go.set()
    assert worker.submit(4, group="g", deadline=later()).result(LIMIT_S) == 8


def test_groups_do_not_share_a_batch(worker: BatchWorker[int, int], doubler: Doubler) -> None:
    begin(worker, doubler)
    futures = [worker.submit(n, group=n % 2, deadline=later()) for n in range(1, 5)]
    doubler.go.set()
    assert [future.result(LIMIT_S) for future in futures] == [2, 4, 6, 8]
    assert doubler.batches[1:] == [[1, 3], [2, 4]]


def test_one_bad_item_leaves_its_neighbours_alone(worker: BatchWorker[int, int], doubler: Doubler) -> None:
    begin(worker, doubler)
    good, bad, also_good = (worker.submit(n, group="g", deadline=later()) for n in (1, 13, 2))
    doubler.go.set()
    assert (good.result(LIMIT_S), also_good.result(LIMIT_S)) == (2, 4)
    with pytest.raises(ValueError, match="thirteen"):
        bad.result(LIMIT_S)


def test_an_error_of_a_whole_batch_reaches_everybody_and_the_worker_goes_on(
    worker: BatchWorker[int, int], doubler: Doubler
) -> None:
    doubler.go.set()
    with pytest.raises(RuntimeError):
        worker.submit(99, group="g", deadline=later()).result(LIMIT_S)
    assert worker.submit(1, group="g", deadline=later()).result(LIMIT_S) == 2


def test_nobody_computes_what_is_too_late_or_no_longer_wanted(worker: BatchWorker[int, int], doubler: Doubler) -> None:
    begin(worker, doubler)
    late = worker.submit(1, group="g", deadline=time.monotonic() - 1)
    gone = worker.submit(2, group="g", deadline=time.monotonic() - 1)
    wanted = worker.submit(3, group="g", deadline=later())
    assert gone.cancel()
    doubler.go.set()
    assert wanted.result(LIMIT_S) == 6
    with pytest.raises(EngineTimeoutError):
        late.result(LIMIT_S)
    assert doubler.batches == [[0], [3]]


def test_too_many_are_refused_at_once(worker: BatchWorker[int, int], doubler: Doubler) -> None:
    begin(worker, doubler)
    for n in range(10):
        worker.submit(n, group="g", deadline=later())
    with pytest.raises(EngineBusyError, match="10 explanations wait"):
        worker.submit(1, group="g", deadline=later())


class Slow:
    """Takes ten seconds an item by a clock of its own; the first batch waits until it is let go."""

    def __init__(self) -> None:
        self.now = 0.0
        self.began: list[list[int]] = []
        self.go = threading.Event()

    def __call__(self, items: Sequence[int]) -> list[int | Exception]:
        self.began.append(list(items))
        self.go.wait()
        self.now += 10 * len(items)
        return [*items]

    def clock(self) -> float:
        return self.now


@pytest.fixture
def slow() -> Iterator[tuple[Slow, BatchWorker[int, int]]]:
    """Such a worker whose pace is known, busy with one item."""
    slow = Slow()
    worker: BatchWorker[int, int] = BatchWorker(slow, clock=slow.clock)
    slow.go.set()
    worker.submit(-1, group="g", deadline=1e9).result(LIMIT_S)
    slow.go.clear()
    worker.submit(0, group="g", deadline=1e9)
    while len(slow.began) < 2:
        time.sleep(0.001)
    yield slow, worker
    slow.go.set()
    worker.close()


def test_as_many_are_answered_as_can_be_in_time_and_the_others_are_refused(
    slow: tuple[Slow, BatchWorker[int, int]],
) -> None:
    slowly, worker = slow
    deadline = slowly.now + 10 + 95  # ten seconds are gone before the next batch begins
    futures = [worker.submit(n, group="g", deadline=deadline) for n in range(1, 10)]
    futures.append(worker.submit(10, group="other", deadline=deadline))
    with pytest.raises(EngineBusyError) as busy:
        worker.submit(11, group="g", deadline=deadline - 10)
    assert busy.value.retry_after == 100
    slowly.go.set()
    assert [future.result(LIMIT_S) for future in futures[:9]] == [*range(1, 10)]
    assert slowly.began[2:4] == [[1, 2, 3, 4, 5, 6, 7], [8, 9]]


def test_what_can_no_longer_be_in_time_is_refused_and_leaves_its_place_to_others(
    slow: tuple[Slow, BatchWorker[int, int]],
) -> None:
    slowly, worker = slow
    late = worker.submit(1, group="g", deadline=slowly.now + 15)
    wanted = worker.submit(2, group="g", deadline=slowly.now + 100)
    slowly.go.set()
    assert wanted.result(LIMIT_S) == 2
    with pytest.raises(EngineTimeoutError):
        late.result(LIMIT_S)
    assert slowly.began[2:] == [[2]]


def test_one_that_waits_alone_is_tried_however_slow_the_others_were(slow: tuple[Slow, BatchWorker[int, int]]) -> None:
    slowly, worker = slow
    alone = worker.submit(1, group="g", deadline=slowly.now + 15)
    slowly.go.set()
    assert alone.result(LIMIT_S) == 1


def test_other_work_of_its_thread_is_done_between_batches(doubler: Doubler) -> None:
    worker: BatchWorker[int, int] = BatchWorker(doubler, max_batch=1)
    begin(worker, doubler)
    answered = worker.submit(1, group="g", deadline=later())
    done = worker.between(lambda: (threading.current_thread().name, len(doubler.batches)))
    failing = worker.between(lambda: 1 // 0)
    doubler.go.set()
    assert done.result(LIMIT_S) == ("explanations", 1)
    assert answered.result(LIMIT_S) == 2
    assert isinstance(failing.exception(LIMIT_S), ZeroDivisionError)
    worker.close()
    assert isinstance(worker.between(lambda: 1).exception(LIMIT_S), EngineUnavailableError)
