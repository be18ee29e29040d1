"""Influence at the final weights without the index's approximations: conjugate gradients with exact products.

This is the influence function of Koh and Liang (2017, equation 2), its inverse applied by conjugate gradients (their
section 3), with two deviations: the Gauss-Newton matrix ``G`` in place of the Hessian, and the damping ``lambda D``
with the optimiser's preconditioner ``D`` in place of a multiple of the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from influence_engine.index import InfluenceIndex
from influence_engine.index.building.pipeline import ENCODER, passes_for
from influence_engine.index.encoding.encoder import Encoder
from influence_engine.index.ordering import in_index_order
from influence_engine.index.settings import IndexSettings
from influence_engine.progress import Progress, silent
from influence_engine.refinement.preconditioner import IndexPreconditioner
from influence_engine.refinement.products import PreconditionedSpace, TrainingProducts
from influence_engine.tasks import Example, Task

STAGE = "solving for refined influences"

MAX_BYTES = 1024**3
"""Memory of the vectors of one solve, which bounds how many queries it is for."""

_VECTORS = 6
"""Vectors that a solve holds for a query: right side, residual, direction, product, preconditioned residual, spare."""


@dataclass(frozen=True)
class Refined:
    """The result of a solve by conjugate gradients.

    Attributes:
        influences: ``[Q, N]``, in the index's order, in units of the measurement.
        changes: ``[Q]``, the norm of the last iteration's change of the influences, relative to their norm.
        passes: Number of passes over the training examples.
    """

    influences: Tensor
    changes: Tensor
    passes: int

    @classmethod
    def joined(cls, parts: Sequence[Refined]) -> Refined:
        """The results of several batches of queries as one."""
        return cls(
            torch.cat([part.influences for part in parts]),
            torch.cat([part.changes for part in parts]),
            sum(part.passes for part in parts),
        )


class Refiner:
    """Computes the influence of all training examples on queries, by passes over all of them.

    The influence of example ``i`` is ``-1/N g_i^T (G + lambda D)^-1 phi``, with its loss gradient ``g_i``, the
    measurement's gradient ``phi``, the exact Gauss-Newton matrix ``G``, and the index's damping ``lambda`` and
    preconditioner ``D``.

    Args:
        model: The fine-tuned model, in evaluation mode.
        task: The model's task.
        index: An index of approximation ``final``.
        train: The training examples, in any order.
        tolerance: A solve ends when an iteration changes the influences by less than this, relative to their norm.
        most_passes: Number of iterations, each a pass over all examples, after which a solve ends in any case.
        progress: Called after every batch.

    Raises:
        DigestMismatchError: the examples are not those of the index.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        index: InfluenceIndex,
        train: Sequence[Example],
        *,
        tolerance: float = 1e-2,
        most_passes: int = 30,
        progress: Progress = silent,
    ) -> None:
        passes = passes_for(model, task, IndexSettings.model_validate(index.manifest.settings))
        encoder = Encoder.load(index.folder / ENCODER).to(index.device)
        self.space = PreconditionedSpace(passes.tracked, encoder.coordinates.preconditioner, index.device)
        self._products = TrainingProducts(passes, in_index_order(index, task, train), self.space)
        self._damping = index.manifest.damping
        self._precondition = IndexPreconditioner(encoder, self._damping, self.space)
        self._tolerance, self._most_passes, self._progress = tolerance, most_passes, progress

    @property
    def at_once(self) -> int:
        """Number of queries that are solved for together."""
        return max(1, MAX_BYTES // (4 * _VECTORS * self.space.size))

    def refine(self, measured: Tensor) -> Refined:
        """The influences on measurements ``[Q]``, at most ``at_once``, that have their autograd graph."""
        parameters = list(self.space.parameters.values())
        gradients = [
            torch.autograd.grad(measurement, parameters, retain_graph=place + 1 < len(measured), allow_unused=True)
            for place, measurement in enumerate(measured)
        ]
        with torch.no_grad():
            return self._solve(torch.stack([self.space.of_gradient(gradient) for gradient in gradients]))

    def _solve(self, right: Tensor) -> Refined:
        """Preconditioned conjugate gradients (Nocedal and Wright 2006, algorithm 5.3), one solve for each query.

        Two deviations, marked below: ``beta``, and by what a solve ends.
        """
        count = len(self._products)
        along = right.new_zeros(len(right), count)  # [Q, N]: inner products of the solutions with the loss gradients
        residual, preconditioned = right.clone(), self._precondition(right)
        direction = preconditioned.clone()
        energy = _inner(residual, preconditioned)
        changes = torch.full_like(energy, torch.inf)
        done = 0
        while done < self._most_passes:
            active = (changes > self._tolerance).nonzero().flatten()
            if not len(active):
                break

            def report(examples: int, before: int = done, note: str = f"changes of {float(changes.max()):.1e}") -> None:
                self._progress(STAGE, before * count + examples, self._most_passes * count, note)

            product, slopes = self._products.product(direction[active], report)
            product += self._damping * direction[active]
            step = (energy[active] / _inner(direction[active], product).clamp_min(1e-30)).unsqueeze(1)
            along[active] += step * slopes
            # Deviation: a solve ends by the change of the influences, which are what is asked for, not by the residual.
            changes[active] = (step * slopes).norm(dim=1) / along[active].norm(dim=1).clamp_min(1e-30)
            before = residual[active]
            residual[active] = before - step * product
            preconditioned = self._precondition(residual[active])
            new = _inner(residual[active], preconditioned)
            # Deviation: beta of Polak and Ribiere, cut off at 0, since the preconditioner is applied with rounding.
            beta = (_inner(residual[active] - before, preconditioned) / energy[active].clamp_min(1e-30)).clamp_min(0)
            direction[active] = preconditioned + beta.unsqueeze(1) * direction[active]
            energy[active] = new
            done += 1
        self._progress(STAGE, self._most_passes * count, self._most_passes * count, f"{done} passes")
        return Refined(-along / count, changes, done)


def _inner(first: Tensor, second: Tensor) -> Tensor:
    """Inner products ``[Q]`` of the rows of two matrices ``[Q, P]``."""
    return (first * second).sum(1)
