"""The final weights' sensitivity to every example's weight where the steps are not followed one by one: SOURCE.

The trajectory is divided into segments. Within one, the weights follow the gradient flow of the mean loss for a time
``tau``, with the Gauss-Newton matrix ``G`` and the examples' gradients ``g_i`` at its middle, so that the row ``x_i``
of ``X = d theta / d w`` becomes

    x_i  <-  e^(-tau G) x_i  -  (I - e^(-tau G)) G^-1 g_i / N

from one segment to the next: SOURCE (Bae et al. 2024, eq. 15), all of it in the coordinates of the index. Deviations:
``e^(-tau G)`` and its integral are taken of the GGN in ``k`` coordinates instead of EK-FAC; preconditioned coordinates
make Adam's training a gradient flow, as in their appendix D; gradients and ``G`` come from one point a segment instead
of an average over its checkpoints; and without any checkpoints the points lie on the linear path from the base model's
weights to the final ones. One segment at the final weights is about one damped Gauss-Newton step there; what three
along the path gain is in ``benchmarks/HISTORY.md``.
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
from influence_engine.index.sizes import SHARD, sensitivity_path
from influence_engine.index.unrolling.trajectory import TrajectoryPoint
from influence_engine.models.frozen_prefix import CachedPrefix, FrozenPrefix
from influence_engine.progress import Progress
from influence_engine.tasks import Example
from influence_engine.tensor_files import write_tensors
from influence_engine.training.step import parameters_put_back, put_parameters

T = TypeVar("T")

CURVATURE = "computing the curvature along the trajectory"
UNROLLING = "computing sensitivities along the trajectory"


class SourceSegments:
    """The unrolling of a training in a few segments.

    Args:
        passes: Run the fine-tuned model; its trained parameters are changed meanwhile, and restored.
        examples: The training examples.
        points: The segments' middles, in order.
        sample: Positions of the examples that the Gauss-Newton matrices are computed from.
        folder: Where the stages are stored; a file that is there already is not computed again.
        progress: Called after every batch.
    """

    def __init__(
        self,
        passes: GradientPasses,
        examples: Sequence[Example],
        points: Sequence[TrajectoryPoint],
        sample: Sequence[int],
        folder: Path,
        progress: Progress,
    ) -> None:
        self.passes, self.examples, self.points, self._sample = passes, examples, points, sample
        self.folder, self.progress = folder, progress
        self._names = list(points[0].weights)
        self._prefix = FrozenPrefix(passes.model, self._names)

    def sample(self, count: int) -> Batches:
        """``count`` examples in batches, an equal share at every point while the model has that point's weights."""
        points = len(self.points)
        for number, point in enumerate(self.points):
            first, last = count * number // points, count * (number + 1) // points
            chosen = [self._sample[place % len(self._sample)] for place in range(first, last)]
            with parameters_put_back(self.passes.model, self._names):
                put_parameters(self.passes.model, point.weights)
                yield from self.passes.grouped(self.examples, chosen)

    def sensitivities(self, coordinates: LayerCoordinates, basis: Tensor, gradients: Sequence[Path]) -> list[Path]:
        """``d theta / d w`` of every example, ``X [n, k]`` a shard; the arguments are those of ``Unrolling``."""
        stored = self.folder / "segments.safetensors"
        if not stored.exists():
            curvature = functools.partial(self._curvature, coordinates, basis)
            write_tensors(stored, self._within_memory(CURVATURE, curvature))
        found = load_file(stored)
        propagators = segment_propagators([(found[f"{n}.ggn"], point.time) for n, point in enumerate(self.points)])
        scaled = [(each / -len(self.examples)).to(basis) for each in propagators]
        of_sample = torch.stack([found[f"{n}.gradients"].to(basis) @ each for n, each in enumerate(scaled)]).sum(0)
        by_position = dict(zip(self._sample, of_sample.cpu(), strict=True))
        paths = []
        for start in range(0, len(self.examples), SHARD):
            paths.append(sensitivity_path(self.folder, start))
            wanted = range(start, min(start + SHARD, len(self.examples)))
            if not paths[-1].exists():
                these = functools.partial(self._shard, wanted, coordinates, basis, scaled, by_position)
                write_tensors(paths[-1], {"vectors": self._within_memory(UNROLLING, these)})
            self.progress(UNROLLING, wanted.stop, len(self.examples))
        return paths

    def _curvature(self, coordinates: LayerCoordinates, basis: Tensor) -> dict[str, Tensor]:
        """``ggn [k, k]`` of every point, and the loss gradients ``[S, k]`` of the sample there."""
        k, count = basis.shape[1], len(self.points)
        ggns = [basis.new_zeros(k, k) for _ in range(count)]
        losses = [torch.zeros(len(self._sample), k) for _ in range(count)]
        places = {position: place for place, position in enumerate(self._sample)}

        def add(number: int, positions: list[int], examples: list[Example]) -> None:
            into = torch.tensor([places[position] for position in positions])
            for row in self.passes.rows(examples):
                encoded = coordinates(row.gradients) @ basis
                ggn_rows = encoded * row.root_curvature.unsqueeze(1)
                ggns[number].addmm_(ggn_rows.T, ggn_rows, alpha=1.0 / len(self._sample))
                losses[number].index_add_(0, into, (encoded * row.loss.unsqueeze(1)).float().cpu())

        self._at_every_point(self._sample, add, lambda done: self.progress(CURVATURE, done, len(self._sample)))
        return {f"{n}.ggn": ggn.cpu() for n, ggn in enumerate(ggns)} | {
            f"{n}.gradients": gradients for n, gradients in enumerate(losses)
        }

    def _shard(
        self,
        wanted: range,
        coordinates: LayerCoordinates,
        basis: Tensor,
        propagators: Sequence[Tensor],
        known: dict[int, Tensor],
    ) -> Tensor:
        """``X`` of the examples in ``wanted``; ``known`` has those of the sample, by position."""
        result = torch.zeros(len(wanted), basis.shape[1])
        missing = [position for position in wanted if position not in known]
        for position in set(wanted) - set(missing):
            result[position - wanted.start] = known[position]
        before = wanted.stop - len(missing)

        def add(number: int, positions: list[int], examples: list[Example]) -> None:
            encoded = coordinates(self.passes.loss_gradients(examples)) @ basis
            result[torch.tensor(positions) - wanted.start] += (encoded @ propagators[number]).float().cpu()

        self._at_every_point(missing, add, lambda done: self.progress(UNROLLING, before + done, len(self.examples)))
        return result

    def _at_every_point(
        self,
        chosen: Sequence[int],
        work: Callable[[int, list[int], list[Example]], None],
        report: Callable[[int], None],
    ) -> None:
        """Does ``work`` for every batch at every point.

        Frozen layers below the trained ones run at the first point only: their outputs are the same at the others.

        Args:
            chosen: Positions of examples.
            work: Receives the point's number, positions and examples, while the model has the point's weights.
            report: Receives the number of examples done.
        """
        done = 0
        with parameters_put_back(self.passes.model, self._names):
            for positions, examples in self.passes.grouped(self.examples, chosen):
                cached: CachedPrefix | None = None
                for number, point in enumerate(self.points):
                    put_parameters(self.passes.model, point.weights)
                    with self._prefix.caching() if cached is None else self._prefix.reusing(cached) as found:
                        work(number, positions, examples)
                    cached = cached or found
                done += len(positions)
                report(done)

    def _within_memory(self, stage: str, work: Callable[[], T]) -> T:
        return self.passes.within_memory(work, lambda note: self.progress(stage, 0, len(self.examples), note))


def segment_propagators(segments: Sequence[tuple[Tensor, float]]) -> list[Tensor]:
    """The effect of a gradient in each segment on the final weights: ``P_s [k, k]`` with ``X = -sum_s g_s P_s / N``.

    ``P_s = (I - e^(-tau_s G_s)) G_s^-1 prod_{t>s} e^(-tau_t G_t)`` (Bae et al. 2024, eq. 15, transposed: gradients are
    rows here), computed from the last segment back.

    Args:
        segments: Gauss-Newton matrices ``[k, k]`` and times, in order.
    """
    propagators: list[Tensor] = []
    after = torch.eye(len(segments[0][0]), dtype=torch.float64, device=segments[0][0].device)
    for ggn, time in reversed(segments):
        values, vectors = decomposed(ggn)
        left = torch.exp(-time * values)
        # (1 - e^(-tau x)) / x, whose limit for small x is tau.
        gained = torch.where(time * values > 1e-8, (1.0 - left) / values.clamp_min(1e-30), time)
        propagators.insert(0, (vectors * gained) @ (vectors.T @ after))
        after = (vectors * left) @ (vectors.T @ after)
    return propagators
