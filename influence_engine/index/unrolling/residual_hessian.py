"""What a step's Hessian does beyond its Gauss-Newton matrix, exact along a few directions of the weights.

A step's objective ``sum_j c_j l_j(f_j(theta))`` has the Hessian ``G + R``: its Gauss-Newton matrix, and the residual
part ``R = sum_j <r_j, d^2 f_j>`` with ``r_j`` the objective's gradient by the outputs. Along what examples do to the
weights ``R`` is often the larger one (``benchmarks/RESULTS.md``): trained layers multiply each other's gradients. Its
product with one displacement costs what a step of exact replay costs for one direction. With displacements
``U [k, q]``, orthonormal in the index's coordinates, ``Y = R U``, less what is known of ``R`` without (the coupling of
adapters), and ``S = U^T Y``, the rest of ``R`` is taken as

    V Y^T + B (V^T + M B^T),    V = E^-1 U (U^T E^-1 U)^-1,    B = Y - V S,    M = (|S| + t |B|)^-1,

which is symmetric and gives ``Y`` for ``U``. ``V`` says what of a displacement is along ``U``, and of all changes of
the gradient that change it along ``U`` it moves the final weights least (``E`` of ``training.sensitivity``): the
nearest change, ``U`` itself, would be one of weights that no example of the step touches, which the optimiser answers
hugely.

``B M B^T`` stands for what is not known: what displacements that are not along ``U`` do to gradients that are not,
either. To take it for nothing would be a poor guess, since a matrix of ``S``, ``B`` and zeros beside them has negative
eigenvalues that ``R`` need not have, along which responses grow from step to step. With ``t = 0`` and a positive ``S``
it is the Nystroem approximation, ``Y S^-1 Y^T``: the smallest that has none of them. ``t`` keeps it below ``|B| / t``
where ``S`` is small. ``|S|`` and ``|B|`` are measured as ``E`` moves weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from influence_engine.gradients import TrackedLayers
from influence_engine.index.encoding.encoder import LayerCoordinates
from influence_engine.index.unrolling.lora_cross_terms import Coupling
from influence_engine.index.unrolling.step_displacement import StepMove
from influence_engine.tasks import Batch
from influence_engine.training.optimizers import Parameters
from influence_engine.training.schedule import Step
from influence_engine.training.step import Objective, gradients_of_micro_batches, seeded

_SHARE = 0.1
"""``t``."""

_MOST_AT_ONCE = 4
_BYTES_AT_ONCE = 3 * 2**30
_PRODUCT_BYTES = 28
"""For each trained parameter: a displacement and what it does, as parameters and by layer; and a micro-batch's part."""


@dataclass(frozen=True)
class ResidualRows:
    """Rows of a linearised step that belong to no example, ``2 q``; fields as of ``LinearStep``.

    Attributes:
        pulled: ``[2 q, k]``.
        moves: ``direct`` and, where there is one, ``late``, ``[2 q, k]``.
        along: ``[2 q]``, inner products with the recorded gradient, after clipping.
    """

    pulled: Tensor
    moves: list[Tensor]
    along: Tensor


@dataclass(frozen=True)
class GradientChanges:
    """Changes of a step's gradient, ``q``, as they are seen in the index's coordinates.

    Attributes:
        seen: ``[q, k]``, in the metric.
        moves: ``[q, k]``, as ``direct`` and (where there is one) ``late`` of ``LinearStep``.
        along: ``[q]``, inner products with the recorded gradient, after clipping.
    """

    seen: Tensor
    moves: list[Tensor]
    along: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> GradientChanges:
        """A linear function over the changes (the first dimension) of every field."""
        return GradientChanges(function(self.seen), [function(one) for one in self.moves], function(self.along))

    def minus(self, other: GradientChanges) -> GradientChanges:
        """The differences."""
        moves = [one - less for one, less in zip(self.moves, other.moves, strict=True)]
        return GradientChanges(self.seen - other.seen, moves, self.along - other.along)

    def less(self, coupling: Coupling, directions: Tensor) -> GradientChanges:
        """Less what a step's coupling, a part of ``R``, does along ``directions [k, q]``."""

        def without(tensor: Tensor, coupled: Tensor) -> Tensor:
            width = len(coupled)
            taken = directions[:width].T @ coupled
            if taken.dim() == 1:
                return tensor - taken
            return torch.cat([tensor[:, :width] - taken, tensor[:, width:]], 1)

        coupled_moves = [coupling.direct, coupling.late][: len(self.moves)]
        moves = [without(one, coupled) for one, coupled in zip(self.moves, coupled_moves, strict=True)]
        return GradientChanges(without(self.seen, coupling.seen), moves, without(self.along, coupling.along))


