"""Builds an index in stages, each of which is on disk before the next begins, so that a killed build goes on.

1. *layers*: a pass over a sample, at weights on the way too, fits every layer's bases.
2. *basis*: a pass over a sample gives GGN rows in the layers' coordinates and their eigenbasis.
3. *vectors*: a pass over all examples gives their loss gradients, in shards.
4. *responses*: what is known of the way that the weights took is followed, step by step or in a few segments.

Then the vectors are rotated into the GGN's eigenvectors and written with the examples as one table.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from influence_engine.curvature import Metric, fit_eigenbasis
from influence_engine.curvature.gradient_passes import Batches, GradientPasses
from influence_engine.gradients.coordinates import EnergyFit
from influence_engine.index.building.row_blocks import RowBlocks
from influence_engine.index.encoding.encoder import LayerCoordinates
from influence_engine.index.settings import IndexSettings
from influence_engine.index.sizes import LAYER_SAMPLE, SHARD, sample_sizes, shard_path
from influence_engine.progress import Progress
from influence_engine.tasks import Example
from influence_engine.tensor_files import write_tensors

T = TypeVar("T")

LAYERS = "fitting the layers' bases"
LAYERS_MET = "fitting the layers' bases to the way there"
ROWS = "fitting the GGN's basis"
MET = "fitting the basis to the way there"
INDEXING = "indexing the examples"


@dataclass(frozen=True)
class _SampledRows:
    """Fitting rows ``[S, m]``, and by which numbers ``[S]`` they become GGN rows and loss gradients."""

    rows: RowBlocks
    roots: Tensor
    losses: Tensor
    owners: list[int]

    def loss_gradients(self, projected: Tensor) -> dict[int, Tensor]:
        """By the examples' positions, from the rows in some basis ``[S, k]``: on the processor, in single precision."""
        places = {position: place for place, position in enumerate(dict.fromkeys(self.owners))}
        into = torch.tensor([places[position] for position in self.owners], device=projected.device)
        sums = projected.new_zeros(len(places), projected.shape[1])
        sums.index_add_(0, into, projected * self.losses.unsqueeze(1))
        return dict(zip(places, sums.float().cpu(), strict=True))


class Follower(Protocol):
    """Follows the way that the weights took in training."""

    def sampled(self, most: int) -> Batches:
        """Examples in batches, at most so many, while the model has weights that were passed on the way.

        To be closed, also where the work on a batch fails: the model's own weights are back then.
        """

    def responses(self, coordinates: LayerCoordinates, basis: Tensor, gradients: Sequence[Path]) -> list[Path]:
        """How the final weights answer to each example's weight: ``vectors [n, k]`` in the basis, a shard a file.

        Args:
            coordinates: Of the index.
            basis: ``[m, k]``.
            gradients: Files of the loss gradients at the final weights, in the same shards.
        """


