"""The optimiser's preconditioner ``D``, kept as a product of a row and a column vector for each layer.

Adam's step is ``-eta D^-1 m`` with ``D = sqrt(v + eps^2)`` (Kingma and Ba 2015, algorithm 1; the epsilon is inside the
square root here, as in the recorded optimiser), so the damped system of an influence is ``(G + lambda D)^-1``. With
gradients scaled by ``D^-1/2`` it becomes ``(D^-1/2 G D^-1/2 + lambda I)^-1``: *preconditioned coordinates*, in which
everything else is computed.

Deviation from Adam: ``v`` has a number for every weight; its rank-one form ``v_ij ~ row_i column_j / mean`` (Adafactor,
Shazeer and Stern 2018, section 3) lets gradients stay factored, and changes influences little
(``benchmarks/coordinates.py``). Where no ``v`` was recorded, squared gradients of training examples at the final
weights estimate it: a factor that all of them share drops out, since damping and eigenvalues scale with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from influence_engine.gradients import LayerGradient, TrackedLayers


@dataclass(frozen=True)
class LayerPreconditioner:
    """``D^-1/2`` of one layer, as ``row_i column_j``.

    Attributes:
        row: ``[d0]``.
        column: ``[d1]``.
    """

    row: Tensor
    column: Tensor

    def apply(self, gradient: LayerGradient) -> LayerGradient:
        """``D^-1/2 g``: the gradient in preconditioned coordinates, where the optimiser is plain gradient descent."""
        return gradient.scale(self.row, self.column)

    def matrix(self) -> Tensor:
        """``D^-1/2`` with a number for every weight, ``[d0, d1]``."""
        return self.row.unsqueeze(1) * self.column

    def to(self, device: torch.device) -> LayerPreconditioner:
        """A copy on a device."""
        return LayerPreconditioner(self.row.to(device), self.column.to(device))


Preconditioner = Mapping[str, LayerPreconditioner]
"""``D^-1/2`` of all tracked layers, by layer name."""


def identity_preconditioner(tracked: TrackedLayers) -> dict[str, LayerPreconditioner]:
    """The preconditioner of plain gradient descent: ones."""
    return {
        layer.name: LayerPreconditioner(torch.ones(layer.shape[0]), torch.ones(layer.shape[1]))
        for layer in tracked.layers
    }


def adam_preconditioner(
    tracked: TrackedLayers, second_moments: Mapping[str, Tensor], epsilon: float
) -> dict[str, LayerPreconditioner]:
    """Adam's preconditioner in rank-one form.

    Args:
        tracked: The layers.
        second_moments: Bias-corrected ``v``, by parameter name.
        epsilon: Adam's, in the units of a gradient.
    """
    preconditioner = {}
    for name, moments in tracked.matrices(second_moments).items():
        squares = moments.double() + epsilon**2
        mean = squares.mean().sqrt()
        preconditioner[name] = LayerPreconditioner(
            (squares.mean(1) / mean).pow(-0.25).float(), (squares.mean(0) / mean).pow(-0.25).float()
        )
    return preconditioner


class SecondMomentEstimate:
    """Sums squared gradients of examples, layer by layer, as an estimate of Adam's second moments."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}
        self._touched: dict[str, int] = {}
        self._examples = 0

    def add(self, gradients: Mapping[str, LayerGradient], examples: int) -> None:
        """Adds a batch's gradients, by layer name; ``examples`` is the size of the batch."""
        self._examples += examples
        for name, gradient in gradients.items():
            rows, columns, touched = gradient.squares()
            if name in self._sums:
                self._sums[name][0].add_(rows)
                self._sums[name][1].add_(columns)
            else:
                self._sums[name] = (rows.double(), columns.double())
            self._touched[name] = self._touched.get(name, 0) + touched

    def preconditioner(self, tracked: TrackedLayers) -> dict[str, LayerPreconditioner]:
        """Adam's preconditioner from the sums; ones for a layer without any gradient."""
        preconditioner = identity_preconditioner(tracked)
        for name, (rows, columns) in self._sums.items():
            total = rows.sum()
            if total > 0:
                # Add-one smoothing, as if every row and column had had one more gradient of mean size: a word that no
                # sampled example contains is a rare word, not one whose weights Adam moves without bound.
                rows = (rows + total / self._touched[name]) / (len(columns) * self._examples)
                columns = (columns + total / (self._examples * len(columns))) / (len(rows) * self._examples)
                mean = (total / (len(rows) * len(columns) * self._examples)).sqrt()
                preconditioner[name] = LayerPreconditioner(
                    (rows / mean).pow(-0.25).float(), (columns / mean).pow(-0.25).float()
                )
        return preconditioner
