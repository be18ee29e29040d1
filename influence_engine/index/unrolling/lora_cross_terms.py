"""LoRA cross terms: the part of the Hessian between an adapter's two factors, which Gauss-Newton matrices leave out.

LoRA (Hu et al. 2022, eq. 3) adds ``s B A x`` to a layer's outputs. With ``M = s dl/dW [m, n]`` (the gradient that the
adapted matrix ``W`` itself would have, times the scale ``s``) the gradients of the factors are ``B^T M`` and ``M A^T``;
by the product rule a change of one factor changes the other one's gradient by ``dB^T M`` and ``M dA^T``, whatever the
curvature at the outputs. These are the *cross terms* (this project's own derivation): the larger part of the Hessian
while ``B`` is close to its initial zeros. ``M`` needs no pass of its own: it is ``B``'s output gradients times ``A``'s
inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from influence_engine.gradients import LayerGradient, TrackedLayers
from influence_engine.gradients.factors import FactoredGradient
from influence_engine.index.encoding.encoder import LayerCoordinates
from influence_engine.index.unrolling.step_displacement import StepDisplacement

MAX_COORDINATES = 256
"""Leading coordinates that have cross terms; twice as many cost twice as much and gained little."""

_INNER, _OUTER = ".lora_A.", ".lora_B."


@dataclass(frozen=True)
class CrossTerms:
    """Cross terms of one step, ``C [q, q]`` in the ``q`` leading coordinates of the basis.

    Row ``j`` is the effect of weights that are displaced along coordinate ``j``.

    Attributes:
        gradient: The effect on the step's gradient before clipping, in coordinates; ``[0, 0]`` where not asked for.
        direct: The effect on the final weights through ``E`` (``training.sensitivity``).
        second_moment: The effect on the final weights through ``L``; ``[0, 0]`` for optimisers without second moments.
        along: ``[q]``, inner products of the gradient's change with the recorded gradient after clipping.
    """

    gradient: Tensor
    direct: Tensor
    second_moment: Tensor
    along: Tensor


def adapter_pairs(tracked: TrackedLayers) -> dict[str, str]:
    """Names of the layers that hold a factor ``A``, each with the name of the layer that holds its ``B``."""
    names = {layer.name for layer in tracked.layers}
    pairs = {name: name.replace(_INNER, _OUTER) for name in names if _INNER in name}
    return {inner: outer for inner, outer in pairs.items() if outer in names}


def cross_term_bytes(tracked: TrackedLayers, dimensions: int) -> int:
    """Bytes of one step's cross terms."""
    width = min(MAX_COORDINATES, dimensions) if adapter_pairs(tracked) else 0
    return 4 * (2 * width**2 + width)


def cross_term_operations(tracked: TrackedLayers, dimensions: int, coordinates: int, *, with_gradient: bool) -> int:
    """Multiplications and additions that computing one step's cross terms takes."""
    shapes, pairs = {layer.name: layer.shape for layer in tracked.layers}, adapter_pairs(tracked)
    width = min(MAX_COORDINATES, dimensions) if pairs else 0
    products = sum(shapes[inner][0] * shapes[inner][1] * shapes[outer][0] for inner, outer in pairs.items())
    return 4 * width * products + (4 + 2 * with_gradient) * width**2 * coordinates


class CrossTermSum:
    """Sums ``M`` of every adapter over a step's batch.

    Args:
        pairs: As ``adapter_pairs`` returns them.
    """

    def __init__(self, pairs: Mapping[str, str]) -> None:
        self._pairs = pairs
        self._sums: dict[str, Tensor] = {}

    def add(self, gradients: Mapping[str, LayerGradient], weights: Tensor) -> None:
        """Adds a batch of pulled-back rows, each times its weight ``[B]``."""
        for inner, outer in self._pairs.items():
            left, right = gradients.get(outer), gradients.get(inner)
            if isinstance(left, FactoredGradient) and isinstance(right, FactoredGradient):
                found = (left.left * weights[:, None, None]).flatten(0, 1).T @ right.right.flatten(0, 1)
                self._sums[inner] = self._sums[inner].add_(found) if inner in self._sums else found

    def cross_terms(
        self, coordinates: LayerCoordinates, basis: Tensor, displacement: StepDisplacement, *, with_gradient: bool
    ) -> CrossTerms:
        """The step's cross terms.

        Args:
            coordinates: The index's layer coordinates.
            basis: ``[m, k]``.
            displacement: How the step's gradient displaces the final weights.
            with_gradient: Whether ``CrossTerms.gradient`` is asked for.
        """
        basis = basis[:, : MAX_COORDINATES if self._sums else 0]
        width = basis.shape[1]
        factors = [*displacement.sensitivities, *[displacement.preconditioner] * with_gradient]
        totals = [basis.new_zeros(width, width) for _ in factors]
        along = basis.new_zeros(width)
        slices = coordinates.slices()
        for inner, product in self._sums.items():
            outer = self._pairs[inner]
            of_inner, of_outer = (coordinates.displacements(name, basis[slices[name]]) for name in (inner, outer))
            changes = {
                inner: of_outer.transpose(1, 2) @ product,  # dB^T M
                outer: (of_inner @ product.T).transpose(1, 2),  # M dA^T
            }
            for name, change in changes.items():
                along += (change * displacement.by_layer[name]).sum((1, 2))
                for total, matrices in zip(totals, factors, strict=True):
                    total.addmm_(coordinates.project_matrices(name, change * matrices[name]), basis[slices[name]])
        nothing = basis.new_zeros(0, 0)
        gradient = totals.pop() if with_gradient else nothing
        direct, *second_moment = totals
        return CrossTerms(gradient, direct, second_moment[0] if second_moment else nothing, along)
