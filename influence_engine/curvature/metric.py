"""The optimiser's metric, as a product of rows and columns a layer.

Adam steps along ``D^-1 g`` with ``D = sqrt(v + eps^2)``, so influence lives in that metric. ``v`` has a number for
every weight; its rank-one form ``v_ij ~ row_i column_j / mean`` (Adafactor, Shazeer and Stern 2018) lets gradients
stay factored, and changes the influences little (``benchmarks/coordinates.py``).

Where no ``v`` was recorded, squared gradients of training examples at the final weights stand in for it: a factor that
they share drops out, since damping and eigenvalues are in the same metric.
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

    def to(self, device: torch.device) -> LayerMetric:
        """The same on a device."""
        return LayerMetric(self.row.to(device), self.column.to(device))


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


class SquaresFit:
    """Gathers, layer by layer, the squared gradients that stand in for Adam's second moments."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}
        self._touched: dict[str, int] = {}
        self._examples = 0

    def add(self, gradients: Mapping[str, LayerGradient], examples: int) -> None:
        """Adds the gradients of one batch of so many examples, by layer name."""
        self._examples += examples
        for name, gradient in gradients.items():
            rows, columns, touched = gradient.squares()
            if name in self._sums:
                self._sums[name][0].add_(rows)
                self._sums[name][1].add_(columns)
            else:
                self._sums[name] = (rows.double(), columns.double())
            self._touched[name] = self._touched.get(name, 0) + touched

    def metric(self, tracked: TrackedLayers) -> dict[str, LayerMetric]:
        """The metric; a layer without any gradient has that of the identity."""
        metric = identity_metric(tracked)
        for name, (rows, columns) in self._sums.items():
            total = rows.sum()
            if total > 0:
                # As if every row and column had been met once more: a word that no sampled example has is a rare one,
                # not one that Adam moves without end.
                rows = (rows + total / self._touched[name]) / (len(columns) * self._examples)
                columns = (columns + total / (self._examples * len(columns))) / (len(rows) * self._examples)
                mean = (total / (len(rows) * len(columns) * self._examples)).sqrt()
                metric[name] = LayerMetric((rows / mean).pow(-0.25).float(), (columns / mean).pow(-0.25).float())
        return metric
