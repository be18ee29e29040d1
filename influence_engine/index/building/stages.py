"""The stages of a build, each of which is on disk before the next one begins, so that an interrupted build goes on.

1. *layers*: the two bases of every layer (``gradients.coordinates``), fitted on a sample of examples, at weights along
   the trajectory, too, where the approximation uses the trajectory.
2. *basis*: the leading eigenvectors of the GGN in the layers' coordinates (``curvature.eigenbasis``), from a sample.
3. *vectors*: the loss gradients of all examples at the final weights, in shards.
4. *sensitivities*: ``d theta / d w`` of all examples, over the recorded steps or a few segments (``index.unrolling``).

Then ``write_table`` rotates the vectors into the GGN's eigenvectors and writes them with the examples as one table.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor

from influence_engine.curvature import Preconditioner, fit_eigenbasis
from influence_engine.curvature.gradient_passes import Batches
from influence_engine.gradients.coordinates import EnergyFit
from influence_engine.index.building.context import BuildContext
from influence_engine.index.building.row_blocks import RowBlocks
from influence_engine.index.encoding.encoder import LayerCoordinates
from influence_engine.index.sizes import LAYER_SAMPLE, SHARD, gradient_path, sample_sizes
from influence_engine.tensor_files import write_tensors

LAYERS = "fitting the layers' bases"
LAYERS_ALONG = "fitting the layers' bases along the trajectory"
ROWS = "fitting the GGN's basis"
ROWS_ALONG = "fitting the GGN's basis along the trajectory"
INDEXING = "indexing the examples"


@dataclass(frozen=True)
class _SampledRows:
    """Rows that the basis is fitted on, with the factors that make GGN rows and loss gradients of them.

    Attributes:
        rows: ``[S, m]``, in blocks.
        roots: ``[S]``; times a row, a row of the GGN.
        losses: ``[S]``; an example's loss gradient is the sum of its rows times these.
        owners: ``[S]``, positions of the rows' examples.
    """

    rows: RowBlocks
    roots: Tensor
    losses: Tensor
    owners: list[int]

    def loss_gradients(self, projected: Tensor) -> dict[int, Tensor]:
        """The examples' loss gradients ``[k]`` by position, from the rows in a basis, ``[S, k]``.

        On the processor, in single precision.
        """
        places = {position: place for place, position in enumerate(dict.fromkeys(self.owners))}
        into = torch.tensor([places[position] for position in self.owners], device=projected.device)
        sums = projected.new_zeros(len(places), projected.shape[1])
        sums.index_add_(0, into, projected * self.losses.unsqueeze(1))
        return dict(zip(places, sums.float().cpu(), strict=True))


class Unrolling(Protocol):
    """Unrolls a training: over its recorded steps, or over a few segments of its trajectory."""

    def sample(self, count: int) -> Batches:
        """``count`` examples in batches, while the model has weights along the training trajectory.

        The caller closes the generator, also where work on a batch fails; that restores the model's own weights.
        """

    def sensitivities(self, coordinates: LayerCoordinates, basis: Tensor, gradients: Sequence[Path]) -> list[Path]:
        """``d theta / d w`` of every example in the basis: files of ``vectors [n, k]``, in the examples' order.

        Args:
            coordinates: The index's layer coordinates.
            basis: ``[m, k]``.
            gradients: Files of the loss gradients at the final weights, in the same shards.
        """


class IndexBuilder:
    """The four stages.

    Args:
        context: The build; the stages are stored in its folder.
        preconditioner: The optimiser's.
        unrolling: Makes the unrolling of the training from the positions of the sampled examples; none for an index of
            one damped step at the final weights.
    """

    def __init__(
        self,
        context: BuildContext,
        preconditioner: Preconditioner,
        unrolling: Callable[[list[int]], Unrolling] | None = None,
    ) -> None:
        self.context, self.preconditioner = context, preconditioner
        self.passes, self.examples, self.settings = context.passes, context.examples, context.settings
        self._losses: dict[int, Tensor] = {}
        generator = torch.Generator().manual_seed(self.settings.seed)
        self._shuffled: list[int] = torch.randperm(len(self.examples), generator=generator).tolist()
        self._unrolling = None if unrolling is None else unrolling(self._shuffled[: self.settings.sample])

    def layers(self) -> LayerCoordinates:
        """Stage 1: the layer coordinates, on the model's device."""
        path = self.context.folder / "layers.safetensors"
        if not path.exists():
            fit = self.context.within_memory(LAYERS, self._layers_energy)
            LayerCoordinates(self.preconditioner, fit.projections(self.settings.coordinates)).save(path)
        coordinates, _ = LayerCoordinates.load(path)
        return coordinates.to(self.passes.device)

    def basis(self, coordinates: LayerCoordinates) -> dict[str, Tensor]:
        """Stage 2: ``basis [m, k]``, the GGN within it as ``ggn [k, k]``, and as ``kept`` the share of energy in it."""
        path = self.context.folder / "basis.safetensors"
        if not path.exists():
            within = self.context.within_memory
            at_end, along = self._sample_sizes(self.settings.sample)
            found = within(ROWS, lambda: self._sampled_rows(coordinates, at_end))
            rows = found.rows
            if (unrolling := self._unrolling) is not None:
                rows = rows.then(within(ROWS_ALONG, lambda: self._rows_along(unrolling, coordinates, along)))
            fitted = fit_eigenbasis(rows, self.settings.dimensions)
            projected = torch.cat([block @ fitted.vectors for block in found.rows])
            rows.remove()
            self._losses = found.loss_gradients(projected)
            ggn_rows = projected * found.roots.unsqueeze(1)
            tensors = {
                "basis": fitted.vectors.cpu().contiguous(),
                "ggn": (ggn_rows.T @ ggn_rows / at_end).cpu(),
                "kept": torch.tensor(fitted.energy_kept, dtype=torch.float64),
            }
            write_tensors(path, tensors)
        return {name: tensor.to(self.passes.device) for name, tensor in load_file(path).items()}

    def vectors(self, coordinates: LayerCoordinates, basis: Tensor) -> list[Path]:
        """Stage 3: loss gradients of all examples in the basis, ``[n, k]`` a shard, in the examples' order."""
        paths = []
        for start in range(0, len(self.examples), SHARD):
            path = gradient_path(self.context.folder, start)
            paths.append(path)
            wanted = range(start, min(start + SHARD, len(self.examples)))
            if not path.exists():
                these = functools.partial(self._vectors_of, wanted, coordinates, basis)
                write_tensors(path, {"vectors": self.context.within_memory(INDEXING, these)})
            self.context.progress(INDEXING, wanted.stop, len(self.examples))
        self._losses.clear()
        return paths

    def sensitivities(self, coordinates: LayerCoordinates, basis: Tensor, gradients: Sequence[Path]) -> list[Path]:
        """Stage 4: ``d theta / d w`` of all examples, ``[n, k]`` a shard; none without an unrolling."""
        return [] if self._unrolling is None else self._unrolling.sensitivities(coordinates, basis, gradients)

    def _layers_energy(self) -> EnergyFit:
        """The energy of gradients at the final weights and, where a training is unrolled, along its trajectory, where
        gradients lie in other directions."""
        fit = EnergyFit()

        def add(batches: Batches) -> None:
            with contextlib.closing(batches):
                for _, examples in batches:
                    for row in self.passes.rows(examples):
                        for name, gradient in row.gradients.items():
                            fit.add(name, self.preconditioner[name].apply(gradient).times(row.importance))

        at_end, along = self._sample_sizes(LAYER_SAMPLE)
        add(self._batches(self._shuffled[:at_end], LAYERS))
        if self._unrolling is not None:
            add(self._reporting(self._unrolling.sample(along), along, LAYERS_ALONG))
        return fit

    def _vectors_of(self, wanted: range, coordinates: LayerCoordinates, basis: Tensor) -> Tensor:
        """Loss gradients of a shard's examples in the basis; those of sampled examples are known from stage 2."""
        result = torch.empty(len(wanted), basis.shape[1])
        missing = []
        for position in wanted:
            if position in self._losses:
                result[position - wanted.start] = self._losses[position]
            else:
                missing.append(position)
        done = wanted.stop - len(missing)
        for positions, examples in self.passes.grouped(self.examples, missing):
            encoded = coordinates(self.passes.loss_gradients(examples)) @ basis
            result[torch.tensor(positions) - wanted.start] = encoded.cpu()
            done += len(positions)
            self.context.progress(INDEXING, done, len(self.examples))
        return result

    def _rows_along(self, unrolling: Unrolling, coordinates: LayerCoordinates, count: int) -> RowBlocks:
        """Rows for fitting the basis, weighted as in ``_sampled_rows``, at weights along the trajectory."""
        rows = RowBlocks(self.context.folder, "trajectory", self.passes.device)
        with contextlib.closing(self._reporting(unrolling.sample(count), count, ROWS_ALONG)) as batches:
            for _, examples in batches:
                for row in self.passes.rows(examples):
                    rows.add(coordinates(row.gradients) * row.importance.unsqueeze(1))
        return rows.closed()

    def _sampled_rows(self, coordinates: LayerCoordinates, count: int) -> _SampledRows:
        """Rows for fitting the basis, of ``count`` sampled examples at the final weights.

        A row is ``sqrt(h + c^2) J^T e``. Deviation from the GGN's eigenvectors, whose rows are ``sqrt(h) J^T e``: a row
        counts with its part ``c`` of the loss gradient, too, so that examples that the model is certain of, mislabelled
        ones among them, have their place in the basis.
        """
        rows = RowBlocks(self.context.folder, "sampled", self.passes.device)
        roots: list[Tensor] = []
        losses: list[Tensor] = []
        owners: list[int] = []
        for positions, examples in self._batches(self._shuffled[:count], ROWS):
            for row in self.passes.rows(examples):
                weight = row.importance.clamp_min(1e-30)
                rows.add(coordinates(row.gradients) * weight.unsqueeze(1))
                roots.append(row.root_curvature / weight)
                losses.append(row.loss / weight)
                owners += positions
        return _SampledRows(rows.closed(), torch.cat(roots), torch.cat(losses), owners)

    def _sample_sizes(self, sample: int) -> tuple[int, int]:
        return sample_sizes(sample, len(self.examples), along_trajectory=self._unrolling is not None)

    def _batches(self, chosen: Sequence[int], stage: str) -> Batches:
        return self._reporting(self.passes.grouped(self.examples, chosen), len(chosen), stage)

    def _reporting(self, batches: Batches, total: int, stage: str) -> Batches:
        """The batches, with progress reported after each."""
        done = 0
        with contextlib.closing(batches):
            self.context.progress(stage, 0, total)
            for positions, examples in batches:
                yield positions, examples
                done += len(positions)
                self.context.progress(stage, done, total)
