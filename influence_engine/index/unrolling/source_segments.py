"""How the final weights answer to every example's weight where the steps on the way are not followed one by one.

The way is divided into segments. Within one, the weights follow the gradient flow of the mean loss for a time ``tau``
in the optimiser's metric, with the Gauss-Newton matrix ``G`` and the examples' gradients ``g_i`` of its middle, so that

    D  <-  D e^(-tau G)  -  g_i (1 - e^(-tau G)) / (G N)

for the response ``D = d theta / d w_i``: SOURCE (Bae et al. 2024), which needs checkpoints, in the metric of Adam.
Where there are none, the middles lie on the straight line from the base model's weights to the final ones. One segment
at the final weights is about one damped step there; what three along the line are better by is in
``benchmarks/RESULTS.md``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from influence_engine.curvature import decomposed
from influence_engine.curvature.gradient_passes import Batches, GradientPasses
from influence_engine.index.encoding.encoder import LayerCoordinates
from influence_engine.index.sizes import SHARD, shard_path
from influence_engine.index.unrolling.trajectory import Point
from influence_engine.models.frozen_prefix import CachedPrefix, FrozenPrefix
from influence_engine.progress import Progress
from influence_engine.tasks import Example
from influence_engine.tensor_files import write_tensors
from influence_engine.training.step import parameters_put_back, put_parameters

T = TypeVar("T")

CURVED = "curvature along the way"
FOLLOWING = "following the way"


class Segments:
    """Follows a way in segments.

    Args:
        passes: Over the fine-tuned model; its trained parameters are changed while this works, and put back.
        examples: The training examples.
        points: The segments' middles, in order.
        sample: Positions of the examples that the Gauss-Newton matrices are made of.
        folder: Where the stages are kept; what is there already is not done again.
        progress: Told of every batch.
    """

    def __init__(
        self,
        passes: GradientPasses,
        examples: Sequence[Example],
        points: Sequence[Point],
        sample: Sequence[int],
        folder: Path,
        progress: Progress,
    ) -> None:
        self.passes, self.examples, self.points, self.sample = passes, examples, points, sample
        self.folder, self.progress = folder, progress
        self._names = list(points[0].weights)
        self._prefix = FrozenPrefix(passes.model, self._names)

    def sampled(self, most: int) -> Batches:
        """Examples in batches, while the model has the weights of one point after the other; ``most`` in all."""
        count = len(self.points)
        for number, point in enumerate(self.points):
            first, last = most * number // count, most * (number + 1) // count
            chosen = [self.sample[place % len(self.sample)] for place in range(first, last)]
            with parameters_put_back(self.passes.model, self._names):
                put_parameters(self.passes.model, point.weights)
                yield from self.passes.grouped(self.examples, chosen)

    def responses(self, coordinates: LayerCoordinates, basis: Tensor, gradients: Sequence[Path]) -> list[Path]:
        """``D [n, k]`` in the basis, a shard for each of the final gradients', in the examples' order."""
        kept = self.folder / "segments.safetensors"
        if not kept.exists():
            curved = functools.partial(self._curved, coordinates, basis)
            write_tensors(kept, self._within_memory(CURVED, curved))
        found = load_file(kept)
        moves = moves_of([(found[f"{n}.ggn"], point.time) for n, point in enumerate(self.points)])
        into = [(move / -len(self.examples)).to(basis) for move in moves]
        known = torch.stack([found[f"{n}.gradients"].to(basis) @ move for n, move in enumerate(into)]).sum(0)
        by_position = dict(zip(self.sample, known.cpu(), strict=True))
        paths = []
        for start in range(0, len(self.examples), SHARD):
            paths.append(shard_path(self.folder, "responses", start))
            wanted = range(start, min(start + SHARD, len(self.examples)))
            if not paths[-1].exists():
                these = functools.partial(self._vectors, wanted, coordinates, basis, into, by_position)
                write_tensors(paths[-1], {"vectors": self._within_memory(FOLLOWING, these)})
            self.progress(FOLLOWING, wanted.stop, len(self.examples))
        return paths

    def _curved(self, coordinates: LayerCoordinates, basis: Tensor) -> dict[str, Tensor]:
        """``ggn [k, k]`` of every point, and the loss gradients ``[S, k]`` of the sample there."""
        k, count = basis.shape[1], len(self.points)
        ggns = [basis.new_zeros(k, k) for _ in range(count)]
        losses = [torch.zeros(len(self.sample), k) for _ in range(count)]
        places = {position: place for place, position in enumerate(self.sample)}

        def add(number: int, positions: list[int], examples: list[Example]) -> None:
            into = torch.tensor([places[position] for position in positions])
            for row in self.passes.rows(examples):
                encoded = coordinates(row.gradients) @ basis
                curved = encoded * row.root_curvature.unsqueeze(1)
                ggns[number].addmm_(curved.T, curved, alpha=1.0 / len(self.sample))
                losses[number].index_add_(0, into, (encoded * row.loss.unsqueeze(1)).float().cpu())

        self._at_every_point(self.sample, add, lambda done: self.progress(CURVED, done, len(self.sample)))
        return {f"{n}.ggn": ggn.cpu() for n, ggn in enumerate(ggns)} | {
            f"{n}.gradients": gradients for n, gradients in enumerate(losses)
        }

    def _vectors(
        self,
        wanted: range,
        coordinates: LayerCoordinates,
        basis: Tensor,
        into: Sequence[Tensor],
        known: dict[int, Tensor],
    ) -> Tensor:
        result = torch.zeros(len(wanted), basis.shape[1])
        missing = [position for position in wanted if position not in known]
        for position in set(wanted) - set(missing):
            result[position - wanted.start] = known[position]
        before = wanted.stop - len(missing)

        def move(number: int, positions: list[int], examples: list[Example]) -> None:
            encoded = coordinates(self.passes.loss_gradients(examples)) @ basis
            result[torch.tensor(positions) - wanted.start] += (encoded @ into[number]).float().cpu()

        self._at_every_point(missing, move, lambda done: self.progress(FOLLOWING, before + done, len(self.examples)))
        return result

    def _at_every_point(
        self,
        chosen: Sequence[int],
        work: Callable[[int, list[int], list[Example]], None],
        told: Callable[[int], None],
    ) -> None:
        """Does it to every batch at every point; frozen layers below run at the first only, the batch being the same.

        Args:
            chosen: Positions of examples.
            work: Is given the point's number, positions and examples while the model has the point's weights.
            told: Is given the number of examples done.
        """
        done = 0
        with parameters_put_back(self.passes.model, self._names):
            for positions, examples in self.passes.grouped(self.examples, chosen):
                kept: CachedPrefix | None = None
                for number, point in enumerate(self.points):
                    put_parameters(self.passes.model, point.weights)
                    with self._prefix.caching() if kept is None else self._prefix.reusing(kept) as found:
                        work(number, positions, examples)
                    kept = kept or found
                done += len(positions)
                told(done)

    def _within_memory(self, stage: str, work: Callable[[], T]) -> T:
        return self.passes.within_memory(work, lambda note: self.progress(stage, 0, len(self.examples), note))


def moves_of(segments: Sequence[tuple[Tensor, float]]) -> list[Tensor]:
    """What a gradient in each segment has become of by the end: ``M [k, k]`` with ``D = -sum_s g_s M_s / N``.

    Args:
        segments: Gauss-Newton matrices ``[k, k]`` and times, in order.
    """
    moves: list[Tensor] = []
    after = torch.eye(len(segments[0][0]), dtype=torch.float64, device=segments[0][0].device)
    for ggn, time in reversed(segments):
        values, vectors = decomposed(ggn)
        left = torch.exp(-time * values)
        # (1 - e^(-tau x)) / x, which is tau where x is small.
        gained = torch.where(time * values > 1e-8, (1.0 - left) / values.clamp_min(1e-30), time)
        moves.insert(0, (vectors * gained) @ (vectors.T @ after))
        after = (vectors * left) @ (vectors.T @ after)
    return moves
