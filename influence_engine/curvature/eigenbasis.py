"""The GGN's leading eigenvectors within the layers' coordinates, from a sample of its rows.

With rows ``A [S, m]`` (``G = A^T A / S`` in expectation) the right singular vectors of ``A`` are the eigenvectors of
``G``. Directions outside the span of the training examples' gradients carry no influence, since
``phi^T (G + lambda)^-1 g`` needs that span only; within it, the directions with the least energy are cut first.

No more is decomposed than is needed:

* Where nearly all directions are kept, the smaller one of ``A A^T [S, S]`` (the method of snapshots, Sirovich 1987) and
  ``A^T A [m, m]`` is decomposed in full; the other one is never formed, so ``S`` or ``m`` may be tens of thousands.
* Where most are cut, neither is: a random ``k``-dimensional space is multiplied by ``A^T A`` a few times (randomised
  subspace iteration, Halko, Martinsson and Tropp 2011, algorithm 4.4, with the LU factorisation between the
  multiplications that their section 4.5 allows), until one more multiplication finds hardly any energy that the one
  before it missed. Deviations from the eigenvectors: the basis is of the leading space but not rotated within it, since
  who asks rotates it once in any case, and its weakest directions are mixed with the strongest ones that are cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from influence_engine.curvature.row_matrix import BlockRows, RowMatrix
from influence_engine.resources import one_thread

_ROUNDING = 1e-7
"""Share of the largest eigenvalue below which eigenvectors are mostly rounding of the rows, and differ by build."""

_IN_FULL = 1.5
"""Size of a decomposition, relative to the directions kept, up to which it takes no longer than multiplying."""

_SMALL = 1024
"""Size of a decomposition that takes a fraction of a second."""

_FOUND = 0.1
"""Share of the missed energy which the last multiplication may have found."""

_TOGETHER = 2**29
"""Bytes of rows in double precision up to which they are all in memory while their products are taken."""

_MULTIPLICATIONS = 8
"""Most multiplications by ``A^T A``."""


@dataclass(frozen=True)
class Eigenbasis:
    """An orthonormal basis of the leading directions of the rows.

    Attributes:
        vectors: ``[m, k]``; in order of their energy where they come from a full decomposition.
        energy_kept: Share of the rows' energy (sum of squares) that lies in the ``k`` directions.
    """

    vectors: Tensor
    energy_kept: float


def fit_eigenbasis(rows: RowMatrix | Sequence[Tensor], dimensions: int) -> Eigenbasis:
    """Fits the basis; beside two blocks of rows and the basis itself, only the smaller of ``S`` by ``S`` and ``m`` by
    ``m`` numbers are in memory, or a few times ``S`` by ``k`` and ``m`` by ``k``.

    Args:
        rows: ``[S, m]``, weighted rows of sampled examples in the layers' coordinates; a matrix, or its
            blocks.
        dimensions: The largest ``k``.
    """
    matrix = BlockRows(rows) if isinstance(rows, Sequence) else rows
    count, width = matrix.shape
    if not decomposed_size(count, width, dimensions):
        return _by_multiplication(matrix, dimensions)
    return _from_products(matrix, dimensions) if count <= width else _from_covariance(matrix, dimensions)


def decomposed_size(count: int, width: int, dimensions: int) -> int:
    """Size of the matrix that is decomposed in full for rows ``[count, width]``; 0 where most would be cut, so that
    rows are multiplied a few times instead."""
    smaller = min(count, width)
    return smaller if smaller <= max(_SMALL, _IN_FULL * dimensions) else 0


def decomposed(products: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``[S]`` of a positive semidefinite matrix, largest first, and its eigenvectors ``[S, S]`` in columns,
    both in double precision; eigenvalues that rounding left below zero are zero."""
    with one_thread():
        values, vectors = torch.linalg.eigh(products.double())
    return values.flip(0).clamp_min(0), vectors.flip(1)


