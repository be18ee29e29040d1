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
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor

from influence_engine.curvature import Preconditioner, fit_eigenbasis
from influence_engine.curvature.gradient_passes import Batches
from influence_engine.curvature.row_matrix import StackedRows
from influence_engine.gradients.coordinates import EnergyFit
from influence_engine.index.building.context import BuildContext
from influence_engine.index.building.sample_rows import SampleCollector, SampledRows
from influence_engine.index.encoding.encoder import LayerCoordinates
from influence_engine.index.sizes import LAYER_SAMPLE, SHARD, gradient_path, most_dimensions, sample_sizes
from influence_engine.tensor_files import write_tensors

LAYERS = "fitting the layers' bases"
LAYERS_ALONG = "fitting the layers' bases along the trajectory"
ROWS = "fitting the GGN's basis"
ROWS_ALONG = "fitting the GGN's basis along the trajectory"
INDEXING = "indexing the examples"


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
            every = [found]
            if (unrolling := self._unrolling) is not None:
                every.append(within(ROWS_ALONG, lambda: self._rows_along(unrolling, coordinates, along)))
            most = most_dimensions(self.settings.dimensions, len(self.examples))
            fitted = fit_eigenbasis(StackedRows([one.rows for one in every]), most)
            projected = found.rows.products(fitted.vectors)
            for one in every:
                one.remove()
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

    def _sampled_rows(self, coordinates: LayerCoordinates, count: int) -> SampledRows:
        """Rows for fitting the basis, of ``count`` sampled examples at the final weights."""
        return self._collected(coordinates, self._batches(self._shuffled[:count], ROWS), "sampled", count)

    def _rows_along(self, unrolling: Unrolling, coordinates: LayerCoordinates, count: int) -> SampledRows:
        """Rows for fitting the basis at weights along the trajectory."""
        batches = self._reporting(unrolling.sample(count), count, ROWS_ALONG)
        return self._collected(coordinates, batches, "trajectory", count)

    def _collected(self, coordinates: LayerCoordinates, batches: Batches, name: str, count: int) -> SampledRows:
        rows = SampleCollector(coordinates, self.context.folder, name, count)
        with contextlib.closing(batches):
            for positions, examples in batches:
                rows.add(positions, self.passes.rows(examples))
        return rows.closed()

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
