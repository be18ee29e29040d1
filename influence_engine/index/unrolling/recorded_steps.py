"""Unrolls a recorded training: its steps are linearised once, and run through for every example's weight."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from influence_engine.curvature.gradient_passes import Batches, GradientPasses
from influence_engine.index.encoding.encoder import LayerCoordinates
from influence_engine.index.sizes import SENSITIVITY_SHARD, SHARD, sensitivity_path
from influence_engine.index.unrolling.linearization import StepLineariser, read_steps
from influence_engine.index.unrolling.residual_hessian import leading_directions
from influence_engine.index.unrolling.sensitivity import ParameterSensitivity
from influence_engine.progress import Progress
from influence_engine.tasks import Example
from influence_engine.tensor_files import write_tensors
from influence_engine.training import Run
from influence_engine.training.sensitivity import sensitivity_of

UNROLLING_STEPS = "unrolling the recorded steps"


class RecordedSteps:
    """The unrolling of a recorded run.

    Args:
        run: A run that can be replayed.
        passes: Run the run's model over examples.
        examples: The training examples, in the recorded order.
        hessian_directions: Directions along which the steps' Hessians are exact.
        folder: Where the stages are stored.
        progress: Called after every step.
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

    def sample(self, count: int) -> Batches:
        """``count`` examples in batches, while the model has the weights at which training met them."""
        return self._lineariser.sample(count)

    def sensitivities(self, coordinates: LayerCoordinates, basis: Tensor, gradients: Sequence[Path]) -> list[Path]:
        """``d theta / d w`` of every example, ``[n, k]`` a shard; the arguments are those of ``Unrolling``."""
        directions = None
        if width := self.hessian_directions:
            some = [load_file(path)["vectors"][:: len(gradients)] for path in gradients]
            directions = leading_directions(torch.cat(some), width).to(self.passes.device)
        intervals = self._lineariser.linearise(coordinates, basis, directions)
        responses = sensitivity_of(self.run.optimizer, {}).impulse_responses(self.run.learning_rates)
        decays = self._lineariser.decays()
        paths = []
        for start in range(0, len(self.examples), SENSITIVITY_SHARD):
            block = range(start, min(start + SENSITIVITY_SHARD, len(self.examples)))
            wanted = [sensitivity_path(self.folder, first) for first in block[::SHARD]]
            paths += wanted
            if not all(path.exists() for path in wanted):
                found = ParameterSensitivity(block, basis.shape[1], responses, decays, self.passes.device)
                for number, path in enumerate(intervals):
                    found.advance(read_steps(path))
                    done = start + len(block) * (number + 1) // len(intervals)
                    self.progress(UNROLLING_STEPS, done, len(self.examples))
                for path, vectors in zip(wanted, torch.split(found.values.cpu(), SHARD), strict=True):
                    write_tensors(path, {"vectors": vectors})
        return paths