@dataclass(frozen=True)
class ResidualProducts:
    """What is known of ``R`` at one step.

    Attributes:
        directions: ``U [k, q]``.
        changed: ``Y``.
        needed: ``E^-1 U``.
    """

    directions: Tensor
    changed: GradientChanges
    needed: GradientChanges

    def rows(self, coupling: Coupling) -> ResidualRows:
        """The rows that stand for ``R``, less a coupling that is followed beside them."""
        changed = self.changed.less(coupling, self.directions)
        shape = torch.linalg.pinv(_symmetric(self.needed.seen @ self.directions), hermitian=True)
        least = self.needed.map(lambda tensor: shape @ tensor)  # V
        along = _symmetric(changed.seen @ self.directions)  # S
        beside = changed.minus(least.map(lambda tensor: along @ tensor))  # B
        unknown = _unknown(along, _symmetric(beside.seen @ beside.moves[0].T), _root(shape))
        pulled = torch.cat([changed.seen, least.seen + unknown @ beside.seen])
        moves = [torch.cat(pair) for pair in zip(least.moves, beside.moves, strict=True)]
        return ResidualRows(pulled, moves, torch.cat([least.along, beside.along]))


def _unknown(along: Tensor, beside: Tensor, root: Tensor) -> Tensor:
    """``M [q, q]`` of ``S``, ``B^T E B`` and the root of ``(U^T E^-1 U)^-1``."""
    size = torch.linalg.matrix_norm(root @ beside @ root, 2).sqrt()
    values, vectors = torch.linalg.eigh(_symmetric(root @ along @ root))
    inverse = torch.nan_to_num(1.0 / (values.abs() + _SHARE * size), posinf=0.0)
    return root @ (vectors * inverse) @ vectors.T @ root


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


