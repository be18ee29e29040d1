"""Rows of sampled examples in the layers' coordinates, for fitting the basis: in memory where they are few, or on disk.

A row is ``sqrt(h + c^2) J^T e``. Deviation from the GGN's eigenvectors, whose rows are ``sqrt(h) J^T e``: a row counts
with its part ``c`` of the loss gradient, too, so that examples that the model is certain of, mislabelled ones among
them, have their place in the basis.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from influence_engine.curvature.gradient_passes import PulledRow
from influence_engine.curvature.row_matrix import BlockRows, RowMatrix
from influence_engine.gradients.factors import has_one_position
from influence_engine.gradients.shared_rows import BatchRows, columns_at_once, inputs_in_common
from influence_engine.index.building.row_blocks import RowBlocks
from influence_engine.index.encoding.encoder import LayerCoordinates

IN_MEMORY = 2**28
"""Bytes that rows may take in memory."""

_MOST_DIRECTIONS = 16
"""Rows of an example, at most, where they have inputs in common."""

_NUMBERS = {"cpu": 2**18, "cuda": 2**27}
"""Numbers that inputs' products with vectors may be at once: on a processor so few that they stay in its cache."""


@dataclass(frozen=True)
class SampledRows:
    """Rows that the basis is fitted on, with the factors that make GGN rows and loss gradients of them.

    Attributes:
        rows: ``[S, m]``.
        roots: ``[S]``; times a row, a row of the GGN.
        losses: ``[S]``; an example's loss gradient is the sum of its rows times these.
        owners: ``[S]``, positions of the rows' examples.
        remove: Deletes what is on disk.
    """

    rows: RowMatrix
    roots: Tensor
    losses: Tensor
    owners: list[int]
    remove: Callable[[], None]

    def loss_gradients(self, projected: Tensor) -> dict[int, Tensor]:
        """The examples' loss gradients ``[k]`` by position, from the rows in a basis, ``[S, k]``.

        On the processor, in single precision.
        """
        places = {position: place for place, position in enumerate(dict.fromkeys(self.owners))}
        into = torch.tensor([places[position] for position in self.owners], device=projected.device)
        sums = projected.new_zeros(len(places), projected.shape[1])
        sums.index_add_(0, into, projected * self.losses.unsqueeze(1))
        return dict(zip(places, sums.float().cpu(), strict=True))


