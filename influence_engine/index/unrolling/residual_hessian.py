"""A step's Hessian beyond its Gauss-Newton matrix, exact along a few directions of the parameters.

A step's objective ``sum_j c_j l_j(f_j(theta))`` has the Hessian ``G + R`` (Martens 2020, section 8): the Gauss-Newton
matrix, and the residual part ``R = sum_j <r_j, d^2 f_j>`` with ``r_j`` the objective's gradient by the outputs. Along
the displacements that training examples cause, ``R`` is often the larger one (``benchmarks/HISTORY.md``), since the
layers multiply each other's gradients. A product of ``R`` with a displacement costs as much as a step of exact replay
for one direction.

This project's own approximation: for displacements ``U [k, q]``, orthonormal in the index's coordinates, let
``Y = R U``, less the LoRA cross terms, which are computed exactly beside it, and ``S = U^T Y``. The rest of ``R`` is
approximated by

    V Y^T + B (V^T + M B^T),    V = E^-1 U (U^T E^-1 U)^-1,    B = Y - V S,    M = (|S| + t |B|)^-1,

which is symmetric and maps ``U`` to ``Y``.

* ``V^T`` extracts from a displacement its part along ``U`` (``V^T U = I``). Of all changes of the gradient with that
  property, ``V`` displaces the final weights least (``E`` of ``training.sensitivity``). ``U`` itself, the nearest such
  change, would have entries for weights that no example of the step has a gradient in, where ``E`` is huge.
* ``B M B^T`` stands for the unknown block of ``R``, outside ``U`` on both sides. Zeros there would be a poor guess: the
  matrix of ``S``, ``B`` and zeros has negative eigenvalues that ``R`` need not have, along which sensitivities grow
  from step to step. With ``t = 0`` and positive definite ``S`` the whole is the Nystroem approximation ``Y S^-1 Y^T``
  (Williams and Seeger 2001), with the smallest block that has no such eigenvalues; ``t > 0`` bounds the block by
  ``|B| / t`` where ``S`` is small. ``|S|`` and ``|B|`` are measured by the displacements that ``E`` makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from influence_engine.gradients import TrackedLayers
from influence_engine.index.encoding.encoder import LayerCoordinates
from influence_engine.index.unrolling.lora_cross_terms import CrossTerms
from influence_engine.index.unrolling.step_displacement import StepDisplacement
from influence_engine.tasks import Batch
from influence_engine.training.optimizers import Parameters
from influence_engine.training.schedule import Step
from influence_engine.training.step import Objective, gradients_of_micro_batches, seeded

_T = 0.1
"""``t``, which bounds the unknown block."""

_MAX_AT_ONCE = 4
"""Most products of one backward pass."""

_BYTES_AT_ONCE = 3 * 2**30
"""Memory that the products of one backward pass may take."""

_PRODUCT_BYTES = 28
"""For each trained parameter of one product: the displacement and its product, both by parameter and by layer, and a
micro-batch's part of the product."""


@dataclass(frozen=True)
class ResidualRows:
    """The ``2 q`` rows of a linearised step that make up its residual Hessian; fields as of ``LinearisedStep``.

    Attributes:
        pulled: ``[2 q, k]``.
        displacements: ``direct`` and, for Adam, ``second_moment``, ``[2 q, k]``.
        along: ``[2 q]``, inner products with the recorded gradient after clipping.
    """

    pulled: Tensor
    displacements: list[Tensor]
    along: Tensor


@dataclass(frozen=True)
class GradientChanges:
    """``q`` changes of a step's gradient, projected on the index's coordinates.

    Attributes:
        projected: ``[q, k]``, the changes themselves.
        displacements: ``[q, k]``, the changes through ``E`` and, for Adam, through ``L``, as ``direct`` and
            ``second_moment`` of ``LinearisedStep``.
        along: ``[q]``, inner products of the changes with the recorded gradient after clipping.
    """

    projected: Tensor
    displacements: list[Tensor]
    along: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> GradientChanges:
        """The changes with a linear function over the first dimension applied to every field."""
        displacements = [function(one) for one in self.displacements]
        return GradientChanges(function(self.projected), displacements, function(self.along))

    def minus(self, other: GradientChanges) -> GradientChanges:
        """The differences of two sets of changes."""
        displacements = [one - less for one, less in zip(self.displacements, other.displacements, strict=True)]
        return GradientChanges(self.projected - other.projected, displacements, self.along - other.along)

    def without(self, cross_terms: CrossTerms, directions: Tensor) -> GradientChanges:
        """The changes less the part of them that a step's LoRA cross terms cause along ``directions [k, q]``."""

        def subtract(tensor: Tensor, terms: Tensor) -> Tensor:
            width = len(terms)
            part = directions[:width].T @ terms
            if part.dim() == 1:
                return tensor - part
            return torch.cat([tensor[:, :width] - part, tensor[:, width:]], 1)

        terms = [cross_terms.direct, cross_terms.second_moment][: len(self.displacements)]
        displacements = [subtract(one, each) for one, each in zip(self.displacements, terms, strict=True)]
        projected = subtract(self.projected, cross_terms.gradient)
        return GradientChanges(projected, displacements, subtract(self.along, cross_terms.along))


