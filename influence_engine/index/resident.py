"""An index's vectors in memory, in the type that the device multiplies fastest."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from influence_engine.index.store import LARGEST, ExampleTable

_BLOCK = 1024
"""Rows that are converted to single precision at once: few enough to stay in a processor's caches."""

_ONE_BY_ONE = 4
"""Up to so many queries are multiplied one after the other, which is faster in half precision on a processor."""

_LARGEST_SUM = 60_000 / LARGEST
"""Sum of a query's absolute numbers up to which no product exceeds float16's largest number, 65,504."""

_PROBED_BYTES = 2**24
"""Bytes of the vectors that the two types are timed on."""

_PROBES = 7
"""Times that each type is timed."""

_CLEARLY = 0.8
"""bfloat16 is used where it takes less than this share of float16's time, since it rounds the stored numbers."""


class ResidentVectors:
    """An index's vectors ``[N, k]`` on one device.

    Attributes:
        shape: ``(N, k)``.
        bytes: Bytes of memory that the vectors take.
    """

    def __init__(self, vectors: Tensor) -> None:
        self._vectors = vectors
        self.shape = tuple(vectors.shape)
        self.bytes = vectors.numel() * vectors.dtype.itemsize

    @classmethod
    def read(cls, table: ExampleTable, device: torch.device) -> ResidentVectors:
        """The vectors of a table, in the stored type, or in bfloat16 where the processor is clearly faster with it."""
        vectors = table.vectors()
        if device.type == "cpu" and vectors.dtype == torch.float16 and fastest_half(vectors) == torch.bfloat16:
            converted = vectors.view(torch.bfloat16)  # the same memory
            for block, into in zip(torch.split(vectors, _BLOCK), torch.split(converted, _BLOCK), strict=True):
                into.copy_(block.bfloat16())
            vectors = converted
        return cls(vectors.to(device))

    def products(self, queries: Tensor, *, exact: bool = False) -> Tensor:
        """Inner products of each query ``[Q, k]`` with all vectors, ``[Q, N]`` in single precision.

        Args:
            queries: In single precision.
            exact: Whether to multiply in single precision instead of rounding the queries to the vectors' type.
        """
        sizes = queries.abs()
        size = torch.maximum(sizes.amax(1, keepdim=True), sizes.sum(1, keepdim=True) / _LARGEST_SUM).clamp_min(1e-30)
        return self._products(queries / size, exact=exact) * size

    def _products(self, queries: Tensor, *, exact: bool) -> Tensor:
        half = self._vectors.dtype != torch.float32
        if half and not exact:
            if self._vectors.device.type != "cpu":
                return (queries.to(self._vectors.dtype) @ self._vectors.T).float()
            if len(queries) <= _ONE_BY_ONE:
                return torch.stack([torch.mv(self._vectors, each.to(self._vectors.dtype)).float() for each in queries])
        blocks = torch.split(self._vectors, _BLOCK if half else len(self))
        return torch.cat([queries @ block.float().T for block in blocks], 1)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor | Sequence[int]) -> Tensor:
        """Some rows in single precision, ``[rows, k]``."""
        return self._vectors[rows].float()


def fastest_half(vectors: Tensor) -> torch.dtype:
    """float16, or bfloat16 where products of the first vectors with a query take clearly less time in it.

    Processors differ by a factor of two either way, with the same instructions by name.
    """
    sample = vectors[: max(1, _PROBED_BYTES // (2 * vectors.shape[1]))]
    kinds = (sample, sample.bfloat16())
    query = torch.linspace(-1, 1, sample.shape[1])
    taken = [[_seconds(kind, query.to(kind.dtype)) for kind in kinds] for _ in range(_PROBES)]
    float16, bfloat16 = (min(each) for each in zip(*taken, strict=True))
    return torch.bfloat16 if bfloat16 < _CLEARLY * float16 else torch.float16


def _seconds(matrix: Tensor, query: Tensor) -> float:
    start = time.perf_counter()
    torch.mv(matrix, query)
    return time.perf_counter() - start
