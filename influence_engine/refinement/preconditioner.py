"""The index's damped inverse as the solve's preconditioner: its first direction is the estimated tier's solution."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from influence_engine.gradients.coordinates import LayerProjection
from influence_engine.index.encoding.encoder import Encoder
from influence_engine.refinement.products import PreconditionedSpace


class IndexPreconditioner:
    """``(V diag(eigenvalues) V^T + lambda I)^-1`` with the index's eigenvectors ``V``: no curvature orthogonal to them.

    By the Woodbury identity it is ``1/lambda I + V (1/(eigenvalues + lambda) - 1/lambda) V^T``.

    Args:
        encoder: The index's encoder, with its weights not packed for MKL-DNN.
        damping: ``lambda``.
        space: The space of the vectors.
    """

    def __init__(self, encoder: Encoder, damping: float, space: PreconditionedSpace) -> None:
        self._projections: Mapping[str, LayerProjection] = encoder.coordinates.projections
        self._space = space
        self._damping = damping
        stored = encoder.basis.float()
        # The stored eigenvectors are rounded; one longer than 1 would make the preconditioner indefinite.
        root = torch.linalg.cholesky(stored @ stored.T)
        self._basis = torch.linalg.solve_triangular(root, stored, upper=False)
        self._change = 1 / (encoder.eigenvalues + damping) - 1 / damping

    def __call__(self, vectors: Tensor) -> Tensor:
        """Applies the preconditioner to vectors ``[Q, P]``."""
        matrices = self._space.matrices(vectors)
        coordinates = torch.cat([self._project(name, matrices[name]) for name in self._projections], 1)
        changed = (coordinates @ self._basis.T * self._change) @ self._basis
        sizes = [projection.size for projection in self._projections.values()]
        parts = dict(zip(self._projections, torch.split(changed, sizes, 1), strict=True))
        expanded = [
            (self._expand(name, parts[name]) if name in parts else torch.zeros_like(matrices[name])).flatten(1)
            for name in self._space.shapes
        ]
        return vectors / self._damping + torch.cat(expanded, 1)

    def _project(self, name: str, matrix: Tensor) -> Tensor:
        projection = self._projections[name]
        left = projection.left
        rows = matrix[:, left] if left.dim() == 1 else left.T @ matrix
        return (rows @ projection.right).flatten(1)

    def _expand(self, name: str, coordinates: Tensor) -> Tensor:
        left, right = self._projections[name].left, self._projections[name].right
        rows = coordinates.reshape(-1, left.shape[-1], right.shape[-1]) @ right.T
        if left.dim() > 1:
            return left @ rows
        whole = rows.new_zeros(len(rows), *self._space.shapes[name])
        whole[:, left] = rows
        return whole
