"""The index's own damped inverse as a preconditioner: the solve begins where the estimated tier ends."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from influence_engine.gradients.coordinates import LayerProjection
from influence_engine.index.encoding.encoder import Encoder
from influence_engine.refinement.products import Space


class IndexPreconditioner:
    """``(V diag(eigenvalues) V^T + lambda I)^-1``, with ``V`` the index's eigenvectors and no curvature beside them.

    Args:
        encoder: Of the index, not packed.
        damping: ``lambda``.
        space: Where vectors live.
    """

    def __init__(self, encoder: Encoder, damping: float, space: Space) -> None:
        self._projections: Mapping[str, LayerProjection] = encoder.coordinates.projections
        self._space = space
        self._damping = damping
        stored = encoder.basis.float()
        # As stored the rows are rounded; a longer one would make a curvature negative.
        root = torch.linalg.cholesky(stored @ stored.T)
        self._basis = torch.linalg.solve_triangular(root, stored, upper=False)
        self._change = 1 / (encoder.eigenvalues + damping) - 1 / damping

    def __call__(self, vectors: Tensor) -> Tensor:
        """Applied to vectors ``[Q, P]``."""
        matrices = self._space.matrices(vectors)
        coordinates = torch.cat([self._project(name, matrices[name]) for name in self._projections], 1)
        changed = (coordinates @ self._basis.T * self._change) @ self._basis
        sizes = [one.size for one in self._projections.values()]
        parts = dict(zip(self._projections, torch.split(changed, sizes, 1), strict=True))
        expanded = [
            (self._expand(name, parts[name]) if name in parts else torch.zeros_like(matrices[name])).flatten(1)
            for name in self._space.shapes
        ]
        return vectors / self._damping + torch.cat(expanded, 1)

    def _project(self, name: str, matrix: Tensor) -> Tensor:
        one = self._projections[name]
        rows = matrix[:, one.left] if one.left.dim() == 1 else one.left.T @ matrix
        return (rows @ one.right).flatten(1)

    def _expand(self, name: str, coordinates: Tensor) -> Tensor:
        one = self._projections[name]
        rows = coordinates.reshape(-1, one.left.shape[-1], one.right.shape[-1]) @ one.right.T
        if one.left.dim() > 1:
            return one.left @ rows
        whole = rows.new_zeros(len(rows), *self._space.shapes[name])
        whole[:, one.left] = rows
        return whole
