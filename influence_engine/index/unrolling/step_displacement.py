"""How a change of one recorded step's gradient displaces the final weights, layer by layer.

With the weights and gradients of a layer in preconditioned coordinates, ``x = D^1/2 delta theta`` and ``D^-1/2 g``, the
diagonal sensitivities ``E`` and ``L`` of ``training.sensitivity`` are multiplied by ``D^1/2`` on the side of the
weights; gradients come in unscaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from influence_engine.gradients import TrackedLayers
from influence_engine.index.encoding.encoder import LayerCoordinates
from influence_engine.training.optimizers import Parameters


@dataclass(frozen=True)
class StepDisplacement:
    """The final weights' sensitivity to the gradient of one step.

    Attributes:
        sensitivities: ``D^1/2 E`` and, for Adam, ``D^1/2 L`` as ``[d0, d1]`` by layer: elementwise factors that turn a
            change of the step's gradient into minus a displacement of the final weights.
        preconditioner: ``D^-1/2`` as ``[d0, d1]`` by layer.
        by_layer: The step's gradient after clipping, ``[d0, d1]`` by layer.
        by_parameter: The same gradient, by parameter.
    """

    sensitivities: list[dict[str, Tensor]]
    preconditioner: dict[str, Tensor]
    by_layer: dict[str, Tensor]
    by_parameter: Parameters

    @classmethod
    def of(
        cls,
        coordinates: LayerCoordinates,
        tracked: TrackedLayers,
        sensitivities: Sequence[Parameters | None],
        gradient: Parameters,
    ) -> StepDisplacement:
        """Lays ``E``, ``L`` (or ``None``) and the gradient, given by parameter, out by layer."""
        matrices = [tracked.matrices(each) for each in sensitivities if each is not None]
        preconditioner = {name: one.matrix() for name, one in coordinates.preconditioner.items()}
        # E and L stay full matrices, unlike the rank-one preconditioner: L has the signs of a gradient, and E is huge
        # where a weight (of a word that has not occurred yet) has had no gradient.
        scaled = [
            {name: one[name] / scale for name, scale in preconditioner.items() if name in one} for one in matrices
        ]
        return cls(scaled, preconditioner, tracked.matrices(gradient), gradient)

    def inverse(self, name: str, delta: Tensor) -> Tensor:
        """``E^-1 delta``: changes of a layer's gradient that displace the final weights by ``delta [q, d0, d1]``.

        Zero where ``E`` is, since no gradient displaces these weights.
        """
        rates = self.sensitivities[0][name] * self.preconditioner[name]
        return torch.where(rates > 0, delta / rates, 0.0)
