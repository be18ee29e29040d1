"""A query's direction in the model's weights: the inner products of training gradients with it are the influences.

An index at the final weights holds ``<g_i, u> = -phi^T (G + lambda)^-1 g_i / N`` exactly, in its coordinates: the
direction ``u`` is one. An index that follows the training holds ``d theta / d w_i``, which is a sum over the steps that
example ``i`` took part in, of its gradients at the weights of those steps. Of them the index keeps the sum only. Here
they are estimated as SOURCE does (Bae et al. 2024; ``index.unrolling.source_segments``): at the middles of a few
segments of the linear path from the base model's weights to the final ones, each with a direction of its own,

    u_s = -(1 - e^(-tau_s L)) L^-1 e^(-tau_after L) phi / N

in the eigenvectors of the final weights' GGN with eigenvalues ``L``. What such an estimate leaves of an influence, its
user has to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from influence_engine.curvature import heuristic_damping
from influence_engine.index import InfluenceIndex
from influence_engine.training.optimizers import Parameters

SEGMENTS = 3
"""As many as an index of approximation ``segments`` has by default."""


@dataclass(frozen=True)
class DirectionAt:
    """Weights of the model, and a direction there.

    Attributes:
        weights: Values of the trained parameters, by name.
        along: ``[d0, d1]`` by layer name.
    """

    weights: Parameters
    along: Mapping[str, Tensor]


class QueryDirections:
    """Finds the directions of an index's queries.

    Args:
        index: The index.
        model: The fine-tuned model.
        base: The model before fine-tuning; left out, all is taken at the final weights.
    """

    def __init__(self, index: InfluenceIndex, model: nn.Module, base: nn.Module | None) -> None:
        self.index = index
        end = {name: one.detach() for name, one in model.named_parameters() if one.requires_grad}
        final = index.manifest.approximation == "final"
        self.exact = final
        count = 1 if final or base is None else SEGMENTS
        start = end if base is None else dict(base.named_parameters())
        self._weights: list[Parameters] = [
            end if final or base is None else {n: torch.lerp(start[n].detach(), end[n], middle) for n in end}
            for middle in ((number + 0.5) / count for number in range(count))
        ]

    def of(self, encoded: Tensor, *, damping: float | None = None) -> list[DirectionAt]:
        """The directions of one query.

        Args:
            encoded: The query's vector ``[k]``, from the index's encoder.
            damping: As for ``InfluenceIndex.scores``.
        """
        encoder = self.index.encoder
        turned = (encoded.float() * self._gains(damping)).to(encoder.basis.dtype) @ encoder.plain_basis
        coordinates, layers = turned.float(), encoder.coordinates
        along = {name: layers.displacements(name, coordinates[:, where].T) for name, where in layers.slices().items()}
        return [
            DirectionAt(weights, {name: matrices[number] for name, matrices in along.items()})
            for number, weights in enumerate(self._weights)
        ]

    def _gains(self, damping: float | None) -> Tensor:
        """What each eigenvector's coordinate is multiplied with, ``[points, k]``."""
        values, manifest, count = self.index.encoder.eigenvalues.double(), self.index.manifest, len(self._weights)
        if self.exact:
            return (-1.0 / manifest.rows / (values + (manifest.damping if damping is None else damping))).float()[None]
        time = (manifest.training_time or 1.0 / heuristic_damping(values)) / count
        gained = torch.where(time * values > 1e-8, -torch.expm1(-time * values) / values.clamp_min(1e-30), time)
        after = torch.arange(count - 1, -1, -1, dtype=values.dtype, device=values.device)
        return (-gained * torch.exp(-after[:, None] * time * values) / manifest.rows).float()
