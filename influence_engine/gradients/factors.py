"""Per-example gradients of one layer, held as factors and contracted only when asked.

A layer's trainable parameters are one matrix ``W [d0, d1]`` (a bias is the last column). The gradient of an example is
then ``G = sum_t left_t right_t^T`` over its positions ``t``: output gradients and inputs for a linear layer (Goodfellow
2015). Each class below holds ``G`` in the form in which a kind of layer gives it; the common algebra is the interface:

* ``dense()``            ``[B, d0, d1]``, the materialised gradients (for references and small layers),
* ``project(p0, p1)``    ``[B, r0, r1]``, ``p0^T G p1``,
* ``inner(matrix)``      ``[B]``, ``<G, matrix>``,
* ``covariances()``      ``(sum_b G G^T, sum_b G^T G)``, ``[d0, d0]`` and ``[d1, d1]``, for fitting an eigenbasis,
* ``squared_norms()``    ``[B]``, ``||G||^2``,
* ``squares()``          sums over examples of each row's squares ``[d0]`` and each column's ``[d1]``, and for how many
  pairs of an example and a row the gradient is not zero by construction,
* ``bounds()``           ``[B]``, an upper bound of the absolute entries of ``G``, infinite or nan where one of them is,
* ``scale(row, column)`` gradients of the same form, multiplied elementwise by ``row_i column_j``,
* ``times(weights)``     each example's gradient times its weight, ``[B]``,
* ``total()``            ``[d0, d1]``, the sum of the examples' gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor


@dataclass(frozen=True)
class FactoredGradient:
    """Gradients of a layer that is a matrix product: linear layers, ungrouped convolutions.

    Attributes:
        left: ``[B, T, d0]``, output gradients.
        right: ``[B, T, d1]``, inputs (with a last column of ones where a bias is trained).
    """

    left: Tensor
    right: Tensor

    def dense(self) -> Tensor:
        return self.left.transpose(1, 2) @ self.right

    def project(self, p0: Tensor, p1: Tensor) -> Tensor:
        return (self.left @ p0).transpose(1, 2) @ (self.right @ p1)

    def inner(self, matrix: Tensor) -> Tensor:
        return torch.linalg.vecdot((self.left @ matrix).flatten(1), self.right.flatten(1))

    def covariances(self) -> tuple[Tensor, Tensor]:
        # G G^T = left^T (right right^T) left needs only the small T x T product of each example.
        left = (self.right @ self.right.transpose(1, 2)) @ self.left
        right = (self.left @ self.left.transpose(1, 2)) @ self.right
        return _flat(self.left).T @ _flat(left), _flat(self.right).T @ _flat(right)

    def scale(self, row: Tensor, column: Tensor) -> FactoredGradient:
        return FactoredGradient(self.left * row, self.right * column)

    def squared_norms(self) -> Tensor:
        left, right = self.left @ self.left.transpose(1, 2), self.right @ self.right.transpose(1, 2)
        return torch.linalg.vecdot(left.flatten(1), right.flatten(1))

    def squares(self) -> tuple[Tensor, Tensor, int]:
        rows = (self.right @ self.right.transpose(1, 2)) @ self.left * self.left
        columns = (self.left @ self.left.transpose(1, 2)) @ self.right * self.right
        touched = self.left.shape[0] * self.left.shape[2]
        return _positive(rows.sum((0, 1))), _positive(columns.sum((0, 1))), touched

    def bounds(self) -> Tensor:
        return _absolute(self.left) * _absolute(self.right)

    def times(self, weights: Tensor) -> FactoredGradient:
        return FactoredGradient(self.left * weights[:, None, None], self.right)

    def total(self) -> Tensor:
        return _flat(self.left).T @ _flat(self.right)


@dataclass(frozen=True)
class DenseGradient:
    """Gradients that are small enough to materialise: normalisation layers, grouped convolutions.

    Attributes:
        matrix: ``[B, d0, d1]``.
    """

    matrix: Tensor

    def dense(self) -> Tensor:
        return self.matrix

    def project(self, p0: Tensor, p1: Tensor) -> Tensor:
        return p0.T @ self.matrix @ p1

    def inner(self, matrix: Tensor) -> Tensor:
        return (self.matrix * matrix).sum((1, 2))

    def covariances(self) -> tuple[Tensor, Tensor]:
        rows = self.matrix.transpose(0, 1).reshape(self.matrix.shape[1], -1)
        columns = _flat(self.matrix)
        return rows @ rows.T, columns.T @ columns

    def scale(self, row: Tensor, column: Tensor) -> DenseGradient:
        return DenseGradient(self.matrix * row.unsqueeze(-1) * column)

    def squared_norms(self) -> Tensor:
        return self.matrix.pow(2).sum((1, 2))

    def squares(self) -> tuple[Tensor, Tensor, int]:
        squares = self.matrix.pow(2).sum(0)
        return squares.sum(1), squares.sum(0), self.matrix.shape[0] * self.matrix.shape[1]

    def bounds(self) -> Tensor:
        return _absolute(self.matrix)

    def times(self, weights: Tensor) -> DenseGradient:
        return DenseGradient(self.matrix * weights[:, None, None])

    def total(self) -> Tensor:
        return self.matrix.sum(0)


@dataclass(frozen=True)
class IndexedGradient:
    """Gradients of an embedding: position ``t`` of example ``b`` has a gradient in the one row ``rows[b, t]``.

    Attributes:
        rows: ``[B, T]``, row numbers; a position that is not trained on (padding) has a zero ``right``.
        right: ``[B, T, d1]``, output gradients.
        height: ``d0``, the number of rows of the table.
    """

    rows: Tensor
    right: Tensor
    height: int

    def dense(self) -> Tensor:
        batch, _, width = self.right.shape
        result = self.right.new_zeros(batch, self.height, width)
        return result.scatter_add_(1, self.rows.unsqueeze(-1).expand_as(self.right), self.right)

    def project(self, p0: Tensor, p1: Tensor) -> Tensor:
        return p0[self.rows].transpose(1, 2) @ (self.right @ p1)

    def inner(self, matrix: Tensor) -> Tensor:
        return (matrix[self.rows] * self.right).sum((1, 2))

    def covariances(self) -> tuple[Tensor, Tensor]:
        # Of G G^T only the diagonal, a vector [d0]: a full [d0, d0] would not fit for a vocabulary.
        summed = self._summed_over_equal_rows()
        diagonal = self.right.new_zeros(self.height)
        diagonal.scatter_add_(0, self.rows.flatten(), (self.right * summed).sum(-1).flatten())
        return diagonal, _flat(self.right).T @ _flat(summed)

    def scale(self, row: Tensor, column: Tensor) -> IndexedGradient:
        return IndexedGradient(self.rows, self.right * row[self.rows].unsqueeze(-1) * column, self.height)

    def squared_norms(self) -> Tensor:
        return (self.right * self._summed_over_equal_rows()).sum((1, 2))

    def squares(self) -> tuple[Tensor, Tensor, int]:
        products = self.right * self._summed_over_equal_rows()
        rows = self.right.new_zeros(self.height).index_add_(0, self.rows.flatten(), products.sum(-1).flatten())
        return _positive(rows), _positive(products.sum((0, 1))), int(self.right.any(-1).sum())

    def bounds(self) -> Tensor:
        return _absolute(self.right)

    def times(self, weights: Tensor) -> IndexedGradient:
        return IndexedGradient(self.rows, self.right * weights[:, None, None], self.height)

    def total(self) -> Tensor:
        result = self.right.new_zeros(self.height, self.right.shape[-1])
        return result.index_add_(0, self.rows.flatten(), _flat(self.right))

    def _summed_over_equal_rows(self) -> Tensor:
        """At each position the sum of ``right`` over all positions of the example with the same row number."""
        return (self.rows.unsqueeze(1) == self.rows.unsqueeze(2)).to(self.right.dtype) @ self.right


LayerGradient = FactoredGradient | DenseGradient | IndexedGradient


def has_one_position(gradient: LayerGradient) -> TypeGuard[FactoredGradient]:
    """Whether each example's gradient is the product of one column and one row."""
    return isinstance(gradient, FactoredGradient) and gradient.right.shape[1] == 1


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _positive(sums: Tensor) -> Tensor:
    """Sums of squares, with what rounding left below zero set to zero."""
    return sums.clamp_min(0)


def _absolute(tensor: Tensor) -> Tensor:
    """Sum of the absolute numbers of each example, ``[B]``."""
    wide = torch.promote_types(tensor.dtype, torch.float32)  # sums pass the largest half-precision number
    return torch.linalg.vector_norm(tensor.flatten(1), 1, dim=1, dtype=wide)


def concatenate(parts: list[LayerGradient]) -> LayerGradient:
    """The sum of several uses of one layer within one forward pass (a layer that is called more than once)."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, FactoredGradient):
        factored = [part for part in parts if isinstance(part, FactoredGradient)]
        return FactoredGradient(torch.cat([p.left for p in factored], 1), torch.cat([p.right for p in factored], 1))
    if isinstance(first, IndexedGradient):
        indexed = [part for part in parts if isinstance(part, IndexedGradient)]
        rows = torch.cat([p.rows for p in indexed], 1)
        return IndexedGradient(rows, torch.cat([p.right for p in indexed], 1), first.height)
    return DenseGradient(torch.stack([part.dense() for part in parts]).sum(0))
