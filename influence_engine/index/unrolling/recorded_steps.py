"""Follows a record step by step: its steps are linearised once, and run through for every example's weight."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from influence_engine.curvature.gradient_passes import Batches, GradientPasses
from influence_engine.index.encoding.encoder import LayerCoordinates
from influence_engine.index.sizes import RESPONSE_SHARD, SHARD, shard_path
from influence_engine.index.unrolling.linearization import StepLineariser, read_steps
from influence_engine.index.unrolling.residual_hessian import leading_directions
from influence_engine.index.unrolling.sensitivity import Response
from influence_engine.progress import Progress
from influence_engine.tasks import Example
from influence_engine.tensor_files import write_tensors
from influence_engine.training import Run
from influence_engine.training.sensitivity import sensitivity_of


class RecordedSteps:
    """Follows the recorded steps.

    Args:
        run: A run that can be replayed.
        passes: Over the run's model.
        examples: The training examples, in the recorded order.
        hessian_directions: Along how many the steps' Hessians are exact.
        folder: Where the stages are kept.
        progress: Told of every step.
    """

    def __init__(
        self,
        run: Run,
        passes: GradientPasses,
        examples: Sequence[Example],
        hessian_directions: int,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.run, self.passes, self.examples, self.hessian_directions = run, passes, examples, hessian_directions
        self.folder, self.progress = folder, progress
        self._lineariser = StepLineariser(run, passes, examples, folder, progress)

    def sampled(self, most: int) -> Batches:
        """Examples as the model met them."""
        return self._lineariser.sampled(most)

    def responses(self, coordinates: LayerCoordinates, basis: Tensor, gradients: Sequence[Path]) -> list[Path]:
        """How the final weights answer to each example's weight, ``[n, k]`` a shard."""
        directions = None
        if width := self.hessian_directions:
            some = [load_file(path)["vectors"][:: len(gradients)] for path in gradients]
            directions = leading_directions(torch.cat(some), width).to(self.passes.device)
        stretches = self._lineariser.stretches(coordinates, basis, directions)
        sensitivity = sensitivity_of(self.run.optimizer, {})
        direct, late = sensitivity.impulse_responses(self.run.learning_rates)
        paths = []
        for start in range(0, len(self.examples), RESPONSE_SHARD):
            count = min(RESPONSE_SHARD, len(self.examples) - start)
            wanted = [shard_path(self.folder, "responses", first) for first in range(start, start + count, SHARD)]
            paths += wanted
            if not all(path.exists() for path in wanted):
                response = Response(
                    start, count, basis.shape[1], direct, late, self._lineariser.decays(), self.passes.device
                )
                for number, path in enumerate(stretches):
                    response.advance(read_steps(path))
                    done = start + count * (number + 1) // len(stretches)
                    self.progress("following the recorded steps", done, len(self.examples))
                for path, vectors in zip(wanted, torch.split(response.weights.cpu(), SHARD), strict=True):
                    write_tensors(path, {"vectors": vectors})
        return paths
