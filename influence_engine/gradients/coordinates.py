"""Few coordinates for a gradient of millions of numbers, chosen by where the training gradients have their energy.

Every layer's gradient ``G [d0, d1]`` is projected on two orthonormal bases, ``p0^T G p1``: the leading eigenvectors of
``sum_i G_i G_i^T`` and ``sum_i G_i^T G_i`` over training examples, which is the truncated higher-order SVD (De
Lathauwer, De Moor and Vandewalle 2000) over the two sides of the tensor of all gradients. The bases of K-FAC (Martens
and Grosse 2015) and EK-FAC (George et al. 2018) are eigenvectors of the inputs' and output gradients' covariances
instead.

How many directions each layer gets is this project's own greedy choice over all layers: the next coordinates go where
they keep the most energy for their number. Random two-sided projections of the same size keep far less of the influence
(``benchmarks/coordinates.py`` compares them).
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from influence_engine.gradients.factors import (
    DenseGradient,
    FactoredGradient,
    IndexedGradient,
    LayerGradient,
    has_one_position,
)
from influence_engine.resources import one_thread

_BYTES_AT_ONCE = {False: 2**21, True: 2**26}
"""Bytes of gradients that are materialised together; the key says whether on a GPU."""

_FACTORED = 16
"""Positions times columns of the narrower basis up to which a gradient stays factored, as measured."""

_NARROW = 16
"""Columns below which a batch of products is several times slower than one product of all matrices side by side."""

_GROWTH = 1.25
"""A layer's basis grows by a quarter at a time: fine enough, and a handful of steps instead of thousands."""

_ROUNDING = 16 * torch.finfo(torch.float32).eps
"""Share of the largest eigenvalue below which a direction may have no energy at all, only rounding."""


@dataclass(frozen=True)
class LayerProjection:
    """The two bases of one layer.

    Attributes:
        left: ``p0 [d0, r0]``, orthonormal columns; for an embedding ``[r0]`` integers, the rows that are selected.
        right: ``p1 [d1, r1]``, orthonormal columns.
    """

    left: Tensor
    right: Tensor

    @property
    def size(self) -> int:
        """Number of coordinates of this layer, ``r0 r1``."""
        return self.left.shape[-1] * self.right.shape[-1]

    @property
    def shape(self) -> tuple[int, int]:
        """``(r0, r1)``."""
        return self.left.shape[-1], self.right.shape[-1]

    def project_matrices(self, matrices: Tensor) -> Tensor:
        """``p0^T M p1``, ``[q, r0, r1]``, of dense matrices ``M [q, d0, d1]``."""
        if self.left.dim() == 1:
            return matrices[:, self.left] @ self.right
        return _between(self.left.T, matrices, self.right)

    def lift(self, inner: Tensor, height: int) -> Tensor:
        """``p0 C p1^T``, ``[q, d0, d1]``, of coordinates ``C [q, r0, r1]``: the transpose of ``project_matrices``.

        ``height`` is ``d0``, which selected rows of an embedding do not say.
        """
        if self.left.dim() == 1:
            whole = inner.new_zeros(len(inner), height, self.right.shape[0])
            whole[:, self.left] = inner @ self.right.T
            return whole
        return _between(self.left, inner, self.right.T)

    def reduce(self, gradient: LayerGradient) -> LayerGradient:
        """Each example's gradient in coordinates, ``p0^T G p1`` as a gradient of ``[r0, r1]``: still a product of a
        column and a row where it has one position."""
        if has_one_position(gradient):
            return FactoredGradient(gradient.left @ self.left, gradient.right @ self.right)
        return DenseGradient(self.project(gradient).view(-1, *self.shape))

    def project(self, gradient: LayerGradient) -> Tensor:
        """Coordinates ``p0^T G p1`` of each example's gradient, ``[B, r0 r1]``."""
        if not isinstance(gradient, IndexedGradient):
            return gradient.project(self.left, self.right).flatten(1)
        selected = self.left.shape[0]
        slots = self.left.new_full((gradient.height,), selected)
        slots[self.left] = torch.arange(selected, device=self.left.device)
        reduced = IndexedGradient(slots[gradient.rows], gradient.right @ self.right, selected + 1)
        return reduced.dense()[:, :selected].flatten(1)

    def project_hadamard(self, gradient: LayerGradient, matrices: Sequence[Tensor]) -> list[Tensor]:
        """Coordinates ``[B, r0 r1]`` of the Hadamard (elementwise) product of each example's gradient and a matrix.

        Args:
            gradient: The layer's gradients.
            matrices: One or several, ``[d0, d1]``; work that all of them need is done once.

        Returns:
            One tensor for each of ``matrices``.
        """
        if isinstance(gradient, IndexedGradient):
            return [
                self.project(replace(gradient, right=gradient.right * matrix[gradient.rows])) for matrix in matrices
            ]
        if isinstance(gradient, DenseGradient):
            return [self.project(DenseGradient(gradient.matrix * matrix)) for matrix in matrices]
        positions, (r0, r1) = gradient.left.shape[1], (self.left.shape[1], self.right.shape[1])
        if positions * min(r0, r1) > _FACTORED:
            found = _hadamard_materialised(gradient, matrices, self.left, self.right)
        elif r0 <= r1:
            found = [_hadamard_factored(gradient.left, gradient.right, one, self.left, self.right) for one in matrices]
        else:
            found = [
                _hadamard_factored(gradient.right, gradient.left, one.T, self.right, self.left).transpose(1, 2)
                for one in matrices
            ]
        return [one.flatten(1) for one in found]