class IndexBuilder:
    """The four stages.

    Args:
        passes: Runs the model.
        examples: The training examples.
        metric: The optimiser's metric.
        settings: How to build.
        folder: Where the stages are kept until the index is complete.
        progress: Told of every batch.
        follow: Makes what follows the way of the weights, of the positions in the sample; none for one step at the end.
    """

    def __init__(
        self,
        passes: GradientPasses,
        examples: Sequence[Example],
        metric: Metric,
        settings: IndexSettings,
        folder: Path,
        progress: Progress,
        follow: Callable[[list[int]], Follower] | None = None,
    ) -> None:
        self.passes = passes
        self.examples = examples
        self.metric = metric
        self.settings = settings
        self.folder = folder
        self.progress = progress
        self._losses: dict[int, Tensor] = {}
        generator = torch.Generator().manual_seed(settings.seed)
        self._shuffled: list[int] = torch.randperm(len(examples), generator=generator).tolist()
        self._follower = None if follow is None else follow(self._shuffled[: settings.sample])

    def layers(self) -> LayerCoordinates:
        """Stage 1."""
        path = self.folder / "layers.safetensors"
        if not path.exists():
            fit = self._within_memory(LAYERS, self._layers_energy)
            LayerCoordinates(self.metric, fit.projections(self.settings.coordinates)).save(path)
        coordinates, _ = LayerCoordinates.load(path)
        return coordinates.to(self.passes.device)

    def basis(self, coordinates: LayerCoordinates) -> dict[str, Tensor]:
        """Stage 2: ``basis [m, k]``, ``ggn [k, k]`` within it, and ``kept``."""
        path = self.folder / "basis.safetensors"
        if not path.exists():
            sampled, met = self._sample_sizes(self.settings.sample)
            found = self._within_memory(ROWS, lambda: self._sampled_rows(coordinates, sampled))
            rows = found.rows
            if (follower := self._follower) is not None:
                rows = rows.then(self._within_memory(MET, lambda: self._rows_met(follower, coordinates, met)))
            fitted = fit_eigenbasis(rows, self.settings.dimensions)
            projected = torch.cat([block @ fitted.vectors for block in found.rows])
            rows.remove()
            self._losses = found.loss_gradients(projected)
            curved = projected * found.roots.unsqueeze(1)
            tensors = {
                "basis": fitted.vectors.cpu().contiguous(),
                "ggn": (curved.T @ curved / sampled).cpu(),
                "kept": torch.tensor(fitted.kept, dtype=torch.float64),
            }
            write_tensors(path, tensors)
        return {name: tensor.to(self.passes.device) for name, tensor in load_file(path).items()}

    def vectors(self, coordinates: LayerCoordinates, basis: Tensor) -> list[Path]:
        """Stage 3: loss gradients of all examples in the basis, ``[n, k]`` a shard, in the examples' order."""
        paths = []
        for start in range(0, len(self.examples), SHARD):
            path = shard_path(self.folder, "vectors", start)
            paths.append(path)
            wanted = range(start, min(start + SHARD, len(self.examples)))
            if path.exists():
                self.progress(INDEXING, wanted.stop, len(self.examples))
                continue
            these = functools.partial(self._vectors_of, wanted, coordinates, basis)
            vectors = self._within_memory(INDEXING, these)
            write_tensors(path, {"vectors": vectors})
            self.progress(INDEXING, wanted.stop, len(self.examples))
        self._losses.clear()
        return paths

    def responses(self, coordinates: LayerCoordinates, basis: Tensor, gradients: Sequence[Path]) -> list[Path]:
        """Stage 4: how the final weights answer to each example's weight, ``[n, k]`` a shard; none for one step."""
        return [] if self._follower is None else self._follower.responses(coordinates, basis, gradients)

    def _within_memory(self, stage: str, work: Callable[[], T]) -> T:
        return self.passes.within_memory(work, lambda note: self.progress(stage, 0, len(self.examples), note))

    def _layers_energy(self) -> EnergyFit:
        """Of gradients at the final weights and, where a way is followed, of those on it: they lie elsewhere."""
        fit = EnergyFit()

        def add(batches: Batches) -> None:
            with contextlib.closing(batches):
                for _, examples in batches:
                    for row in self.passes.rows(examples):
                        for name, gradient in row.gradients.items():
                            fit.add(name, self.metric[name].scale(gradient).times(row.importance))

        sampled, met = self._sample_sizes(LAYER_SAMPLE)
        add(self._batches(self._shuffled[:sampled], LAYERS))
        if self._follower is not None:
            add(self._told(self._follower.sampled(met), met, LAYERS_MET))
        return fit

    def _vectors_of(self, wanted: range, coordinates: LayerCoordinates, basis: Tensor) -> Tensor:
        """Loss gradients of a shard's examples in the basis; those of sampled examples are known."""
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
            self.progress(INDEXING, done, len(self.examples))
        return result

    def _rows_met(self, follower: Follower, coordinates: LayerCoordinates, most: int) -> RowBlocks:
        """Fitting rows as in ``_sampled_rows``, of examples as the model met them in training."""
        rows = RowBlocks(self.folder, "met", self.passes.device)
        with contextlib.closing(self._told(follower.sampled(most), most, MET)) as batches:
            for _, examples in batches:
                for row in self.passes.rows(examples):
                    rows.add(coordinates(row.gradients) * row.importance.unsqueeze(1))
        return rows.closed()

    def _sampled_rows(self, coordinates: LayerCoordinates, sampled: int) -> _SampledRows:
        """Fitting rows of the sample.

        A row is ``sqrt(h + c^2) J^T e``: it counts with its curvature and with its share of the loss gradient, so that
        examples that the model is sure of, mislabelled ones among them, keep their place in the basis.
        """
        rows = RowBlocks(self.folder, "sampled", self.passes.device)
        roots: list[Tensor] = []
        losses: list[Tensor] = []
        owners: list[int] = []
        for positions, examples in self._batches(self._shuffled[:sampled], ROWS):
            for row in self.passes.rows(examples):
                weight = row.importance.clamp_min(1e-30)
                rows.add(coordinates(row.gradients) * weight.unsqueeze(1))
                roots.append(row.root_curvature / weight)
                losses.append(row.loss / weight)
                owners += positions
        return _SampledRows(rows.closed(), torch.cat(roots), torch.cat(losses), owners)

    def _sample_sizes(self, sample: int) -> tuple[int, int]:
        return sample_sizes(sample, len(self.examples), followed=self._follower is not None)

    def _batches(self, chosen: Sequence[int], stage: str) -> Batches:
        return self._told(self.passes.grouped(self.examples, chosen), len(chosen), stage)

    def _told(self, batches: Batches, total: int, stage: str) -> Batches:
        """The batches, while the progress is told of them."""
        done = 0
        with contextlib.closing(batches):
            self.progress(stage, 0, total)
            for positions, examples in batches:
                yield positions, examples
                done += len(positions)
                self.progress(stage, done, total)
