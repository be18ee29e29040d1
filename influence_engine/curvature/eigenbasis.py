"""The GGN's eigenvectors within the layers' coordinates, from a sample of its rows.

With rows ``A [S, m]`` (``G = A^T A / S`` in expectation) the right singular vectors of ``A`` are the eigenvectors.
The ``S`` by ``S`` product is decomposed, never the ``m`` by ``m`` one, so ``m`` may be tens of thousands. Directions
outside the span of the training examples' gradients carry no influence (``phi^T (G + lambda)^-1 g`` needs that span
only), and the weakest within it are cut first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from influence_engine.resources import one_thread

_ROUNDING = 1e-7
"""Of the largest eigenvalue: below it, the vectors are mostly the rows' rounding, another one in every build."""

_COLUMNS = 1024
"""Coordinates of the basis that are made orthonormal at once, in double precision."""


@dataclass(frozen=True)
class Eigenbasis:
    """An orthonormal basis of the coordinates, ordered by curvature.

    Attributes:
        vectors: ``[m, k]``.
        kept: Share of the rows' energy that the ``k`` directions keep.
    """

    vectors: Tensor
    kept: float


def fit_eigenbasis(rows: Iterable[Tensor], dimensions: int) -> Eigenbasis:
    """Fits the basis; beside two blocks of rows and the basis itself, only ``S`` by ``S`` numbers are in memory.

    Args:
        rows: ``[S, m]`` in blocks, weighted rows of sampled examples in the layers' coordinates; gone through often.
        dimensions: The largest ``k``.
    """
    values, vectors = decomposed(_products(rows))
    rank = int((values > values[0] * _ROUNDING).sum())
    k = max(1, min(dimensions, rank))
    some, start = next(iter(rows)), 0
    weights = (vectors[:, :k] / values[:k].sqrt()).to(some.dtype)
    del vectors
    basis = some.new_zeros(some.shape[1], k)
    for block in rows:
        basis.addmm_(block.T, weights[start : start + len(block)])
        start += len(block)
    # Nearly orthonormal already; one Cholesky-QR step makes it so for the weakest directions too.
    factor = torch.linalg.cholesky((basis.T @ basis).double())
    for part in torch.split(basis, _COLUMNS):
        part.copy_(torch.linalg.solve_triangular(factor, part.T.double(), upper=False).T)
    return Eigenbasis(basis, float(values[:k].sum() / values.sum()))


def decomposed(products: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``[S]`` of a positive matrix, largest first, and eigenvectors in columns, in double precision."""
    with one_thread():
        values, vectors = torch.linalg.eigh(products.double())
    return values.flip(0).clamp_min(0), vectors.flip(1)


def _products(rows: Iterable[Tensor]) -> Tensor:
    """Inner products of all rows, ``[S, S]``, in double precision: weak eigenvectors are small differences."""
    upper = []
    for number, first in enumerate(rows):
        wide = first.double()
        upper.append(torch.cat([_product(wide, second, place < number) for place, second in enumerate(rows)], 1))
    half = torch.cat(upper).triu()
    return half + half.triu(1).T


def _product(first: Tensor, second: Tensor, known: bool) -> Tensor:
    """Inner products of two blocks' rows; zeros where they are known from the other side."""
    return first.new_zeros(len(first), len(second)) if known else first @ second.double().T
