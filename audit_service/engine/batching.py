"""Dynamic batching without a delay: when the one worker gets free, it takes what has arrived meanwhile.

It takes no more than it can answer in time: as many as fit before the earliest of their deadlines at the pace of
lately. What cannot be in time any more is refused at once, so that the work goes to those who still wait.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from audit_service.errors import EngineBusyError, EngineTimeoutError, EngineUnavailableError

Item = TypeVar("Item")
Answer = TypeVar("Answer")

NEWEST = 0.3
"""Weight of the newest batch in the pace."""

MARGIN = 1.25
"""So much longer than at the pace of lately a batch may take, and still be in time."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Job(Generic[Item, Answer]):
    item: Item
    group: Hashable
    deadline: float
    future: Future[Answer] = field(default_factory=Future)


class BatchWorker(Generic[Item, Answer]):
    """One thread that runs ``run`` on groups of items.

    Args:
        run: Answers a list of items of one group; returns for each its answer or the error that is its own. What it
            raises becomes the error of every item.
        max_batch: Items of one call at most.
        max_waiting: Items that wait at most; further ones are refused at once.
        clock: Tells the time in seconds, the same that deadlines are in.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Answer | Exception]],
        *,
        max_batch: int = 32,
        max_waiting: int = 512,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._clock = clock
        self._seconds_an_item = 0.0
        self._waiting: list[_Job[Item, Answer]] = []
        self._other: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="explanations", daemon=True)
        self._thread.start()

    def submit(self, item: Item, *, group: Hashable, deadline: float) -> Future[Answer]:
        """Queues one item; only items of the same ``group`` share a call.

        Args:
            item: What to answer.
            group: What its batch has in common.
            deadline: The time after which nobody waits for the answer any more; then, or once the future is cancelled,
                the item is not computed.

        Raises:
            EngineBusyError: too many items wait already, for their number or for this one's deadline.
            EngineUnavailableError: the worker is closed.
        """
        job: _Job[Item, Answer] = _Job(item, group, deadline)
        with self._wake:
            if self._closed:
                raise _stopping()
            ahead = len(self._waiting) * self._seconds_an_item
            if len(self._waiting) >= self._max_waiting or (ahead and self._clock() + ahead > deadline):
                raise EngineBusyError(
                    f"the explanation engine is busy: {len(self._waiting)} explanations wait; ask again shortly",
                    retry_after=max(1, math.ceil(ahead)),
                )
            self._waiting.append(job)
            self._wake.notify()
        return job.future

    def between(self, work: Callable[[], Any]) -> Future[Any]:
        """Has something else done in the worker's thread, before its next batch."""
        future: Future[Any] = Future()
        with self._wake:
            if self._closed:
                future.set_exception(_stopping())
            else:
                self._other.append((work, future))
                self._wake.notify()
        return future

    def close(self) -> None:
        """Stops the worker after its current batch; what waits gets an error."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(5.0)

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: bool(self._waiting or self._other) or self._closed)
                other, self._other = self._other, []
                if self._closed:
                    for future in [*(job.future for job in self._waiting), *(future for _, future in other)]:
                        if future.set_running_or_notify_cancel():
                            future.set_exception(_stopping())
                    return
                jobs = [] if other else self._next()
            for work, future in other:
                try:
                    future.set_result(work())
                except Exception as error:
                    future.set_exception(error)
            if jobs:
                self._answer(jobs)

    def _next(self) -> list[_Job[Item, Answer]]:
        """Takes the next batch from those that wait, and refuses what would be too late."""
        now, pace = self._clock(), self._seconds_an_item
        wanted = []
        for job in self._waiting:
            if job.future.cancelled():
                job.future.set_running_or_notify_cancel()
            elif job.deadline < now:
                _refuse(job)
            else:
                wanted.append(job)
        if len(wanted) > 1:  # alone, it is tried: the pace may have been another's
            in_time = [job for job in wanted if now + pace <= job.deadline]
            late = [job for job in wanted if now + pace > job.deadline]
            if in_time:
                for job in late:
                    _refuse(job)
                wanted = in_time
        if not wanted:
            self._waiting = []
            return []
        group = [job for job in wanted if job.group == wanted[0].group][: self._max_batch]
        group.sort(key=lambda job: job.deadline)
        left = group[0].deadline - now
        fit = len(group) if pace <= 0 else max(1, int(left / (pace * MARGIN)))
        taken = group[:fit]
        chosen = set(map(id, taken))
        self._waiting = [job for job in wanted if id(job) not in chosen]
        return taken

    def _answer(self, jobs: list[_Job[Item, Answer]]) -> None:
        wanted = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        if not wanted:
            return
        began = self._clock()
        answers: Sequence[Any]
        try:
            answers = self._run([job.item for job in wanted])
        except Exception as error:
            logger.exception("a batch of %d explanations failed", len(wanted))
            answers = [error] * len(wanted)
        pace = (self._clock() - began) / len(wanted)
        known = self._seconds_an_item
        self._seconds_an_item = pace if known <= 0 else known + NEWEST * (pace - known)
        for job, answer in zip(wanted, answers, strict=True):
            if isinstance(answer, Exception):
                job.future.set_exception(answer)
            else:
                job.future.set_result(answer)


def _stopping() -> EngineUnavailableError:
    return EngineUnavailableError("the explanation engine stops", retry_after=5)


def _refuse(job: _Job[Any, Any]) -> None:
    if job.future.set_running_or_notify_cancel():
        job.future.set_exception(EngineTimeoutError("the deadline passed before it was computed", retry_after=1))
