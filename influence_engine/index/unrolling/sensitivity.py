"""How the final weights answer to every example's weight, by running through the linearised steps once.

``D [N, k]`` holds ``d theta / d w_i`` in the index's coordinates. Step by step, with ``r_j`` the step's rows,

    coefficients_j = curvature_j <r_j, D>  +  source_j where row j is example i's,

less what clipping takes, and ``D`` moves by ``-coefficients (direct + late)``, each released as the optimiser does (see
``training.sensitivity``). Where adapters were trained, it also moves by what their factors do to each other
(``couplings``). This is unrolled differentiation with Gauss-Newton matrices in place of Hessians. SOURCE (Bae et al.
2024) treats stretches of steps as one; here every recorded step counts, with its own batch, learning rate, clipping and
moments. For SGD and a model that is linear in its weights, or in the products of adapters, it equals exact replay.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from influence_engine.index.unrolling.linearization import LinearStep
from influence_engine.training.sensitivity import ImpulseResponse


class Response:
    """``D`` for a block of examples, step after step; examples do not depend on each other.

    Args:
        first: First example of the block.
        count: Examples in the block.
        dimensions: ``k``.
        direct: How ``LinearStep.direct`` is released.
        late: The same for ``LinearStep.late``.
        decays: ``[T]``, share of the weights that each step's decay leaves.
        device: Where to compute.
    """

    def __init__(
        self,
        first: int,
        count: int,
        dimensions: int,
        direct: ImpulseResponse,
        late: ImpulseResponse | None,
        decays: Tensor,
        device: torch.device,
    ) -> None:
        self.weights = torch.zeros(count, dimensions, device=device)
        self._first = first
        self._decays = decays
        self._done = 0
        self._channels = [_Channel(release, torch.zeros_like(self.weights)) for release in (direct, late) if release]

    def advance(self, steps: Iterable[LinearStep]) -> None:
        """Goes through the steps that come next."""
        for step in steps:
            step = step.to(self.weights.device)
            coefficients = self._coefficients(step)
            displaced = step.clip * self.weights[:, : len(step.coupled)]
            if float(self._decays[self._done]) != 1.0:
                self.weights *= float(self._decays[self._done])
            moved = ((step.direct, step.coupled), (step.late, step.coupled_late))
            for channel, (moves, coupled) in zip(self._channels, moved, strict=False):
                channel.add(coefficients, moves, self._done)
                channel.add(displaced.T, coupled, self._done)
                channel.release(self.weights, self._done)
            self._done += 1

    def _coefficients(self, step: LinearStep) -> Tensor:
        """``[n, examples]``."""
        coefficients = step.curvature.unsqueeze(1) * (step.pulled @ self.weights.T)
        places = step.examples - self._first
        inside = ((places >= 0) & (places < len(self.weights))).nonzero().flatten()
        coefficients[inside, places[inside]] += step.source[inside]
        if float(step.clip) < 1.0:
            # d (c g / |g|) = c / |g| (dg - g <g, dg> / |g|^2)
            along = step.along @ coefficients + self.weights[:, : len(step.coupled_along)] @ step.coupled_along
            coefficients -= step.gradient.unsqueeze(1) * along
            coefficients *= step.clip
        return coefficients


class _Channel:
    def __init__(self, release: ImpulseResponse, pending: Tensor) -> None:
        self._rates, self._totals, self._decay = release.rates.tolist(), release.totals().tolist(), release.decay
        self._pending = pending

    def add(self, coefficients: Tensor, moves: Tensor, step: int) -> None:
        """This step moves ``coefficients [n, examples]`` times ``moves [n, q]``, in the first ``q`` coordinates."""
        if len(moves) and self._totals[step]:
            pending = self._pending[:, : moves.shape[1]]
            pending.addmm_(coefficients.T, moves, alpha=-1.0 / self._totals[step])

    def release(self, weights: Tensor, step: int) -> None:
        """Moves the weights by what arrives now."""
        if self._totals[step]:
            weights.add_(self._pending, alpha=self._rates[step])
        self._pending.mul_(self._decay)
