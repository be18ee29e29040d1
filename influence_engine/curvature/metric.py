"""The optimiser's metric, as a product of rows and columns a layer.

Adam steps along ``D^-1 g`` with ``D = sqrt(v + eps^2)``, so influence lives in that metric. ``v`` has a number for
every weight; its rank-one form ``v_ij ~ row_i column_j / mean`` (Adafactor, Shazeer and Stern 2018) lets gradients
stay factored, and changes the influences little (``benchmarks/coordinates.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from influence_engine.gradients import LayerGradient, TrackedLayers


@dataclass(frozen=True)
class LayerMetric:
    """``D^-1/2`` of one layer as ``row_i column_j``; gradients scaled so have the metric of the identity.

    Attributes:
        row: ``[d0]``.
        column: ``[d1]``.
    """

    row: Tensor
    column: Tensor

    def scale(self, gradient: LayerGradient) -> LayerGradient:
        """The gradient in coordinates in which the optimiser's metric is the identity."""
        return gradient.scale(self.row, self.column)


Metric = Mapping[str, LayerMetric]
"""By layer name."""


def identity_metric(tracked: TrackedLayers) -> dict[str, LayerMetric]:
    """The metric of plain gradient descent."""
    return {layer.name: LayerMetric(torch.ones(layer.shape[0]), torch.ones(layer.shape[1])) for layer in tracked.layers}


def adam_metric(tracked: TrackedLayers, second_moments: Mapping[str, Tensor], epsilon: float) -> dict[str, LayerMetric]:
    """The metric of Adam from its bias-corrected second moments, given by parameter name."""
    metric = {}
    for name, moments in tracked.matrices(second_moments).items():
        squares = moments.double() + epsilon**2
        mean = squares.mean().sqrt()
        metric[name] = LayerMetric(
            (squares.mean(1) / mean).pow(-0.25).float(), (squares.mean(0) / mean).pow(-0.25).float()
        )
    return metric
