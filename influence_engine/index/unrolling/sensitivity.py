"""The final weights' sensitivity to every example's weight, ``X = d theta / d w``, by unrolling the linearised steps.

``X [N, k]`` is in the index's coordinates. By the chain rule over the recorded steps, a step whose gradient is
``g(theta, w)`` adds, for example ``i``'s row ``x_i`` of ``X``,

    dg_i = sum_j c_ij r_j,    c_ij = h_j <r_j, x_i> + (s_j where row j belongs to example i, else 0),
    x_i <- x_i - (E + L) dg_i,

with the step's pulled-back rows ``r_j``, their curvatures ``h_j`` and their loss coefficients ``s_j``
(``linearization``), less what clipping takes from ``dg_i``. ``E`` and ``L`` say how far a change of the gradient
displaces the final weights, spread over the later steps by the optimiser's moments (``training.sensitivity``).
LoRA adapters add their cross terms (``lora_cross_terms``), rows without an example the residual Hessian
(``residual_hessian``).

This is unrolled differentiation (Hara, Nitanda and Maehara 2019; exact by Ilyas and Engstrom 2025) with Gauss-Newton
matrices in place of Hessians. SOURCE (Bae et al. 2024) takes the steps of a segment as one; here every recorded step
counts, with its own batch, learning rate, clipping and moments. For SGD and a model that is linear in its weights, or
in the products of adapters, ``X`` equals exact replay.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from influence_engine.index.unrolling.linearization import LinearisedStep
from influence_engine.training.sensitivity import ImpulseResponse


class ParameterSensitivity:
    """``X`` for a block of examples, step after step; blocks are independent of each other.

    Args:
        block: Positions of the block's examples.
        dimensions: ``k``.
        responses: How displacements through ``E`` and (for Adam) through ``L`` are spread over the later steps.
        decays: ``[T]``, the share of the weights that each step's weight decay leaves.
        device: Where to compute.

    Attributes:
        values: ``X [n, k]`` after the steps so far.
    """

    def __init__(
        self,
        block: range,
        dimensions: int,
        responses: tuple[ImpulseResponse, ImpulseResponse | None],
        decays: Tensor,
        device: torch.device,
    ) -> None:
        self.values = torch.zeros(len(block), dimensions, device=device)
        self._first = block.start
        self._decays = decays
        self._done = 0
        self._pending = [_PendingDisplacement(each, torch.zeros_like(self.values)) for each in responses if each]

    def advance(self, steps: Iterable[LinearisedStep]) -> None:
        """Goes through the steps that come next."""
        for step in steps:
            step = step.to(self.values.device)
            coefficients = self._coefficients(step)
            displaced = step.clip * self.values[:, : len(step.cross_direct)]
            if float(self._decays[self._done]) != 1.0:
                self.values *= float(self._decays[self._done])
            displacements = ((step.direct, step.cross_direct), (step.second_moment, step.cross_second_moment))
            for pending, (rows, cross_terms) in zip(self._pending, displacements, strict=False):
                pending.add(coefficients, rows, self._done)
                pending.add(displaced.T, cross_terms, self._done)
                pending.release(self.values, self._done)
            self._done += 1

    def _coefficients(self, step: LinearisedStep) -> Tensor:
        """``c_ij`` after clipping, ``[rows, examples]``."""
        coefficients = step.curvature.unsqueeze(1) * (step.pulled @ self.values.T)
        places = step.examples - self._first
        inside = ((places >= 0) & (places < len(self.values))).nonzero().flatten()
        coefficients[inside, places[inside]] += step.source[inside]
        if float(step.clip) < 1.0:
            # Clipping to the norm c: d (c g / |g|) = c / |g| (dg - g <g, dg> / |g|^2), the product rule.
            along = step.along @ coefficients + self.values[:, : len(step.cross_along)] @ step.cross_along
            coefficients -= step.gradient.unsqueeze(1) * along
            coefficients *= step.clip
        return coefficients


class _PendingDisplacement:
    """Displacements of the final weights through one of the optimiser's moments, which arrive step by step.

    Args:
        response: How they are spread over the steps.
        pending: ``[n, k]``, zeros: what has not arrived yet.
    """

    def __init__(self, response: ImpulseResponse, pending: Tensor) -> None:
        self._rates, self._totals, self._decay = response.rates.tolist(), response.totals().tolist(), response.decay
        self._pending = pending

    def add(self, coefficients: Tensor, rows: Tensor, step: int) -> None:
        """Adds this step's ``-coefficients^T rows`` (``[n, examples]``, ``[n, q]``), in ``q`` leading coordinates."""
        if len(rows) and self._totals[step]:
            pending = self._pending[:, : rows.shape[1]]
            pending.addmm_(coefficients.T, rows, alpha=-1.0 / self._totals[step])

    def release(self, values: Tensor, step: int) -> None:
        """Adds what arrives at this step to ``values``."""
        if self._totals[step]:
            values.add_(self._pending, alpha=self._rates[step])
        self._pending.mul_(self._decay)