class ExampleRows:
    """``A [S, m]`` in memory, without what the rows of an example have in common: all rows of one after the other.

    Args:
        coordinates: Says where each layer's coordinates are among all ``m``.
        batches: The rows in coordinates.
    """

    def __init__(self, coordinates: LayerCoordinates, batches: Sequence[BatchRows]) -> None:
        self._slices = coordinates.slices()
        self._shapes = {name: one.shape for name, one in coordinates.projections.items()}
        device = next(iter(batches[0].layers.values())).dense().device.type
        self._columns = columns_at_once(device)
        widest = self._columns * max(r0 for r0, _ in self._shapes.values())
        count = max(8, _NUMBERS.get(device, _NUMBERS["cuda"]) // widest)
        self._batches = [part for batch in batches for part in batch.split(count)]
        self._lengths = [examples * directions for examples, directions in (batch.size for batch in self._batches)]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(self._lengths), sum(one.stop - one.start for one in self._slices.values())

    @property
    def like(self) -> Tensor:
        return next(iter(self._batches[0].layers.values())).dense().new_empty(0)

    def blocks(self, first: int = 0) -> Iterator[Tensor]:
        for batch, length in zip(self._batches[first:], self._lengths[first:], strict=True):
            dense = {name: rows.dense().flatten(0, 1).flatten(1) for name, rows in batch.layers.items()}
            some = next(iter(dense.values()))
            every = [dense.get(name, some.new_zeros(length, r0 * r1)) for name, (r0, r1) in self._shapes.items()]
            yield torch.cat(every, 1)

    def products(self, matrix: Tensor) -> Tensor:
        found = matrix.new_empty(self.shape[0], matrix.shape[1])
        for to, some in zip(torch.split(found, self._columns, 1), torch.split(matrix, self._columns, 1), strict=True):
            values = {
                name: some[self._slices[name]].reshape(*shape, -1).transpose(0, 1).contiguous()
                for name, shape in self._shapes.items()
            }
            for rows, batch in zip(torch.split(to, self._lengths), self._batches, strict=True):
                rows.copy_(batch.products(values).flatten(0, 1))
        return found

    def combinations(self, coefficients: Tensor) -> Tensor:
        found = coefficients.new_empty(self.shape[1], coefficients.shape[1])
        columns = torch.split(coefficients, self._columns, 1)
        for to, some in zip(torch.split(found, self._columns, 1), columns, strict=True):
            width = some.shape[1]
            totals = {name: some.new_zeros(r1, r0, width) for name, (r0, r1) in self._shapes.items()}
            for batch, part in zip(self._batches, torch.split(some, self._lengths), strict=True):
                batch.add_combinations(totals, part.reshape(*batch.size, width))
            for name, total in totals.items():
                to[self._slices[name]] = total.transpose(0, 1).flatten(0, 1)
        return found


class SampleCollector:
    """Collects the rows of batches, where it takes less memory without what an example's rows have in common.

    Args:
        coordinates: The layers' coordinates.
        folder: Where rows are stored that are too many for the memory.
        name: Of the files; files of that name are overwritten.
        count: Examples that will come.
    """

    def __init__(self, coordinates: LayerCoordinates, folder: Path, name: str, count: int) -> None:
        self._coordinates, self._folder, self._name, self._count = coordinates, folder, name, count
        self._shared: list[BatchRows] = []
        self._blocks: RowBlocks | None = None
        self._roots: list[Tensor] = []
        self._losses: list[Tensor] = []
        self._owners: list[int] = []

    def add(self, positions: Sequence[int], rows: Iterator[PulledRow]) -> None:
        """Adds the rows of a batch of examples."""
        first = next(rows)
        if self._blocks is None and not self._shared and not self._fits(first):
            device = first.loss.device
            self._blocks = RowBlocks(self._folder, self._name, device)
        every = itertools.chain([first], rows)
        if self._blocks is None:
            self._add_shared(positions, every)
        else:
            self._add_blocks(positions, every, self._blocks)

    def closed(self) -> SampledRows:
        """The rows, once all are added."""
        blocks = self._blocks
        rows = ExampleRows(self._coordinates, self._shared) if blocks is None else BlockRows(blocks.closed())
        return SampledRows(
            rows,
            torch.cat(self._roots),
            torch.cat(self._losses),
            self._owners,
            (lambda: None) if blocks is None else blocks.remove,
        )

    def _fits(self, row: PulledRow) -> bool:
        """Whether rows have enough in common, and are few enough, to be in memory."""
        sizes = {name: one.size for name, one in self._coordinates.projections.items()}
        dense = sum(sizes[name] for name, one in row.gradients.items() if not has_one_position(one))
        return 4 * dense * _MOST_DIRECTIONS * self._count <= IN_MEMORY and inputs_in_common(row.gradients)

    def _add_shared(self, positions: Sequence[int], rows: Iterable[PulledRow]) -> None:
        found = [(self._coordinates.reduced(row.gradients), _weight(row), row.root_curvature, row.loss) for row in rows]
        directions, weights, roots, losses = zip(*found, strict=True)
        weight = torch.stack(weights, 1)
        self._shared.append(BatchRows.of(directions).weighted(weight))
        self._roots.append((torch.stack(roots, 1) / weight).flatten())
        self._losses.append((torch.stack(losses, 1) / weight).flatten())
        self._owners += [position for position in positions for _ in directions]

    def _add_blocks(self, positions: Sequence[int], rows: Iterable[PulledRow], blocks: RowBlocks) -> None:
        for row in rows:
            weight = _weight(row)
            blocks.add(self._coordinates(row.gradients) * weight.unsqueeze(1))
            self._roots.append(row.root_curvature / weight)
            self._losses.append(row.loss / weight)
            self._owners += positions


def _weight(row: PulledRow) -> Tensor:
    return row.importance.clamp_min(1e-30)
