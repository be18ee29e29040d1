"""Chooses how many threads an explanation is computed with, by measuring.

Threads that wait for each other are fast on processors of their own and slow beside busy neighbours: of two threads on
two cores the one that is interrupted holds up the other at every layer. Which it is can only be measured, and changes
while a server runs.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections import deque
from collections.abc import Callable

import torch

ROUNDS = 5
"""Every candidate runs this often, in turn; the median counts."""

BETTER = 0.85
"""More threads are taken only where they take less than this share of the time of fewer."""

SLOWER = 1.6
"""Explanations that take so much longer than those after the last measurement have it made again, and so much less."""

LATELY = 12
"""Explanations that are compared."""

AGAIN_S = 30.0
LONGEST_S = 960.0
"""Measured no more often than this; each time that changes nothing, half as often."""

logger = logging.getLogger(__name__)


class ThreadChoice:
    """The number of torch's threads in the thread that explains; all calls come from that thread.

    Args:
        run: Computes one explanation.
        fixed: The number, where the config says it; then nothing is measured.
        clock: Tells the time in seconds.
        set_threads: Sets the number.
    """

    def __init__(
        self,
        run: Callable[[], object],
        *,
        fixed: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
        set_threads: Callable[[int], None] = torch.set_num_threads,
    ) -> None:
        self._run = run
        self._fixed = fixed
        self._clock = clock
        self._set = set_threads
        self._usual: float | None = None
        self._lately: deque[float] = deque(maxlen=LATELY)
        self._pause, self._next = AGAIN_S, 0.0
        self.threads = fixed or 1

    def choose(self) -> int:
        """Measures, unless the number is fixed, and sets it."""
        if self._fixed is None:
            seconds: dict[int, list[float]] = {count: [] for count in candidates()}
            for _ in range(ROUNDS if len(seconds) > 1 else 1):
                for count, found in seconds.items():
                    self._set(count)
                    began = self._clock()
                    self._run()
                    found.append(self._clock() - began)
            medians = {count: statistics.median(found) for count, found in seconds.items()}
            chosen = best_of(medians)
            self._pause = AGAIN_S if chosen != self.threads else min(2 * self._pause, LONGEST_S)
            if chosen != self.threads:
                logger.info(
                    "explanations are computed with %d threads (%s)",
                    chosen,
                    ", ".join(f"{count}: {median * 1e3:.0f} ms" for count, median in medians.items()),
                )
            self.threads = chosen
        self._set(self.threads)
        self._lately.clear()
        self._usual, self._next = None, self._clock() + self._pause
        return self.threads

    def took(self, seconds: float) -> None:
        """Notes what an explanation alone in its batch took."""
        self._lately.append(seconds)

    def again(self) -> None:
        """Measures again where explanations take much longer, or much less, than those after the last measurement."""
        if self._fixed is not None or len(self._lately) < LATELY:
            return
        lately = statistics.median(self._lately)
        if self._usual is None:
            self._usual = lately
            self._lately.clear()
        elif self._clock() >= self._next and not 1 / SLOWER < lately / max(self._usual, 1e-9) < SLOWER:
            self.choose()


def candidates() -> list[int]:
    """Numbers of threads that are worth a try here: one, half of the processors, and all."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return sorted({1, max(1, usable // 2), usable})


def best_of(seconds: dict[int, float]) -> int:
    """The number of threads by what each took: fewer, unless more are clearly faster."""
    chosen, *others = sorted(seconds)
    for count in others:
        if seconds[count] < BETTER * seconds[chosen]:
            chosen = count
    return chosen
