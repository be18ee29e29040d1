"""Dynamic batching without a delay: when the one worker gets free, it takes everything that has arrived meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from audit_service.errors import EngineTimeoutError, EngineUnavailableError

Item = TypeVar("Item")
Answer = TypeVar("Answer")

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
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Answer | Exception]],
        *,
        max_batch: int = 32,
        max_waiting: int = 512,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._waiting: deque[_Job[Item, Answer]] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="explanations", daemon=True)
        self._thread.start()

    def submit(self, item: Item, *, group: Hashable, deadline: float) -> Future[Answer]:
        """Queues one item; only items of the same ``group`` share a call.

        Args:
            item: What to answer.
            group: What its batch has in common.
            deadline: ``time.monotonic()`` after which nobody waits for the answer any more; then, or once the future
                is cancelled, the item is not computed.

        Raises:
            EngineUnavailableError: too many items wait already, or the worker is closed.
        """
        job: _Job[Item, Answer] = _Job(item, group, deadline)
        with self._wake:
            if self._closed or len(self._waiting) >= self._max_waiting:
                raise EngineUnavailableError("the explanation engine is busy; ask again shortly", retry_after=1)
            self._waiting.append(job)
            self._wake.notify()
        return job.future

    def close(self) -> None:
        """Stops the worker after its current batch; what waits gets an error."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(5.0)

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: bool(self._waiting) or self._closed)
                jobs = list(self._waiting)
                self._waiting.clear()
                closed = self._closed
            if closed:
                for job in jobs:
                    if job.future.set_running_or_notify_cancel():
                        job.future.set_exception(EngineUnavailableError("the explanation engine stops", retry_after=5))
                return
            groups: dict[Hashable, list[_Job[Item, Answer]]] = {}
            for job in jobs:
                groups.setdefault(job.group, []).append(job)
            for group in groups.values():
                for start in range(0, len(group), self._max_batch):
                    self._answer(group[start : start + self._max_batch])

    def _answer(self, jobs: list[_Job[Item, Answer]]) -> None:
        now = time.monotonic()
        wanted = []
        for job in jobs:
            if not job.future.set_running_or_notify_cancel():
                continue  # nobody waits for it any more
            if job.deadline < now:
                job.future.set_exception(
                    EngineTimeoutError("the deadline passed before it was computed", retry_after=1)
                )
            else:
                wanted.append(job)
        if not wanted:
            return
        answers: Sequence[Any]
        try:
            answers = self._run([job.item for job in wanted])
        except Exception as error:
            logger.exception("a batch of %d explanations failed", len(wanted))
            answers = [error] * len(wanted)
        for job, answer in zip(wanted, answers, strict=True):
            if isinstance(answer, Exception):
                job.future.set_exception(answer)
            else:
                job.future.set_result(answer)
