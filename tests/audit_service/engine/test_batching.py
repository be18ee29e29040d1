"""Batches without waiting, items that do not harm each other, and no work for those who have gone."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from audit_service.engine.batching import BatchWorker
from audit_service.errors import EngineTimeoutError, EngineUnavailableError

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
    with pytest.raises(EngineUnavailableError, match="busy"):
        worker.submit(1, group="g", deadline=later())


def test_a_closed_worker_answers_those_who_wait(doubler: Doubler) -> None:
    worker: BatchWorker[int, int] = BatchWorker(doubler, max_waiting=10**9)
    begin(worker, doubler)
    waiting = worker.submit(1, group="g", deadline=later())
    closing = threading.Thread(target=worker.close)
    closing.start()
    with contextlib.suppress(EngineUnavailableError):
        while True:  # until it is closed
            worker.submit(2, group="g", deadline=later())
    doubler.go.set()
    closing.join()
    with pytest.raises(EngineUnavailableError, match="stops"):
        waiting.result(LIMIT_S)
    with pytest.raises(EngineUnavailableError):
        worker.submit(1, group="g", deadline=later())
