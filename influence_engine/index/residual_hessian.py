"""What a step's Hessian does beyond its Gauss-Newton matrix, exact along a few directions of the weights.

A step's objective ``sum_j c_j l_j(f_j(theta))`` has the Hessian ``G + R``: its Gauss-Newton matrix, and the residual
part ``R = sum_j <r_j, d^2 f_j>`` with ``r_j`` the objective's gradient by the outputs. Along what examples do to the
weights ``R`` is often the larger one (``benchmarks/RESULTS.md``): trained layers multiply each other's gradients. Its
product with one displacement costs what a step of exact replay costs for one direction. With displacements
``U [k, q]``, orthonormal in the index's coordinates, ``R`` is taken as ``R U U^T``: exact for weights within their
span, and outside it nothing but what couples adapters. (Its transpose says what weights outside do to gradients within.
Adding that made the recursion diverge for embeddings, where the optimiser's preconditioner is far from the metric.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from influence_engine.gradients import TrackedLayers
from influence_engine.index.couplings import Coupling
from influence_engine.index.encoder import LayerCoordinates
from influence_engine.tasks import Batch
from influence_engine.training.optimizers import Parameters
from influence_engine.training.schedule import Step
from influence_engine.training.step import Objective, gradient, seeded

AT_ONCE = 4
"""Displacements of one backward pass: what they take of memory grows with their number."""


@dataclass(frozen=True)
class ResidualRows:
    """Rows of a linearised step that belong to no example; fields as of ``LinearStep``.

    Attributes:
        pulled: ``[q, k]``, ``U^T``.
        moves: ``direct`` and, where there is one, ``late``, ``[q, k]``.
        along: ``[q]``, inner products with the recorded gradient, after clipping.
    """

    pulled: Tensor
    moves: list[Tensor]
    along: Tensor

    def without(self, coupling: Coupling) -> ResidualRows:
        """Less what a step's coupling, a part of ``R``, does along the same directions already."""
        moves = [move.clone() for move in self.moves]
        for move, coupled in zip(moves, (coupling.direct, coupling.late), strict=False):
            move[:, : len(coupled)] -= self.pulled[:, : len(coupled)] @ coupled
        along = self.along - self.pulled[:, : len(coupling.along)] @ coupling.along
        return ResidualRows(self.pulled, moves, along)


class ResidualObjective(Objective):
    """``sum_j <r_j, f_j>`` with ``r_j`` held fixed: its Hessian is ``R``."""

    def forward(self, batch: Batch, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """That sum, and the losses, ``[B]``."""
        outputs = self.outputs(batch)
        leaf = outputs.detach().requires_grad_()
        losses = self.task.loss(leaf, batch)
        (fixed,) = torch.autograd.grad((coefficients.to(losses.device) * losses).sum(), leaf)
        return (outputs * fixed).sum(), losses.detach()


def leading_directions(vectors: Tensor, width: int) -> Tensor:
    """``U [k, q]``: where gradients ``[n, k]`` have most of their energy; all of the space where ``width`` has room."""
    if width >= vectors.shape[1]:
        return torch.eye(vectors.shape[1])
    _, singular, directions = torch.linalg.svd(vectors, full_matrices=False)
    kept = int((singular > 1e-6 * singular[0]).sum())
    return directions[: min(width, kept)].T.contiguous()


def residual_rows(
    objective: ResidualObjective,
    step: Step,
    batches: Sequence[Batch],
    parameters: Parameters,
    weights: Tensor,
    tracked: TrackedLayers,
    coordinates: LayerCoordinates,
    basis: Tensor,
    directions: Tensor,
    moves: Sequence[Mapping[str, Tensor]],
    clipped: Mapping[str, Tensor],
) -> ResidualRows:
    """The rows that stand for ``R`` at one step.

    Args:
        objective: Model and task.
        step: The step.
        batches: Its micro-batches, collated.
        parameters: Before the step.
        weights: The recorded ``w_i``, ``[N]``.
        tracked: The model's layers.
        coordinates: Of the index.
        basis: ``[m, k]``.
        directions: ``U [k, q]``.
        moves: ``E`` and, where there is one, ``L`` in the metric, by layer.
        clipped: The step's gradient after clipping, by layer.
    """
    places = coordinates.places()
    moved: list[list[Tensor]] = [[] for _ in moves]
    along: list[Tensor] = []
    start = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
    with seeded(step.seed):
        graph, _, _ = gradient(objective, step, batches, start, weights, differentiable=True)
    for changes in _products(graph, start, tracked, coordinates, basis @ directions):
        for kind, factors in zip(moved, moves, strict=True):
            parts = [coordinates.seen(name, one * factors[name]) @ basis[places[name]] for name, one in changes.items()]
            kind.append(torch.stack(parts).sum(0))
        along.append(torch.stack([(one * clipped[name]).sum((1, 2)) for name, one in changes.items()]).sum(0))
    return ResidualRows(directions.T.contiguous(), [torch.cat(kind) for kind in moved], torch.cat(along))


def _products(
    graph: Parameters, start: Parameters, tracked: TrackedLayers, coordinates: LayerCoordinates, lifted: Tensor
) -> Iterator[dict[str, Tensor]]:
    """What displacements do to ``sum_j r_j^T df_j``, ``[q, d0, d1]`` by layer; a few displacements at a time.

    Args:
        graph: That sum, as a function of ``start``.
        start: The parameters.
        tracked: The model's layers.
        coordinates: Of the index.
        lifted: ``[m, q]``, displacements in the layers' coordinates.
    """
    names = [name for name, tensor in graph.items() if tensor.requires_grad]
    places = coordinates.places()
    for first in range(0, lifted.shape[1], AT_ONCE):
        chunk = lifted[:, first : first + AT_ONCE]
        displaced = {name: coordinates.displacements(name, chunk[place]) for name, place in places.items()}
        others = {one.name: chunk.new_zeros(one.shape) for one in tracked.layers if one.name not in places}
        every = [
            tracked.parameters_of(others | {name: one[number] for name, one in displaced.items()})
            for number in range(chunk.shape[1])
        ]
        vectors = [torch.stack([one.get(name, torch.zeros_like(start[name])) for one in every]) for name in names]
        found = torch.autograd.grad(
            [graph[name] for name in names],
            list(start.values()),
            vectors,
            retain_graph=first + AT_ONCE < lifted.shape[1],
            allow_unused=True,
            is_grads_batched=True,
        )
        by_name = {
            name: tensor.new_zeros(chunk.shape[1], *tensor.shape) if one is None else one
            for (name, tensor), one in zip(start.items(), found, strict=True)
        }
        changes = [
            tracked.matrices({name: one[number] for name, one in by_name.items()}) for number in range(chunk.shape[1])
        ]
        yield {name: torch.stack([one[name] for one in changes]) for name in displaced}