def _from_products(rows: RowMatrix, dimensions: int) -> Eigenbasis:
    """From ``A A^T``: ``A^T U S^-1``."""
    values, vectors = decomposed(_products(rows))
    k = _kept(values, dimensions)
    basis = rows.combinations((vectors[:, :k] / values[:k].sqrt()).to(rows.like))
    del vectors
    # Nearly orthonormal already; one Cholesky-QR step makes it so for the weakest directions too.
    factor = torch.linalg.cholesky((basis.T @ basis).double()).to(basis)
    vectors = torch.linalg.solve_triangular(factor, basis.T, upper=False).T.contiguous()
    return Eigenbasis(vectors, float(values[:k].sum() / values.sum()))


def _from_covariance(rows: RowMatrix, dimensions: int) -> Eigenbasis:
    """From ``A^T A``, whose eigenvectors are the basis."""
    covariance = rows.like.new_zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for block in rows.blocks():
        wide = block.double()
        covariance.addmm_(wide.T, wide)
    values, vectors = decomposed(covariance)
    k = _kept(values, dimensions)
    return Eigenbasis(vectors[:, :k].to(rows.like).contiguous(), float(values[:k].sum() / values.sum()))


def _kept(values: Tensor, dimensions: int) -> int:
    return max(1, min(dimensions, int((values > values[0] * _ROUNDING).sum())))


def _by_multiplication(rows: RowMatrix, dimensions: int) -> Eigenbasis:
    """By randomised subspace iteration."""
    generator, like = torch.Generator().manual_seed(0), rows.like
    start = torch.randn(rows.shape[1], dimensions, generator=generator).to(like)
    space = _independent(rows.combinations(rows.products(start)))
    space = rows.combinations(rows.products(space))
    energy = max(sum(float(block.double().pow(2).sum()) for block in rows.blocks()), torch.finfo(torch.float64).tiny)
    missed = float("inf")
    for _ in range(_MULTIPLICATIONS):
        basis = _orthonormal(space)
        projected = rows.products(basis)
        before, missed = missed, 1.0 - float(projected.double().pow(2).sum()) / energy
        if missed >= (1.0 - _FOUND) * before or missed < _ROUNDING:
            break
        space = rows.combinations(projected)
    if missed < _ROUNDING:  # maybe fewer directions than were asked for, and the others are of rounding
        values, vectors = decomposed(projected.T @ projected)
        basis = basis @ vectors[:, : _kept(values, dimensions)].to(basis)
    return Eigenbasis(basis, min(1.0, 1.0 - missed))


def _independent(vectors: Tensor) -> Tensor:
    """Well-conditioned vectors ``[m, k]`` with the same span: the lower factor of an LU factorisation with pivoting."""
    with one_thread():
        packed, pivots, _ = torch.linalg.lu_factor_ex(vectors)
    order = list(range(len(vectors)))
    for place, pivot in enumerate(pivots.tolist()):
        order[place], order[pivot - 1] = order[pivot - 1], order[place]
    lower = packed.tril(-1)
    lower.diagonal().fill_(1)
    return torch.empty_like(lower).index_copy_(0, torch.tensor(order, device=lower.device), lower)


def _orthonormal(vectors: Tensor) -> Tensor:
    with one_thread():
        return torch.linalg.qr(vectors).Q


def _products(rows: RowMatrix) -> Tensor:
    """``A A^T [S, S]`` in double precision, since small eigenvalues are differences of large numbers."""
    count, width = rows.shape
    together = [block.double() for block in rows.blocks()] if 8 * count * width <= _TOGETHER else None
    upper = []
    for number, first in enumerate(together or rows.blocks()):
        wide = first.double()
        later = [wide @ other.double().T for other in (together[number:] if together else rows.blocks(number))]
        known = wide.new_zeros(len(wide), count - sum(part.shape[1] for part in later))
        upper.append(torch.cat([known, *later], 1))
    half = torch.cat(upper).triu()
    return half + half.triu(1).T
