"""A queue and one thread that writes what waits: at once when it is idle, in groups when more comes meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Generic, TypeVar

from influence_engine.errors import InfluenceError

logger = logging.getLogger(__name__)

GROUPING_S = 0.1
"""Least time between two commits: what arrives within it goes together."""

SETTLE_S = 0.005
"""How long an item waits before it is written: until then its response has gone out undisturbed."""

RETRY_S = 1.0
"""Time between two attempts while nothing can be written."""

MAX_PENDING = 10_000
"""Items that wait at most; further ones are dropped and counted."""

T = TypeVar("T")


class WriteBehind(Generic[T]):
    """Items by key that wait until they have been written.

    Args:
        name: The thread's.
        write: Writes a group of them, all or nothing; where it fails the group is tried again.
        dropped: Told why items were dropped, and how many.
        now_and_then: Called by the thread every ``every_s`` seconds, and first of all at the start.
        every_s: See ``now_and_then``.
        delayed: Called with every attempt to write that failed.

    Attributes:
        reason: Why the last attempt to write failed; ``None`` since one has not.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[Sequence[T]], None],
        dropped: Callable[[str, int], None],
        now_and_then: Callable[[], object],
        every_s: float,
        delayed: Callable[[], None] = lambda: None,
    ) -> None:
        self.reason: str | None = None
        self._delayed = delayed
        self._name, self._write_group, self._dropped = name, write, dropped
        self._now_and_then, self._every_s = now_and_then, every_s
        self._pending: OrderedDict[str, T] = OrderedDict()
        self._wake = threading.Condition()
        self._idle = True
        self._closed = False
        self._next = 0.0
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._pending)

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Writes what waits and stops the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def add(self, key: str, item: T) -> None:
        """Queues one item; takes microseconds and never raises. Of two with one key the first counts."""
        with self._wake:
            if len(self._pending) >= MAX_PENDING:
                self._dropped("store_unavailable", 1)
                return
            self._pending.setdefault(key, item)
            if self._idle:
                self._idle = False
                self._wake.notify()

    def waiting(self, key: str) -> T | None:
        """The item of this key, if it has not been written yet."""
        with self._wake:
            return self._pending.get(key)

    def flush(self, timeout_s: float) -> bool:
        """Waits until everything added so far is written; false if the time was not enough."""
        with self._wake:
            return self._wake.wait_for(lambda: not self._pending, timeout_s)

    def _run(self) -> None:
        while True:
            with self._wake:
                self._idle = not self._pending
                woken = not self._pending
                while not self._pending and not self._closed and time.time() < self._next:
                    self._wake.wait(max(0.0, self._next - time.time()))
                self._idle = False
            if woken:
                time.sleep(SETTLE_S)
            with self._wake:
                group = list(self._pending.values())
                closing = self._closed
            try:
                if group:
                    self._write_group(group)
                self.reason = None
                if time.time() >= self._next:
                    self._next = time.time() + self._every_s
                    self._now_and_then()
            except (InfluenceError, OSError) as error:
                self.reason = error.message if isinstance(error, InfluenceError) else error.strerror or str(error)
                self._delayed()
                logger.exception("%d %s wait: they cannot be written", len(group), self._name)
                self._next = time.time() + self._every_s
                if closing:
                    self._dropped("store_unavailable", len(group))
                    return
                time.sleep(RETRY_S)
                continue
            with self._wake:
                for key in list(islice(self._pending, len(group))):
                    del self._pending[key]
                self._wake.notify_all()
                if self._closed and not self._pending:
                    return
            time.sleep(GROUPING_S)
