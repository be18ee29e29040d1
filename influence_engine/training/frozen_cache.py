"""Frozen layers run once for all executions of a run's steps: they see the same recorded batches every time."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

from torch import nn

from influence_engine.models.frozen_prefix import FrozenPrefix, Kept, kept_bytes

MOST_BYTES = 2 * 1024**3


class KeptSteps:
    """Outputs of frozen layers by step and micro-batch, filled by the first execution.

    Args:
        at_most: Bytes of memory to use; what does not fit is computed again.
    """

    def __init__(self, at_most: int = MOST_BYTES) -> None:
        self.bytes = 0
        self._at_most = at_most
        self._kept: dict[tuple[int, int], Kept] = {}

    def get(self, key: tuple[int, int]) -> Kept | None:
        """What was kept of that step and micro-batch."""
        return self._kept.get(key)

    def clear(self) -> None:
        """Forgets everything: the steps that follow are others."""
        self._kept.clear()
        self.bytes = 0

    def put(self, key: tuple[int, int], kept: Kept) -> None:
        """Keeps it, if there is room."""
        size = kept_bytes(kept)
        if self.bytes + size <= self._at_most:
            self._kept[key] = kept
            self.bytes += size


class FrozenSteps:
    """``KeptSteps`` for one model. Only for a run without dropout: with it, frozen layers differ from step to step.

    Args:
        model: A model of the run.
        trained: Names of the trained parameters.
        kept: Shared by all executions.
    """

    def __init__(self, model: nn.Module, trained: Collection[str], kept: KeptSteps) -> None:
        self._prefix = FrozenPrefix(model, trained)
        self._kept = kept

    @contextlib.contextmanager
    def running(self, step: int, micro_batch: int) -> Iterator[None]:
        """While that micro-batch of that step runs."""
        found = self._kept.get((step, micro_batch))
        if found is not None:
            with self._prefix.recalling(found):
                yield
            return
        with self._prefix.keeping() as kept:
            yield
        self._kept.put((step, micro_batch), kept)
