"""One recorded step in reverse, for many directions at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from influence_engine.tasks import Batch
from influence_engine.training.optimizers import (
    Optimizer,
    OptimizerState,
    Parameters,
    clipped,
    clipping_pulled_back,
    gradient_norm,
)
from influence_engine.training.schedule import Step
from influence_engine.training.step import Objective, gradient, seeded


@dataclass(frozen=True)
class Adjoint:
    """Derivatives of ``<direction, final parameters>`` with respect to what a step starts from, for ``K`` directions.

    Attributes:
        parameters: ``[K, *shape]`` by name.
        state: The same for each tensor of the optimiser's state.
    """

    parameters: Parameters
    state: OptimizerState

    @classmethod
    def of(cls, directions: Mapping[str, Tensor], state: OptimizerState) -> Adjoint:
        """At the end: a copy of the directions, and nothing on the state."""
        width = next(iter(directions.values())).shape[0]
        return cls(
            {name: tensor.clone() for name, tensor in directions.items()},
            {
                kind: {name: tensor.new_zeros(width, *tensor.shape) for name, tensor in tensors.items()}
                for kind, tensors in state.items()
            },
        )

    @property
    def width(self) -> int:
        """``K``."""
        return next(iter(self.parameters.values())).shape[0]

    def tensors(self) -> list[Tensor]:
        """All tensors: parameters, then state, in the order of ``flat``."""
        return flat(self.parameters, self.state)

    def chunk(self, first: int, last: int) -> Adjoint:
        """Directions ``first .. last - 1``, in the same memory."""
        return Adjoint(
            {name: tensor[first:last] for name, tensor in self.parameters.items()},
            {kind: {name: one[first:last] for name, one in tensors.items()} for kind, tensors in self.state.items()},
        )

    def like(self, tensors: Sequence[Tensor]) -> Adjoint:
        """An adjoint of this one's names that holds ``tensors``, in the order of ``flat``."""
        rest = iter(tensors)
        parameters = {name: next(rest) for name in self.parameters}
        return Adjoint(parameters, {kind: {name: next(rest) for name in names} for kind, names in self.state.items()})


def flat(parameters: Mapping[str, Tensor], state: Mapping[str, Mapping[str, Tensor]]) -> list[Tensor]:
    """Parameters and state as one list."""
    return [*parameters.values(), *(tensor for tensors in state.values() for tensor in tensors.values())]


def reverse_step(
    objective: Objective,
    optimizer: Optimizer,
    step: Step,
    batches: Sequence[Batch],
    parameters: Parameters,
    state: OptimizerState,
    adjoint: Adjoint,
    *,
    weights: Tensor,
    max_grad_norm: float | None,
    at_once: int,
) -> Tensor:
    """From the adjoint after a step to the one before it, in place: many directions of a large model are many bytes.

    The optimiser's step and the clipping are walked back by their formulas; the gradient's graph, made once, is walked
    back for ``at_once`` directions at a time.

    Args:
        objective: Model and task.
        optimizer: Its step.
        step: The step.
        batches: Its micro-batches, collated.
        parameters: Before the step.
        state: Before the step.
        adjoint: After the step; afterwards it is that before the step.
        weights: ``w_i`` of the step's examples, in the order of its micro-batches.
        max_grad_norm: As recorded.
        at_once: Directions of one backward pass.

    Returns:
        ``[K, uses]``: derivatives with respect to the weight of each use.
    """
    start = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
    counted = weights.detach().clone().requires_grad_()
    # The weights of this step's uses alone: a gradient over all examples would be mostly zeros.
    places = list(torch.split(torch.arange(len(counted)), [len(rows) for rows in step.rows]))
    with seeded(step.seed):
        graph, _, _ = gradient(objective, replace(step, rows=places), batches, start, counted, differentiable=True)
    raw = {name: tensor.detach() for name, tensor in graph.items()}
    norm = float(gradient_norm(raw))
    used, _ = clipped(raw, max_grad_norm)
    through = optimizer.adjoint(state, used, step.learning_rate, step.number)
    outputs, inputs = list(graph.values()), [*start.values(), counted]
    found = outputs[0].new_empty(adjoint.width, len(counted))
    for first in range(0, adjoint.width, at_once):
        last = min(first + at_once, adjoint.width)
        chunk = adjoint.chunk(first, last)
        pulled = through.pull_back(chunk.parameters, chunk.state)
        by_gradient = clipping_pulled_back(pulled, raw, norm, max_grad_norm)
        *before, uses = _pulled_back(outputs, inputs, list(by_gradient.values()), keep_graph=last < adjoint.width)
        for one, part in zip(chunk.parameters.values(), before, strict=True):
            one.add_(part)
        found[first:last] = uses
    return found


def _pulled_back(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor], *, keep_graph: bool
) -> Sequence[Tensor]:
    single = vectors[0].shape[0] == 1
    found = torch.autograd.grad(
        outputs,
        inputs,
        [vector[0] for vector in vectors] if single else vectors,
        retain_graph=keep_graph,
        allow_unused=True,
        materialize_grads=True,
        is_grads_batched=not single,
    )
    return [one.unsqueeze(0) for one in found] if single else found
