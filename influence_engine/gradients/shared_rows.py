"""Pulled-back rows of several examples, one for each direction of their outputs, without what they have in common.

A model of ten classes gives every example nine or ten rows (``curvature.gradient_passes``). Where a layer is a matrix
product at one position, the row of direction ``c`` is ``left_c right^T`` with the same inputs ``right`` for all of
them: a product of all rows with ``B`` vectors then takes the inputs first, once for each example instead of once for
each row, and the rows themselves are never materialised. Rows of other layers are dense.

Vectors over a layer's weights ``[d0, d1]`` are laid out as ``[d1, d0, B]`` here, so that the product with the inputs is
one of two large matrices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from influence_engine.gradients.factors import DenseGradient, IndexedGradient, LayerGradient, has_one_position

_COLUMNS = {"cpu": 64, "cuda": 4096}


def columns_at_once(device: str) -> int:
    """Vectors that rows are multiplied with at once: on a processor so few that they stay in its cache, which doubles
    the speed."""
    return _COLUMNS.get(device, _COLUMNS["cuda"])


class SharedRows(Protocol):
    """Rows of one layer: of ``n`` examples along ``C`` directions."""

    @property
    def size(self) -> tuple[int, int]:
        """``(n, C)``."""

    def products(self, values: Tensor) -> Tensor:
        """Inner products ``[n, C, B]`` of the rows with ``values [d1, d0, B]``."""

    def add_combinations(self, total: Tensor, coefficients: Tensor) -> None:
        """Adds ``sum_nc coefficients_nc row_nc`` to ``total [d1, d0, B]``, of which each of the ``B`` has coefficients
        of its own, ``[n, C, B]``."""

    def weighted(self, weights: Tensor) -> SharedRows:
        """Each row times its weight, ``[n, C]``."""

    def dense(self) -> Tensor:
        """The rows, ``[n, C, d0, d1]``."""

    def split(self, count: int) -> list[SharedRows]:
        """The rows of ``count`` examples at a time."""


@dataclass(frozen=True)
class FactoredRows:
    """Rows ``left_nc right_n^T``.

    Attributes:
        left: ``[n, C, d0]``.
        right: ``[n, d1]``.
    """

    left: Tensor
    right: Tensor

    @property
    def size(self) -> tuple[int, int]:
        return self.left.shape[0], self.left.shape[1]

    def products(self, values: Tensor) -> Tensor:
        inputs = self.right @ values.flatten(1)
        return self.left @ inputs.view(len(self.right), values.shape[1], values.shape[2])

    def add_combinations(self, total: Tensor, coefficients: Tensor) -> None:
        outputs = self.left.transpose(1, 2) @ coefficients
        total.view(total.shape[0], -1).addmm_(self.right.T, outputs.flatten(1))

    def weighted(self, weights: Tensor) -> FactoredRows:
        return FactoredRows(self.left * weights.unsqueeze(-1), self.right)

    def dense(self) -> Tensor:
        return self.left.unsqueeze(-1) * self.right[:, None, None, :]

    def split(self, count: int) -> list[SharedRows]:
        pairs = zip(torch.split(self.left, count), torch.split(self.right, count), strict=True)
        return [FactoredRows(left, right) for left, right in pairs]


@dataclass(frozen=True)
class DenseRows:
    """Materialised rows.

    Attributes:
        matrix: ``[n, C, d1, d0]``, transposed as vectors are laid out.
    """

    matrix: Tensor

    @property
    def size(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    def products(self, values: Tensor) -> Tensor:
        found = self.matrix.flatten(0, 1).flatten(1) @ values.flatten(0, 1)
        return found.view(*self.matrix.shape[:2], -1)

    def add_combinations(self, total: Tensor, coefficients: Tensor) -> None:
        rows = self.matrix.flatten(0, 1).flatten(1)
        total.view(rows.shape[1], -1).addmm_(rows.T, coefficients.flatten(0, 1))

    def weighted(self, weights: Tensor) -> DenseRows:
        return DenseRows(self.matrix * weights[..., None, None])

    def dense(self) -> Tensor:
        return self.matrix.transpose(2, 3)

    def split(self, count: int) -> list[SharedRows]:
        return [DenseRows(some) for some in torch.split(self.matrix, count)]


def inputs_in_common(gradients: Mapping[str, LayerGradient]) -> bool:
    """Whether most numbers of rows are of layers in which an example's rows have their inputs in common.

    Args:
        gradients: By layer, along any direction.
    """
    sizes = {name: _weights(one) for name, one in gradients.items()}
    shared = sum(sizes[name] for name, one in gradients.items() if has_one_position(one))
    return 2 * shared >= sum(sizes.values())


def _weights(gradient: LayerGradient) -> int:
    """``d0 d1``."""
    if isinstance(gradient, DenseGradient):
        return gradient.matrix[0].numel()
    height = gradient.height if isinstance(gradient, IndexedGradient) else gradient.left.shape[-1]
    return height * gradient.right.shape[-1]


def shared_rows(directions: Sequence[LayerGradient]) -> SharedRows:
    """The rows of one layer, of the same examples, from their gradients along each direction in one forward pass."""
    factored = [one for one in directions if has_one_position(one)]
    if len(factored) == len(directions):
        return FactoredRows(torch.cat([one.left for one in factored], 1), factored[0].right[:, 0])
    return DenseRows(torch.stack([one.dense() for one in directions], 1).transpose(2, 3).contiguous())


@dataclass(frozen=True)
class BatchRows:
    """Rows of ``n`` examples along ``C`` directions, in all layers that took part in their forward pass.

    Attributes:
        layers: By layer name.
        size: ``(n, C)``.
    """

    layers: Mapping[str, SharedRows]
    size: tuple[int, int]

    @classmethod
    def of(cls, directions: Sequence[Mapping[str, LayerGradient]]) -> BatchRows:
        """From the layers' gradients along each direction."""
        layers = {name: shared_rows([one[name] for one in directions]) for name in directions[0]}
        some = next(iter(layers.values()))
        return cls(layers, some.size)

    def products(self, values: Mapping[str, Tensor]) -> Tensor:
        """Inner products ``[n, C, B]`` with ``B`` vectors, ``[d1, d0, B]`` by layer."""
        first, *others = (rows.products(values[name]) for name, rows in self.layers.items())
        for other in others:
            first += other
        return first

    def add_combinations(self, totals: Mapping[str, Tensor], coefficients: Tensor) -> None:
        """Adds the combinations with ``coefficients [n, C, B]`` to ``totals``, ``[d1, d0, B]`` by layer."""
        for name, rows in self.layers.items():
            rows.add_combinations(totals[name], coefficients)

    def weighted(self, weights: Tensor) -> BatchRows:
        """Each row times its weight, ``[n, C]``."""
        return BatchRows({name: rows.weighted(weights) for name, rows in self.layers.items()}, self.size)

    def split(self, count: int) -> list[BatchRows]:
        """The rows of ``count`` examples at a time."""
        parts = zip(*(rows.split(count) for rows in self.layers.values()), strict=True)
        found = [dict(zip(self.layers, some, strict=True)) for some in parts]
        return [BatchRows(layers, next(iter(layers.values())).size) for layers in found]