@dataclass(frozen=True)
class ResidualProducts:
    """The products from which ``R`` is approximated at one step.

    Attributes:
        directions: ``U [k, q]``.
        products: ``Y = R U``.
        inverse: ``E^-1 U``.
    """

    directions: Tensor
    products: GradientChanges
    inverse: GradientChanges

    def rows(self, cross_terms: CrossTerms) -> ResidualRows:
        """The rows that approximate ``R`` less the LoRA cross terms, which are computed beside them."""
        y = self.products.without(cross_terms, self.directions)
        shape = torch.linalg.pinv(_symmetric(self.inverse.projected @ self.directions), hermitian=True)
        v = self.inverse.map(lambda tensor: shape @ tensor)
        s = _symmetric(y.projected @ self.directions)
        b = y.minus(v.map(lambda tensor: s @ tensor))
        m = _inner_block(s, _symmetric(b.projected @ b.displacements[0].T), _root(shape))
        pulled = torch.cat([y.projected, v.projected + m @ b.projected])
        displacements = [torch.cat(pair) for pair in zip(v.displacements, b.displacements, strict=True)]
        return ResidualRows(pulled, displacements, torch.cat([v.along, b.along]))


def _inner_block(s: Tensor, b_squared: Tensor, root: Tensor) -> Tensor:
    """``M [q, q]`` of ``S``, ``B^T E B`` and the root of ``(U^T E^-1 U)^-1``."""
    size = torch.linalg.matrix_norm(root @ b_squared @ root, 2).sqrt()
    values, vectors = torch.linalg.eigh(_symmetric(root @ s @ root))
    inverse = torch.nan_to_num(1.0 / (values.abs() + _T * size), posinf=0.0)
    return root @ (vectors * inverse) @ vectors.T @ root


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


