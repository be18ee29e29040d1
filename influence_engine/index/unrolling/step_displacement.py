"""How the gradient of one recorded step moved the final weights, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from influence_engine.gradients import TrackedLayers
from influence_engine.index.encoding.encoder import LayerCoordinates
from influence_engine.training.optimizers import Parameters


@dataclass(frozen=True)
class StepMove:
    """One step's.

    Attributes:
        kinds: ``E`` and, where there is one, ``L`` of ``training.sensitivity``, by layer: what gradients are multiplied
            with, number by number, to be moves of the weights in the index's coordinates.
        metric: What they are multiplied with to be gradients in these coordinates, by layer.
        clipped: The step's gradient after clipping, by layer.
        gradient: The same by parameter.
    """

    kinds: list[dict[str, Tensor]]
    metric: dict[str, Tensor]
    clipped: dict[str, Tensor]
    gradient: Parameters

    @classmethod
    def of(
        cls,
        coordinates: LayerCoordinates,
        tracked: TrackedLayers,
        kinds: Sequence[Parameters | None],
        gradient: Parameters,
    ) -> StepMove:
        """From the sums by parameter."""
        matrices = [tracked.matrices(kind) for kind in kinds if kind is not None]
        metric = {name: one.row.unsqueeze(1) * one.column for name, one in coordinates.metric.items()}
        # Weights are measured in the inverse of the gradients' metric. There is no rank-one form here, as of the
        # metric: L has the signs of a gradient, and E is huge where a weight (of a word not seen yet) had no gradient.
        scaled = [{name: one[name] / scale for name, scale in metric.items() if name in one} for one in matrices]
        return cls(scaled, metric, tracked.matrices(gradient), gradient)

    def gradients(self, name: str, displaced: Tensor) -> Tensor:
        """Gradients of a layer that would have moved the final weights by ``displaced [q, d0, d1]``, through ``E``."""
        rates = self.kinds[0][name] * self.metric[name]
        return torch.where(rates > 0, displaced / rates, 0.0)
