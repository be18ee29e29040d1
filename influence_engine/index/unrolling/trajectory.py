"""The training trajectory as a few points, each with the training time that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from influence_engine.curvature import same_initialisation
from influence_engine.gradients import TrackedLayers
from influence_engine.training import Run
from influence_engine.training.optimizers import Parameters


@dataclass(frozen=True)
class TrajectoryPoint:
    """Weights in the middle of a segment of the training.

    Attributes:
        weights: Values of the trained parameters, by name.
        time: Length of the segment: the sum of its learning rates, in preconditioned coordinates.
    """

    weights: Parameters
    time: float


def linear_path(start: Parameters, end: Parameters, time: float, count: int) -> list[TrajectoryPoint]:
    """The middles of ``count`` equal segments of the linear path from ``start`` to ``end``, ``time`` long in all.

    Deviation from SOURCE (Bae et al. 2024), which takes checkpoints of the training: this is for models without any.
    """
    return [
        TrajectoryPoint({name: torch.lerp(start[name], end[name], middle) for name in end}, time / count)
        for middle in ((number + 0.5) / count for number in range(count))
    ]


def recorded_trajectory(run: Run, time: float, count: int, device: torch.device) -> list[TrajectoryPoint]:
    """The middles of ``count`` segments of a recorded training, each with the same sum of (clipped) learning rates.

    Weights between two checkpoints are interpolated linearly. ``time`` is the length of all segments together.
    """
    rates = run.clipped_learning_rates
    reached = torch.cat([rates.new_zeros(1), rates.cumsum(0) / rates.sum()])[run.checkpoints]
    points = []
    for number in range(count):
        middle = (number + 0.5) / count
        after = min(max(int(torch.searchsorted(reached, middle)), 1), len(reached) - 1)
        share = (middle - float(reached[after - 1])) / float(reached[after] - reached[after - 1])
        first, last = (run.checkpoint(run.checkpoints[place])[0] for place in (after - 1, after))
        weights = {name: torch.lerp(first[name], last[name], share).to(device) for name in run.trainable}
        points.append(TrajectoryPoint(weights, time / count))
    return points


def initial_weights(tracked: TrackedLayers, model: nn.Module, base: nn.Module) -> Parameters:
    """The weights that the trained parameters of ``model`` started from: the base model's.

    Layers that cannot have started there (a head that was initialised anew, with weights that nobody knows) stay at
    their final weights. Influences were as accurate so as with the recorded start, and more accurate than from zero.
    """
    own, others = _named(model), _named(base)
    start: Parameters = {}
    for layer in tracked.layers:
        names = layer.parameters()
        after = {name: own[name] for name in names}
        start |= {name: tensor.clone() for name, tensor in after.items()}
        if all(name in others and others[name].shape == own[name].shape for name in names):
            before = {name: others[name].to(own[name]) for name in names}
            if same_initialisation(layer.matrix(before), layer.matrix(after)):
                start |= before
    return start


def layer_matrices(tracked: TrackedLayers, model: nn.Module) -> dict[str, Tensor]:
    """A model's weights in the tracked layers, ``[d0, d1]`` by layer name, without layers that it does not have."""
    weights = _named(model)
    return {
        layer.name: layer.matrix(weights)
        for layer in tracked.layers
        if all(name in weights for name in layer.parameters())
    }


def _named(model: nn.Module) -> Mapping[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}