def _root(matrix: Tensor) -> Tensor:
    """The symmetric root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(_symmetric(matrix))
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


class ResidualObjective(Objective):
    """``sum_j <r_j, f_j>`` with ``r_j`` held fixed: its Hessian is ``R``."""

    def forward(self, batch: Batch, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """``sum_j <r_j, f_j>``, and the losses, ``[B]``."""
        outputs = self.outputs(batch)
        leaf = outputs.detach().requires_grad_()
        losses = self.task.loss(leaf, batch)
        (fixed,) = torch.autograd.grad((coefficients.to(losses.device) * losses).sum(), leaf)
        return (outputs * fixed).sum(), losses.detach()


def leading_directions(vectors: Tensor, width: int) -> Tensor:
    """``U [k, q]``: the directions in which gradients ``[n, k]`` have most energy; all of them where ``width >= k``."""
    if width >= vectors.shape[1]:
        return torch.eye(vectors.shape[1])
    _, singular, directions = torch.linalg.svd(vectors, full_matrices=False)
    rank = int((singular > 1e-6 * singular[0]).sum())
    return directions[: min(width, rank)].T.contiguous()


@dataclass(frozen=True)
class _Displacements:
    """``q`` displacements of the parameters.

    Attributes:
        by_layer: ``[q, d0, d1]`` by layer name.
        by_parameter: ``[q, ...]`` by parameter name.
    """

    by_layer: dict[str, Tensor]
    by_parameter: Parameters


def products_at_once(tracked: TrackedLayers) -> int:
    """Products of one backward pass, whose memory grows with their number."""
    return max(1, min(_MAX_AT_ONCE, _BYTES_AT_ONCE // (_PRODUCT_BYTES * tracked.parameters)))


def product_bytes(tracked: TrackedLayers, directions: int) -> int:
    """Bytes of the products of one backward pass, of so many directions in all."""
    return _PRODUCT_BYTES * tracked.parameters * min(products_at_once(tracked), directions)


class ResidualHessian:
    """Multiplies ``R`` of the recorded steps with a few displacements.

    Args:
        objective: Model and task.
        tracked: The model's tracked layers.
        coordinates: The index's layer coordinates.
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
        # Where one backward pass has all displacements, they are laid out once for all steps.
        self._cached = list(self._laid_out()) if directions.shape[1] <= products_at_once(tracked) else None

    def products(
        self, step: Step, batches: Sequence[Batch], parameters: Parameters, displacement: StepDisplacement
    ) -> ResidualProducts:
        """The products at one step.

        Args:
            step: The step.
            batches: Its micro-batches, collated.
            parameters: The parameters before the step.
            displacement: How the step's gradient displaces the final weights.
        """
        inverse = (
            {name: displacement.inverse(name, tensor) for name, tensor in some.by_layer.items()}
            for some in self._displacements()
        )
        start = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
        products = (self._hessian_products(step, batches, start, some) for some in self._displacements())
        projected = self._projected(displacement, products)
        return ResidualProducts(self._directions, projected, self._projected(displacement, inverse))

    def _displacements(self) -> Iterable[_Displacements]:
        return self._laid_out() if self._cached is None else self._cached

    def _laid_out(self) -> Iterator[_Displacements]:
        """Displacements along the directions, as many at a time as one backward pass takes."""
        tracked, slices = self._tracked, self._coordinates.slices()
        for chunk in torch.split(self._lifted, products_at_once(tracked), dim=1):
            by_layer = {name: self._coordinates.displacements(name, chunk[place]) for name, place in slices.items()}
            others = {one.name: chunk.new_zeros(one.shape) for one in tracked.layers if one.name not in by_layer}
            every = [
                tracked.parameters_of(others | {name: one[number] for name, one in by_layer.items()})
                for number in range(chunk.shape[1])
            ]
            yield _Displacements(by_layer, {name: torch.stack([one[name] for one in every]) for name in every[0]})

    def _hessian_products(
        self, step: Step, batches: Sequence[Batch], start: Parameters, displacements: _Displacements
    ) -> dict[str, Tensor]:
        """Products of ``R`` at ``start`` with the displacements, ``[q, d0, d1]`` by layer."""
        count = len(next(iter(displacements.by_layer.values())))
        total = {name: tensor.new_zeros(count, *tensor.shape) for name, tensor in start.items()}
        with seeded(step.seed):
            for graph, *others in gradients_of_micro_batches(
                self._objective, step, batches, start, self._weights, differentiable=True
            ):
                _add_products(total, graph, start, displacements.by_parameter)
                del graph, others
        every = [self._tracked.matrices({name: one[number] for name, one in total.items()}) for number in range(count)]
        return {name: torch.stack([one[name] for one in every]) for name in displacements.by_layer}

    def _projected(self, displacement: StepDisplacement, changes: Iterable[Mapping[str, Tensor]]) -> GradientChanges:
        """Changes of the gradient, ``[q, d0, d1]`` by layer and a few at a time, in the index's coordinates."""
        factors = [displacement.preconditioner, *displacement.sensitivities]
        parts: list[list[Tensor]] = [[] for _ in factors]
        along: list[Tensor] = []
        project = self._coordinates.project_matrices
        for some in changes:
            for part, factor in zip(parts, factors, strict=True):
                part.append(torch.cat([project(name, one * factor[name]) for name, one in some.items()], 1))
            inner = [(one * displacement.by_layer[name]).sum((1, 2)) for name, one in some.items()]
            along.append(torch.stack(inner).sum(0))
        # All at once: reading the basis costs more than multiplying by it.
        together = torch.cat([each for part in parts for each in part]) @ self._basis
        projected, *displacements = torch.split(together, sum(map(len, along)))
        return GradientChanges(projected, displacements, torch.cat(along))


def _add_products(total: Parameters, graph: Parameters, start: Parameters, displacements: Parameters) -> None:
    """Adds products of displacements with the Hessian whose gradient is ``graph``.

    Args:
        total: ``[q, ...]`` by parameter; changed in place.
        graph: A gradient, as a function of ``start``.
        start: The parameters.
        displacements: ``[q, ...]`` by parameter; zero for parameters that are not named.
    """
    parts = {name: tensor for name, tensor in graph.items() if tensor.requires_grad}
    if not parts:  # a model that is linear in its weights
        return
    along = [displacements.get(name, torch.zeros_like(total[name])) for name in parts]
    count = len(along[0])
    # All at once on a GPU, where launching kernels takes the time; a CPU is a fifth faster with one at a time.
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
