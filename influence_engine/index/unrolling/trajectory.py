"""The way that the trained weights took, as a few points with the time that each stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from influence_engine.curvature import same_start
from influence_engine.gradients import TrackedLayers
from influence_engine.training import Run
from influence_engine.training.optimizers import Parameters


@dataclass(frozen=True)
class Point:
    """Weights in the middle of a segment of the training.

    Attributes:
        weights: Of the trained parameters, by name.
        time: That the segment takes: the sum of its learning rates in the optimiser's metric.
    """

    weights: Parameters
    time: float


def straight_way(start: Parameters, end: Parameters, time: float, count: int) -> list[Point]:
    """Points on the straight line between two ends, walked evenly."""
    return [
        Point({name: torch.lerp(start[name], end[name], (number + 0.5) / count) for name in end}, time / count)
        for number in range(count)
    ]


def recorded_way(run: Run, time: float, count: int, device: torch.device) -> list[Point]:
    """Points between the checkpoints of a record, as far apart in its learning rates, clipping included."""
    rates = run.clipped_learning_rates
    reached = torch.cat([rates.new_zeros(1), rates.cumsum(0) / rates.sum()])[run.checkpoints]
    points = []
    for number in range(count):
        middle = (number + 0.5) / count
        after = min(max(int(torch.searchsorted(reached, middle)), 1), len(reached) - 1)
        share = (middle - float(reached[after - 1])) / float(reached[after] - reached[after - 1])
        first, last = (run.checkpoint(run.checkpoints[place])[0] for place in (after - 1, after))
        weights = {name: torch.lerp(first[name], last[name], share).to(device) for name in run.trainable}
        points.append(Point(weights, time / count))
    return points


def starting_weights(tracked: TrackedLayers, model: nn.Module, base: nn.Module) -> Parameters:
    """Where the trained parameters of ``model`` started: at the base model's.

    Layers that did not start there stay where they are: a head that was drawn anew, whose weights at first nobody
    knows. Held in place it explained as well as one that moves from where it was, and better than from zero.
    """
    own, there = _named(model), _named(base)
    start: Parameters = {}
    for layer in tracked.layers:
        names = layer.parameters()
        after = {name: own[name] for name in names}
        start |= {name: tensor.clone() for name, tensor in after.items()}
        if all(name in there and there[name].shape == own[name].shape for name in names):
            before = {name: there[name].to(own[name]) for name in names}
            if same_start(layer.matrix(before), layer.matrix(after)):
                start |= before
    return start


def matrices_there(tracked: TrackedLayers, base: nn.Module) -> dict[str, Tensor]:
    """The base model's weights, ``[d0, d1]`` by layer name, without layers that it does not have."""
    there = _named(base)
    return {
        layer.name: layer.matrix(there) for layer in tracked.layers if all(name in there for name in layer.parameters())
    }


def _named(model: nn.Module) -> Mapping[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}
