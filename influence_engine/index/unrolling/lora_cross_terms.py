"""What the two factors of an adapter do to each other's gradients, which Gauss-Newton matrices leave out.

An adapter adds ``s B A x`` to a layer's outputs. With ``M = s dL/dW [m, n]`` (the gradient that the adapted matrix
itself would have, times the scale) the gradients of its factors are ``B^T M`` and ``M A^T``: a change of one moves the
other's, by ``dB^T M`` and ``M dA^T``, at any output curvature. It is the larger part of the Hessian while ``B`` is next
to its start at zero. ``M`` comes with the passes for nothing: ``B``'s output gradients by ``A``'s inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from influence_engine.gradients import LayerGradient, TrackedLayers
from influence_engine.gradients.factors import FactoredGradient
from influence_engine.index.encoding.encoder import LayerCoordinates
from influence_engine.index.unrolling.step_displacement import StepMove

MOST = 256
"""Leading coordinates that are coupled; twice as many cost twice as much and gained little."""

_INNER, _OUTER = ".lora_A.", ".lora_B."


@dataclass(frozen=True)
class Coupling:
    """One step's; ``q`` leading coordinates of the basis.

    Attributes:
        seen: ``[q, q]``, what weights displaced along a coordinate (rows) do to the step's gradient before clipping, in
            coordinates (columns); ``[0, 0]`` where it is not asked for.
        direct: The same for the step's move.
        late: The same through the second moment; ``[0, 0]`` where there is none.
        along: ``[q]``, inner products of the changed gradient with the recorded one, after clipping.
    """

    seen: Tensor
    direct: Tensor
    late: Tensor
    along: Tensor


def adapter_pairs(tracked: TrackedLayers) -> dict[str, str]:
    """Names of the layers that hold ``A``, and of those that hold their ``B``."""
    names = {layer.name for layer in tracked.layers}
    pairs = {name: name.replace(_INNER, _OUTER) for name in names if _INNER in name}
    return {inner: outer for inner, outer in pairs.items() if outer in names}


def coupling_bytes(tracked: TrackedLayers, dimensions: int) -> int:
    """Bytes of one step's coupling."""
    width = min(MOST, dimensions) if adapter_pairs(tracked) else 0
    return 4 * (2 * width**2 + width)


def coupling_operations(tracked: TrackedLayers, dimensions: int, coordinates: int, *, seen: bool) -> int:
    """Multiplications and additions that it takes to compute it."""
    shapes, pairs = {layer.name: layer.shape for layer in tracked.layers}, adapter_pairs(tracked)
    width = min(MOST, dimensions) if pairs else 0
    products = sum(shapes[inner][0] * shapes[inner][1] * shapes[outer][0] for inner, outer in pairs.items())
    return 4 * width * products + (4 + 2 * seen) * width**2 * coordinates


class StepCoupling:
    """Gathers ``M`` of every adapter over a step's batch."""

    def __init__(self, pairs: Mapping[str, str]) -> None:
        self._pairs = pairs
        self._mixed: dict[str, Tensor] = {}

    def add(self, gradients: Mapping[str, LayerGradient], weights: Tensor) -> None:
        """Adds a batch of pulled-back rows, ``weights [B]`` times each."""
        for inner, outer in self._pairs.items():
            left, right = gradients.get(outer), gradients.get(inner)
            if isinstance(left, FactoredGradient) and isinstance(right, FactoredGradient):
                mixed = (left.left * weights[:, None, None]).flatten(0, 1).T @ right.right.flatten(0, 1)
                self._mixed[inner] = self._mixed[inner].add_(mixed) if inner in self._mixed else mixed

    def coupled(self, coordinates: LayerCoordinates, basis: Tensor, move: StepMove, *, seen: bool) -> Coupling:
        """See ``Coupling``.

        Args:
            coordinates: Of the index.
            basis: ``[m, k]``.
            move: How the step's gradient moved the final weights.
            seen: Whether ``Coupling.seen`` is asked for.
        """
        basis = basis[:, : MOST if self._mixed else 0]
        width = basis.shape[1]
        kinds = [*move.kinds, *[move.metric] * seen]
        totals = [basis.new_zeros(width, width) for _ in kinds]
        along = basis.new_zeros(width)
        places = coordinates.places()
        for inner, mixed in self._mixed.items():
            outer = self._pairs[inner]
            of_inner, of_outer = (coordinates.displacements(name, basis[places[name]]) for name in (inner, outer))
            changes = {
                inner: of_outer.transpose(1, 2) @ mixed,
                outer: (of_inner @ mixed.T).transpose(1, 2),
            }
            for name, change in changes.items():
                along += (change * move.clipped[name]).sum((1, 2))
                for total, matrices in zip(totals, kinds, strict=True):
                    total.addmm_(coordinates.seen(name, change * matrices[name]), basis[places[name]])
        nothing = basis.new_zeros(0, 0)
        in_metric = totals.pop() if seen else nothing
        direct, *late = totals
        return Coupling(in_metric, direct, late[0] if late else nothing, along)