def _root(matrix: Tensor) -> Tensor:
    """Of a matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(_symmetric(matrix))
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


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


@dataclass(frozen=True)
class _Displaced:
    """Displacements of the weights, ``q``.

    Attributes:
        by_layer: ``[q, d0, d1]``.
        by_parameter: The same, laid out as the parameters.
    """

    by_layer: dict[str, Tensor]
    by_parameter: Parameters


def at_once(tracked: TrackedLayers) -> int:
    """Displacements of one backward pass: what they take of memory grows with their number."""
    return max(1, min(_MOST_AT_ONCE, _BYTES_AT_ONCE // (_PRODUCT_BYTES * tracked.parameters)))


def product_bytes(tracked: TrackedLayers, directions: int) -> int:
    """Bytes of as many products as are done at once."""
    return _PRODUCT_BYTES * tracked.parameters * min(at_once(tracked), directions)


class ResidualHessian:
    """Multiplies ``R`` of the recorded steps with a few displacements.

    Args:
        objective: Model and task.
        tracked: The model's layers.
        coordinates: Of the index.
        basis: ``[m, k]``.
        directions: ``U [k, q]``.
        weights: The recorded ``w_i``, ``[N]``.
    """

    def __init__(
        self,
        objective: ResidualObjective,
        tracked: TrackedLayers,
        coordinates: LayerCoordinates,
        basis: Tensor,
        directions: Tensor,
        weights: Tensor,
    ) -> None:
        self._objective, self._tracked, self._weights = objective, tracked, weights
        self._coordinates, self._basis, self._directions = coordinates, basis, directions
        self._lifted = basis @ directions
        # Where all are done at once they are laid out once, for all steps.
        self._kept = list(self._laid_out()) if directions.shape[1] <= at_once(tracked) else None

    def products(
        self, step: Step, batches: Sequence[Batch], parameters: Parameters, move: StepMove
    ) -> ResidualProducts:
        """At one step.

        Args:
            step: The step.
            batches: Its micro-batches, collated.
            parameters: Before the step.
            move: How the step's gradient moved the final weights.
        """
        needed = ({name: move.gradients(name, tensor) for name, tensor in one.by_layer.items()} for one in self._some())
        start = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
        changed = self._seen(move, (self._changes(step, batches, start, one) for one in self._some()))
        return ResidualProducts(self._directions, changed, self._seen(move, needed))

    def _some(self) -> Iterable[_Displaced]:
        return self._laid_out() if self._kept is None else self._kept

    def _laid_out(self) -> Iterator[_Displaced]:
        """Displacements along the directions, a few at a time."""
        tracked, places = self._tracked, self._coordinates.places()
        for chunk in torch.split(self._lifted, at_once(tracked), dim=1):
            by_layer = {name: self._coordinates.displacements(name, chunk[place]) for name, place in places.items()}
            still = {one.name: chunk.new_zeros(one.shape) for one in tracked.layers if one.name not in by_layer}
            every = [
                tracked.parameters_of(still | {name: one[number] for name, one in by_layer.items()})
                for number in range(chunk.shape[1])
            ]
            yield _Displaced(by_layer, {name: torch.stack([one[name] for one in every]) for name in every[0]})

    def _changes(
        self, step: Step, batches: Sequence[Batch], start: Parameters, displaced: _Displaced
    ) -> dict[str, Tensor]:
        """What displacements do to a step's gradient at ``start``, ``[q, d0, d1]`` by layer."""
        count = len(next(iter(displaced.by_layer.values())))
        total = {name: tensor.new_zeros(count, *tensor.shape) for name, tensor in start.items()}
        with seeded(step.seed):
            for graph, *others in gradients_of_micro_batches(
                self._objective, step, batches, start, self._weights, differentiable=True
            ):
                _add_changes(total, graph, start, displaced.by_parameter)
                del graph, others
        every = [self._tracked.matrices({name: one[number] for name, one in total.items()}) for number in range(count)]
        return {name: torch.stack([one[name] for one in every]) for name in displaced.by_layer}

    def _seen(self, move: StepMove, changes: Iterable[Mapping[str, Tensor]]) -> GradientChanges:
        """Changes of the gradient, ``[q, d0, d1]`` by layer and a few at a time, in the index's coordinates."""
        kinds = [move.metric, *move.kinds]
        parts: list[list[Tensor]] = [[] for _ in kinds]
        along: list[Tensor] = []
        for some in changes:
            for part, factors in zip(parts, kinds, strict=True):
                part.append(
                    torch.cat([self._coordinates.seen(name, one * factors[name]) for name, one in some.items()], 1)
                )
            along.append(torch.stack([(one * move.clipped[name]).sum((1, 2)) for name, one in some.items()]).sum(0))
        # All at once: reading the basis costs more than multiplying by it.
        together = torch.cat([each for part in parts for each in part]) @ self._basis
        seen, *moves = torch.split(together, sum(map(len, along)))
        return GradientChanges(seen, moves, torch.cat(along))


def _add_changes(total: Parameters, graph: Parameters, start: Parameters, displacements: Parameters) -> None:
    """Adds what displacements do to a part of the gradient.

    Args:
        total: ``[q, ...]`` by parameter.
        graph: The part, as a function of ``start``.
        start: The parameters.
        displacements: As ``total``; those that are not named stay where they are.
    """
    parts = {name: tensor for name, tensor in graph.items() if tensor.requires_grad}
    if not parts:  # a model that is linear in its weights
        return
    along = [displacements.get(name, torch.zeros_like(total[name])) for name in parts]
    count = len(along[0])
    # Together on a GPU, which waits for kernels to be launched; a processor is a fifth faster with one at a time.
    chosen: list[int | slice] = [slice(count)] if along[0].is_cuda else list(range(count))
    for some in chosen:
        found = torch.autograd.grad(
            list(parts.values()),
            list(start.values()),
            [one[some] for one in along],
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=isinstance(some, slice),
        )
        for name, one in zip(start, found, strict=True):
            if one is not None:
                total[name][some] += one
