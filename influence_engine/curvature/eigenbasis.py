"""The GGN's eigenvectors within the layers' coordinates, from a sample of its rows.

With rows ``A [S, m]`` (``G = A^T A / S`` in expectation) the right singular vectors of ``A`` are the eigenvectors.
The ``S`` by ``S`` product is decomposed, never the ``m`` by ``m`` one, so ``m`` may be tens of thousands. Directions
outside the span of the training examples' gradients carry no influence (``phi^T (G + lambda)^-1 g`` needs that span
only), and the weakest within it are cut first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Eigenbasis:
    """An orthonormal basis of the coordinates, ordered by curvature.

    Attributes:
        vectors: ``[m, k]``.
        kept: Share of the rows' energy that the ``k`` directions keep.
    """

    vectors: Tensor
    kept: float


def fit_eigenbasis(rows: Tensor, dimensions: int) -> Eigenbasis:
    """Fits the basis.

    Args:
        rows: ``[S, m]``, weighted rows of sampled examples in the layers' coordinates.
        dimensions: The largest ``k``.
    """
    values, vectors = torch.linalg.eigh((rows @ rows.T).double())
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    # Below this the singular vectors are noise of the single-precision products.
    rank = int((values > values[0] * 1e-7).sum())
    k = max(1, min(dimensions, rank))
    basis = rows.T @ (vectors[:, :k] / values[:k].sqrt()).to(rows.dtype)
    # Nearly orthonormal already; one Cholesky-QR step makes it so for the weakest directions too.
    factor = torch.linalg.cholesky((basis.T @ basis).double())
    basis = torch.linalg.solve_triangular(factor, basis.T.double(), upper=False).T.to(rows.dtype)
    return Eigenbasis(basis.contiguous(), float(values[:k].sum() / values.sum()))
