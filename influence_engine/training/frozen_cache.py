"""Caches the outputs of frozen layers for all executions of a run's steps, which see the same batches every time."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

from torch import nn

from influence_engine.models.frozen_prefix import CachedPrefix, FrozenPrefix, cached_bytes

MAX_BYTES = 2 * 1024**3
"""Memory that a ``FrozenCache`` takes by default, at most."""


class FrozenCache:
    """Outputs of frozen layers by step and micro-batch, filled by the first execution of the steps.

    Args:
        max_bytes: Memory to use; outputs beyond it are computed in every execution.

    Attributes:
        bytes: Memory in use.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.bytes = 0
        self._max_bytes = max_bytes
        self._cached: dict[tuple[int, int], CachedPrefix] = {}

    def get(self, key: tuple[int, int]) -> CachedPrefix | None:
        """The outputs of a step's micro-batch; None where they are not cached."""
        return self._cached.get(key)

    def put(self, key: tuple[int, int], outputs: CachedPrefix) -> None:
        """Caches the outputs of a step's micro-batch, if memory allows."""
        size = cached_bytes(outputs)
        if self.bytes + size <= self._max_bytes:
            self._cached[key] = outputs
            self.bytes += size

    def clear(self) -> None:
        """Empties the cache, for steps with other batches."""
        self._cached.clear()
        self.bytes = 0


class FrozenLayers:
    """The frozen layers of one model, whose outputs come from a ``FrozenCache`` where they are in it.

    Only for a run without dropout: with it, frozen layers have other outputs at every step.

    Args:
        model: A model of the run.
        trained: Names of the trained parameters.
        cache: Shared by all executions of the run's steps on one device.
    """

    def __init__(self, model: nn.Module, trained: Collection[str], cache: FrozenCache) -> None:
        self._prefix = FrozenPrefix(model, trained)
        self._cache = cache

    @contextlib.contextmanager
    def micro_batch(self, step: int, number: int) -> Iterator[None]:
        """Within it the model runs on micro-batch ``number`` of a step, and on nothing else."""
        cached = self._cache.get((step, number))
        if cached is not None:
            with self._prefix.reusing(cached):
                yield
            return
        with self._prefix.caching() as outputs:
            yield
        self._cache.put((step, number), outputs)
