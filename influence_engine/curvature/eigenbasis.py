"""The GGN's leading eigenvectors within the layers' coordinates, from a sample of its rows.

With rows ``A [S, m]`` (``G = A^T A / S`` in expectation) the right singular vectors of ``A`` are the eigenvectors of
``G``. They come from the eigendecomposition of the ``S`` by ``S`` matrix ``A A^T`` (the method of snapshots, Sirovich
1987); the ``m`` by ``m`` matrix is never formed, so ``m`` may be tens of thousands. Directions outside the span of the
training examples' gradients carry no influence, since ``phi^T (G + lambda)^-1 g`` needs that span only; within it, the
directions with the least energy are cut first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from influence_engine.resources import one_thread

_ROUNDING = 1e-7
"""Share of the largest eigenvalue below which eigenvectors are mostly rounding of the rows, and differ by build."""

_COLUMNS = 1024
"""Coordinates of the basis that are made orthonormal at once, in double precision."""


@dataclass(frozen=True)
class Eigenbasis:
    """An orthonormal basis of the leading directions of the rows, in order of their energy.

    Attributes:
        vectors: ``[m, k]``.
        energy_kept: Share of the rows' energy (sum of squares) that lies in the ``k`` directions.
    """

    vectors: Tensor
    energy_kept: float


def fit_eigenbasis(rows: Iterable[Tensor], dimensions: int) -> Eigenbasis:
    """Fits the basis; beside two blocks of rows and the basis itself, only ``S`` by ``S`` numbers are in memory.

    Args:
        rows: ``[S, m]`` in blocks, weighted rows of sampled examples in the layers' coordinates; iterated repeatedly.
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
    """Eigenvalues ``[S]`` of a positive semidefinite matrix, largest first, and its eigenvectors ``[S, S]`` in columns,
    both in double precision; eigenvalues that rounding left below zero are zero."""
    with one_thread():
        values, vectors = torch.linalg.eigh(products.double())
    return values.flip(0).clamp_min(0), vectors.flip(1)


def _products(rows: Iterable[Tensor]) -> Tensor:
    """``A A^T [S, S]`` in double precision, since small eigenvalues are differences of large numbers."""
    upper = []
    for number, first in enumerate(rows):
        wide = first.double()
        upper.append(torch.cat([_product(wide, second, place < number) for place, second in enumerate(rows)], 1))
    half = torch.cat(upper).triu()
    return half + half.triu(1).T


def _product(first: Tensor, second: Tensor, known: bool) -> Tensor:
    """Inner products of the rows of two blocks; zeros where symmetry gives them."""
    return first.new_zeros(len(first), len(second)) if known else first @ second.double().T
