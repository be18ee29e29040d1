"""Few coordinates for a gradient of millions of numbers, chosen by where the training gradients have their energy.

Every layer's gradient ``G [d0, d1]`` is seen through two orthonormal bases, ``p0^T G p1``: the leading eigenvectors of
``sum_i G_i G_i^T`` and ``sum_i G_i^T G_i`` over training examples (the higher-order SVD of De Lathauwer et al. 2000,
truncated). How many of them each layer gets is one greedy choice over all layers: the next coordinates go where they
keep the most energy for their number. A blind two-sided projection of the same size keeps far less of the influence
(``benchmarks/coordinates.py`` compares them).
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from influence_engine.gradients.factors import DenseGradient, IndexedGradient, LayerGradient
from influence_engine.resources import one_thread

_AT_ONCE = 8

_GROWTH = 1.25
"""A layer's basis grows by a quarter at a time: fine enough, and a handful of steps instead of thousands."""


@dataclass(frozen=True)
class LayerProjection:
    """The two bases of one layer.

    Attributes:
        left: ``[d0, r0]`` float, or for a look-up table ``[r0]`` integers: the rows that are kept.
        right: ``[d1, r1]`` float.
    """

    left: Tensor
    right: Tensor

    @property
    def size(self) -> int:
        """Coordinates of this layer, ``r0 r1``."""
        return self.left.shape[-1] * self.right.shape[-1]

    def seen(self, matrices: Tensor) -> Tensor:
        """``[q, r0, r1]`` of matrices ``[q, d0, d1]``."""
        if self.left.dim() == 1:
            return matrices[:, self.left] @ self.right
        return self.left.T @ matrices @ self.right

    def spread(self, inner: Tensor, height: int) -> Tensor:
        """The transpose of ``seen``: ``[q, d0, d1]`` of ``[q, r0, r1]``; ``height`` is ``d0``."""
        if self.left.dim() == 1:
            whole = inner.new_zeros(len(inner), height, self.right.shape[0])
            whole[:, self.left] = inner @ self.right.T
            return whole
        return self.left @ inner @ self.right.T

    def project(self, gradient: LayerGradient) -> Tensor:
        """Coordinates of each example's gradient, ``[B, r0 r1]``."""
        if not isinstance(gradient, IndexedGradient):
            return gradient.project(self.left, self.right).flatten(1)
        kept = self.left.shape[0]
        slots = self.left.new_full((gradient.height,), kept)
        slots[self.left] = torch.arange(kept, device=self.left.device)
        reduced = IndexedGradient(slots[gradient.rows], gradient.right @ self.right, kept + 1)
        return reduced.dense()[:, :kept].flatten(1)

    def project_weighed(self, gradient: LayerGradient, matrix: Tensor) -> Tensor:
        """Coordinates ``[B, r0 r1]`` of each example's gradient times ``matrix [d0, d1]``, number by number."""
        if isinstance(gradient, IndexedGradient):
            return self.project(replace(gradient, right=gradient.right * matrix[gradient.rows]))
        if isinstance(gradient, DenseGradient):
            return self.project(DenseGradient(gradient.matrix * matrix))
        # The products are full matrices: a few at a time stay in the processor's caches.
        parts = [
            self.project(DenseGradient((left.transpose(1, 2) @ right).mul_(matrix)))
            for left, right in zip(
                torch.split(gradient.left, _AT_ONCE), torch.split(gradient.right, _AT_ONCE), strict=True
            )
        ]
        return torch.cat(parts)


class EnergyFit:
    """Gathers, layer by layer, how the energy of training gradients lies in their two sides."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, layer: str, gradient: LayerGradient) -> None:
        """Adds a layer's gradients of one batch."""
        left, right = gradient.covariances()
        if layer in self._sums:
            self._sums[layer][0].add_(left)
            self._sums[layer][1].add_(right)
        else:
            self._sums[layer] = (left, right)

    def projections(self, budget: int) -> dict[str, LayerProjection]:
        """The bases of every layer, at most ``budget`` coordinates in all (and at least one a layer)."""
        sides = {name: tuple(_Side.of(matrix) for matrix in pair) for name, pair in self._sums.items()}
        ranks = _allocate({name: (left.kept, right.kept, left.energy) for name, (left, right) in sides.items()}, budget)
        return {
            name: LayerProjection(left.basis(ranks[name][0]), right.basis(ranks[name][1]))
            for name, (left, right) in sides.items()
        }


@dataclass(frozen=True)
class _Side:
    vectors: Tensor  # [d, d] eigenvectors, largest first; for a table [d] row numbers, largest first
    kept: Tensor  # [d] share of the energy that the first 1, 2, ... of them keep
    energy: float

    @staticmethod
    def of(matrix: Tensor) -> _Side:
        if matrix.dim() == 1:
            values, vectors = matrix.double().sort(descending=True)
        else:
            # In single precision: which directions come first and how far is all that matters.
            with one_thread():
                values, vectors = torch.linalg.eigh(matrix.float())
            values, vectors = values.double().flip(0).clamp_min(0), vectors.flip(1)
        total = values.sum().clamp_min(torch.finfo(torch.float64).tiny)
        return _Side(vectors, values.cumsum(0) / total, float(total))

    def basis(self, rank: int) -> Tensor:
        if self.vectors.dim() == 1:
            return self.vectors[:rank].clone()
        return self.vectors[:, :rank].contiguous()


def _allocate(layers: Mapping[str, tuple[Tensor, Tensor, float]], budget: int) -> dict[str, tuple[int, int]]:
    """Ranks ``(r0, r1)`` by layer: greedily the largest gain of kept energy a coordinate."""
    ranks = dict.fromkeys(layers, (1, 1))
    spent = len(ranks)
    queue: list[tuple[float, str, tuple[int, int]]] = []

    def push(name: str) -> None:
        left, right, energy = layers[name]
        r0, r1 = ranks[name]
        now = float(left[r0 - 1] * right[r1 - 1])
        options = [(_grown(r0, len(left)), r1), (r0, _grown(r1, len(right)))]
        gains = [
            (-energy * (float(left[a - 1] * right[b - 1]) - now) / (a * b - r0 * r1), name, (a, b))
            for a, b in options
            if a * b > r0 * r1
        ]
        if gains:
            heapq.heappush(queue, min(gains))

    for name in layers:
        push(name)
    while queue:
        gain, name, (a, b) = heapq.heappop(queue)
        r0, r1 = ranks[name]
        if gain == 0.0 or spent + a * b - r0 * r1 > budget:
            continue
        spent += a * b - r0 * r1
        ranks[name] = (a, b)
        push(name)
    return ranks


def _grown(rank: int, most: int) -> int:
    return min(most, max(rank + 1, int(rank * _GROWTH)))
