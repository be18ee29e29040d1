"""Influence at the final weights without the index's approximations: conjugate gradients with exact products."""

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
from influence_engine.refinement.products import Space, TrainingProducts
from influence_engine.tasks import Example, Task

STAGE = "solving"

MOST_BYTES = 1024**3
"""Of the vectors that are solved for at once."""

_VECTORS = 6
"""A solve holds so many vectors a query: solution, residual, direction, product, preconditioned residual, and one."""


@dataclass(frozen=True)
class Refined:
    """What a solve found.

    Attributes:
        influences: ``[Q, N]``, in the index's order.
        changes: ``[Q]``, by how much the last pass changed the influences, relative to them.
        passes: Over the training examples.
    """

    influences: Tensor
    changes: Tensor
    passes: int

    @classmethod
    def joined(cls, parts: Sequence[Refined]) -> Refined:
        """Of several batches of queries."""
        return cls(
            torch.cat([one.influences for one in parts]),
            torch.cat([one.changes for one in parts]),
            sum(one.passes for one in parts),
        )


class Refiner:
    """Solves for the influence of all training examples on a query, with passes over all of them.

    ``-1/N g_i^T (G + lambda D)^-1 phi``, with the index's damping and metric, exact gradients, and the exact ``G``.

    Args:
        model: The fine-tuned model, in evaluation mode.
        task: Its task.
        index: An index of approximation ``final``.
        train: The training examples, in any order.
        tolerance: A solve ends when a pass changes the influences by less, relative to them.
        most_passes: After which it ends in any case.
        progress: Told of every batch.

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
        self.space = Space(passes.tracked, encoder.coordinates.preconditioner, index.device)
        self._products = TrainingProducts(passes, in_index_order(index, train), self.space)
        self._damping = index.manifest.damping
        self._preconditioned = IndexPreconditioner(encoder, self._damping, self.space)
        self._tolerance, self._most_passes, self._progress = tolerance, most_passes, progress

    @property
    def at_once(self) -> int:
        """Queries that share a pass."""
        return max(1, MOST_BYTES // (4 * _VECTORS * self.space.size))

    def refine(self, measured: Tensor) -> Refined:
        """The influences on measurements ``[Q]`` that still have their graph; ``at_once`` of them at most."""
        parameters = list(self.space.parameters.values())
        gradients = [
            torch.autograd.grad(one, parameters, retain_graph=place + 1 < len(measured), allow_unused=True)
            for place, one in enumerate(measured)
        ]
        with torch.no_grad():
            return self._solve(torch.stack([self.space.of_gradient(one) for one in gradients]))

    def _solve(self, right: Tensor) -> Refined:
        """Preconditioned conjugate gradients (Polak and Ribiere's form, which bears a preconditioner that rounds)."""
        count = len(self._products)
        along = right.new_zeros(len(right), count)  # inner products of the solution with the loss gradients
        residual, preconditioned = right.clone(), self._preconditioned(right)
        direction = preconditioned.clone()
        energy = _inner(residual, preconditioned)
        changes = torch.full_like(energy, torch.inf)
        done = 0
        while done < self._most_passes:
            active = (changes > self._tolerance).nonzero().flatten()
            if not len(active):
                break

            def told(examples: int, before: int = done, note: str = f"changes of {float(changes.max()):.1e}") -> None:
                self._progress(STAGE, before * count + examples, self._most_passes * count, note)

            product, slopes = self._products.product(direction[active], told)
            product += self._damping * direction[active]
            step = (energy[active] / _inner(direction[active], product).clamp_min(1e-30)).unsqueeze(1)
            along[active] += step * slopes
            changes[active] = (step * slopes).norm(dim=1) / along[active].norm(dim=1).clamp_min(1e-30)
            before = residual[active]
            residual[active] = before - step * product
            preconditioned = self._preconditioned(residual[active])
            new = _inner(residual[active], preconditioned)
            turn = (_inner(residual[active] - before, preconditioned) / energy[active].clamp_min(1e-30)).clamp_min(0)
            direction[active] = preconditioned + turn.unsqueeze(1) * direction[active]
            energy[active] = new
            done += 1
        self._progress(STAGE, self._most_passes * count, self._most_passes * count, f"{done} passes")
        return Refined(-along / count, changes, done)


def _inner(first: Tensor, second: Tensor) -> Tensor:
    """Inner products of rows."""
    return (first * second).sum(1)