def _between(before: Tensor, matrices: Tensor, after: Tensor) -> Tensor:
    """``before @ matrices @ after`` for ``matrices [q, a, b]``, in the order that takes fewer operations."""
    (r, a), (b, c) = before.shape, after.shape
    if r * b * (a + c) <= a * c * (b + r):
        return _before_each(before, matrices) @ after
    return _before_each(before, matrices @ after)


def _before_each(before: Tensor, matrices: Tensor) -> Tensor:
    """``before @ matrices``; narrow matrices side by side, as one product."""
    count, height, width = matrices.shape
    if count == 1 or width >= _NARROW:
        return before @ matrices
    together = before @ matrices.transpose(0, 1).reshape(height, count * width)
    return together.view(len(before), count, width).transpose(0, 1)


def _hadamard_materialised(
    gradient: FactoredGradient, matrices: Sequence[Tensor], p0: Tensor, p1: Tensor
) -> list[Tensor]:
    """``p0^T (G * matrix) p1``, ``[B, r0, r1]``, of materialised gradients: a few at a time stay in the caches."""
    d0, d1 = matrices[0].shape
    some = max(1, _BYTES_AT_ONCE[gradient.left.is_cuda] // (4 * d0 * d1))
    parts: list[list[Tensor]] = [[] for _ in matrices]
    for left, right in zip(torch.split(gradient.left, some), torch.split(gradient.right, some), strict=True):
        dense = left.transpose(1, 2) @ right
        for part, matrix in zip(parts, matrices, strict=True):
            part.append(_between(p0.T, dense * matrix, p1))
    return [torch.cat(part) for part in parts]


def _hadamard_factored(left: Tensor, right: Tensor, matrix: Tensor, p0: Tensor, p1: Tensor) -> Tensor:
    """``p0^T (G * matrix) p1``, ``[B, r0, r1]``, without materialising ``G = left^T right``.

    For each position and column of ``p0`` a combination of the matrix' rows, in one product for all examples.
    """
    batch, positions, _ = left.shape
    columns = left.unsqueeze(2) * p0.T
    rows = (columns.flatten(0, 2) @ matrix).view(batch, positions, p0.shape[1], -1)
    return (rows * right.unsqueeze(2)).sum(1) @ p1


class EnergyFit:
    """Sums ``G G^T`` and ``G^T G`` of training gradients, layer by layer, and chooses bases by their eigenvalues."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, layer: str, gradient: LayerGradient) -> None:
        """Adds the gradients of one batch in the layer of that name."""
        left, right = gradient.covariances()
        if layer in self._sums:
            self._sums[layer][0].add_(left)
            self._sums[layer][1].add_(right)
        else:
            self._sums[layer] = (left, right)

    def projections(self, budget: int) -> dict[str, LayerProjection]:
        """The bases of every layer, at most ``budget`` coordinates in all (and at least one a layer)."""
        sides = {name: (_Side.of(left), _Side.of(right)) for name, (left, right) in self._sums.items()}
        ranks = dict.fromkeys(sides, (1, 1))
        # First the directions that have energy for certain. Those that may be rounding take no other direction's place,
        # but while the budget lasts nothing is cut: a direction near a cut would be in one build and not in another.
        certain = {name: (left.certain, right.certain) for name, (left, right) in sides.items()}
        every = {name: (len(left.kept), len(right.kept)) for name, (left, right) in sides.items()}
        if _grow(ranks, certain, sides, budget):
            _grow(ranks, every, sides, budget)
        return {
            name: LayerProjection(left.basis(ranks[name][0]), right.basis(ranks[name][1]))
            for name, (left, right) in sides.items()
        }


@dataclass(frozen=True)
class _Side:
    """Eigendecomposition of one side of a layer's gradients.

    Attributes:
        vectors: ``[d, d]``, eigenvectors in columns, largest first; for an embedding ``[d]`` row numbers, likewise.
        kept: Share of the energy in the first 1, 2, ... of them, up to the last one that has any.
        certain: How many have more energy than rounding would give a direction without any.
        energy: The sum of the eigenvalues.
    """

    vectors: Tensor
    kept: Tensor
    certain: int
    energy: float

    @staticmethod
    def of(matrix: Tensor) -> _Side:
        if matrix.dim() == 1:
            values, vectors = matrix.double().sort(descending=True)
        else:
            # Single precision is enough: only the order of the directions and the share of their energy matter.
            with one_thread():
                values, vectors = _eigenvectors(matrix)
            values, vectors = values.double().flip(0).clamp_min(0), vectors.flip(1)
        total = values.sum().clamp_min(torch.finfo(torch.float64).tiny)
        some, certain = (max(1, int((values > cut * values[0]).sum())) for cut in (0.0, _ROUNDING))
        return _Side(vectors, values[:some].cumsum(0) / total, certain, float(total))

    def basis(self, rank: int) -> Tensor:
        if self.vectors.dim() == 1:
            return self.vectors[:rank].clone()
        return self.vectors[:, :rank].contiguous()


def _eigenvectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    try:
        return torch.linalg.eigh(matrix.float())
    except RuntimeError:  # torch's LinAlgError is one
        # With many channels that never fire, single precision may not converge.
        values, vectors = torch.linalg.eigh(matrix.double())
        return values, vectors.float()


def _grow(
    ranks: dict[str, tuple[int, int]],
    most: Mapping[str, tuple[int, int]],
    sides: Mapping[str, tuple[_Side, _Side]],
    budget: int,
) -> bool:
    """Grows ``ranks`` greedily, by the largest gain of kept energy for each coordinate.

    Args:
        ranks: ``(r0, r1)`` by layer; changed in place.
        most: The ranks that they may grow to.
        sides: The two decompositions of each layer.
        budget: Coordinates of all layers together.

    Returns:
        Whether the budget sufficed for everything in ``most`` that has energy.
    """
    spent = sum(r0 * r1 for r0, r1 in ranks.values())
    sufficed = True
    queue: list[tuple[float, str, tuple[int, int]]] = []

    def push(name: str) -> None:
        left, right = (side.kept for side in sides[name])
        r0, r1 = ranks[name]
        now = float(left[r0 - 1] * right[r1 - 1])
        options = [(_grown(r0, most[name][0]), r1), (r0, _grown(r1, most[name][1]))]
        gains = [
            (-sides[name][0].energy * (float(left[a - 1] * right[b - 1]) - now) / (a * b - r0 * r1), name, (a, b))
            for a, b in options
            if a * b > r0 * r1
        ]
        if gains:
            heapq.heappush(queue, min(gains))

    for name in ranks:
        push(name)
    while queue:
        gain, name, (a, b) = heapq.heappop(queue)
        r0, r1 = ranks[name]
        if spent + a * b - r0 * r1 > budget:
            sufficed = False
        elif gain != 0.0:
            spent += a * b - r0 * r1
            ranks[name] = (a, b)
            push(name)
    return sufficed


def _grown(rank: int, most: int) -> int:
    return min(most, max(rank + 1, int(rank * _GROWTH)))
