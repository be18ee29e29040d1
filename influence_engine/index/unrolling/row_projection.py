"""Pulled-back rows of a recorded step in the ``k`` coordinates of the index, with the displacements that they cause.

Each row ``r_j`` is asked for with several elementwise factors: the preconditioner for the row itself, ``E`` and ``L``
for its displacements (``step_displacement``). There are two ways, with the same result:

* one row after the other: its products with the factors in the layers' ``m`` coordinates, then ``m`` by ``k``
  operations for each;
* for small models with several outputs, all rows of an example together (``gradients.shared_rows``): the basis, lifted
  to the parameters once and multiplied by each factor, is multiplied with the inputs, which an example's rows have in
  common: with ten outputs, nearly ten times fewer operations.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from influence_engine.curvature.gradient_passes import PulledRow
from influence_engine.gradients.shared_rows import BatchRows, columns_at_once, inputs_in_common
from influence_engine.index.encoding.encoder import LayerCoordinates
from influence_engine.index.unrolling.step_displacement import StepDisplacement

LIFTED_BYTES = 2**28
"""Bytes that the basis may take when it is lifted to the parameters."""

FEWEST_ROWS = 4
"""Rows of an example that are worth going through the parameters for."""


def few_enough(parameters: int, dimensions: int) -> bool:
    """Whether a basis of so many dimensions may be lifted to so many parameters."""
    return 4 * parameters * dimensions <= LIFTED_BYTES


class RowProjection:
    """Projects on an index's coordinates; for all steps of a run.

    Args:
        coordinates: The index's layer coordinates.
        basis: ``[m, k]``.
    """

    def __init__(self, coordinates: LayerCoordinates, basis: Tensor) -> None:
        self.coordinates, self.basis = coordinates, basis
        layers = [coordinates.preconditioner[name] for name in coordinates.projections]
        self._few = few_enough(sum(len(one.row) * len(one.column) for one in layers), basis.shape[1])
        self._lifted: list[dict[str, Tensor]] = []

    def shares(self, row: PulledRow) -> bool:
        """Whether rows such as this one may go through the parameters."""
        return self._few and inputs_in_common(row.gradients)

    def products(self, rows: BatchRows, factors: Mapping[str, Tensor]) -> Tensor:
        """``[n, C, k]`` of rows of whole layers, multiplied elementwise by ``factors``, ``[d0, d1]`` by layer."""
        if not self._lifted:
            columns = columns_at_once(self.basis.device.type)
            self._lifted = [self._laid_out(some) for some in torch.split(self.basis, columns, 1)]
        laid_out = {name: factors[name].T.unsqueeze(-1).contiguous() for name in rows.layers}
        return torch.cat(
            [rows.products({n: some[n] * one for n, one in laid_out.items()}) for some in self._lifted], -1
        )

    def _laid_out(self, basis: Tensor) -> dict[str, Tensor]:
        """Some columns of the basis in preconditioned parameters, ``[d1, d0, B]`` by layer."""
        lifted = {}
        for name, part in self.coordinates.slices().items():
            projection = self.coordinates.projections[name]
            inner = basis[part].T.reshape(-1, *projection.shape)
            height = len(self.coordinates.preconditioner[name].row)
            lifted[name] = projection.lift(inner, height).permute(2, 1, 0).contiguous()
        return lifted


class StepRows:
    """The rows of one step, micro-batch after micro-batch.

    Args:
        projection: On the index's coordinates.
        displacement: How the step's gradient displaces the final weights.
    """

    def __init__(self, projection: RowProjection, displacement: StepDisplacement) -> None:
        self._projection, self._displacement = projection, displacement
        self._factors = [displacement.preconditioner, *displacement.sensitivities]
        self._projected: list[list[Tensor]] = [[] for _ in self._factors]

    def through(self, rows: Iterator[PulledRow]) -> Iterator[PulledRow]:
        """The rows of one micro-batch, as they come; when the last one has come, they are projected."""
        first = next(rows)
        some = [first, *itertools.islice(rows, FEWEST_ROWS - 1)] if self._projection.shares(first) else [first]
        if len(some) == FEWEST_ROWS:
            yield from self._together([*some, *rows])
        else:
            yield from self._one_by_one(itertools.chain(some, rows))

    def projected(self) -> list[Tensor]:
        """``[rows, k]`` for each factor: the rows themselves, and their displacements, in the order in which they came;
        the examples of a micro-batch along its first direction come first."""
        return [torch.cat(parts) for parts in self._projected]

    def _together(self, rows: list[PulledRow]) -> list[PulledRow]:
        shared = BatchRows.of([row.gradients for row in rows])
        itself = self._projection.products(shared, self._displacement.preconditioner)
        for parts, factors in zip(self._projected, self._factors, strict=True):
            multiple = self._multiple(factors)
            found = self._projection.products(shared, factors) if multiple is None else itself * multiple
            parts.append(found.transpose(0, 1).flatten(0, 1))
        return rows

    def _multiple(self, factors: Mapping[str, Tensor]) -> float | None:
        """How many times the preconditioner ``factors`` are, if it is one number: gradient descent has one for all."""
        ratios = [factors[name] / one for name, one in self._displacement.preconditioner.items() if name in factors]
        ends = [float(end) for ratio in ratios for end in ratio.aminmax()]
        return ends[0] if min(ends) == max(ends) else None

    def _one_by_one(self, rows: Iterator[PulledRow]) -> Iterator[PulledRow]:
        coordinates = self._projection.coordinates
        found: list[list[Tensor]] = [[] for _ in self._factors]
        for row in rows:
            displaced = coordinates.project_hadamard(row.gradients, self._displacement.sensitivities)
            for parts, one in zip(found, [coordinates(row.gradients), *displaced], strict=True):
                parts.append(one)
            yield row
        # All at once: reading the basis costs more than multiplying by it.
        together = torch.cat([one for parts in found for one in parts]) @ self._projection.basis
        for parts, one in zip(self._projected, together.chunk(len(found)), strict=True):
            parts.append(one)
