"""One recorded step in reverse, for many directions at once: the step-wise adjoint recursion of REPLAY.

Engstrom et al. 2025 (arXiv 2503.13751) differentiate one optimiser step after the other, the last one first, instead of
one graph of the whole training. This module differs from them in that the optimiser's step and the clipping are
differentiated by closed formulas (``Optimizer.adjoint``, ``clipping_adjoint``): only the gradient needs a graph, made
once for all directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from influence_engine.tasks import Batch
from influence_engine.training.clipping import clipped, clipping_adjoint, gradient_norm
from influence_engine.training.optimizers import OptimizerState, Parameters, TrainingState
from influence_engine.training.schedule import Step
from influence_engine.training.step import UpdateRule, gradient, seeded


@dataclass(frozen=True)
class Adjoint:
    """Derivatives of ``<direction_k, final parameters>`` by the state before (or after) a step, for ``K`` directions.

    Attributes:
        parameters: With respect to the parameters, ``[K, *shape]`` by name.
        state: With respect to the optimiser's state, ``[K, *shape]`` by kind and name.
    """

    parameters: Parameters
    state: OptimizerState

    @classmethod
    def of(cls, directions: Mapping[str, Tensor], state: OptimizerState) -> Adjoint:
        """The adjoint after the last step: a copy of the directions, and zero for the optimiser's state."""
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
        """The number of directions, ``K``."""
        return next(iter(self.parameters.values())).shape[0]

    def tensors(self) -> list[Tensor]:
        """All tensors as one list: those of the parameters, then those of the state."""
        return [*self.parameters.values(), *(one for tensors in self.state.values() for one in tensors.values())]

    def chunk(self, first: int, last: int) -> Adjoint:
        """The adjoint of directions ``first .. last - 1``, in the same memory."""
        return Adjoint(
            {name: tensor[first:last] for name, tensor in self.parameters.items()},
            {kind: {name: one[first:last] for name, one in tensors.items()} for kind, tensors in self.state.items()},
        )

    def like(self, tensors: Sequence[Tensor]) -> Adjoint:
        """The adjoint that holds ``tensors``, a list as the method ``tensors`` returns, under this one's names."""
        rest = iter(tensors)
        parameters = {name: next(rest) for name in self.parameters}
        return Adjoint(parameters, {kind: {name: next(rest) for name in names} for kind, names in self.state.items()})


def reverse_step(
    rule: UpdateRule,
    step: Step,
    batches: Sequence[Batch],
    start: TrainingState,
    adjoint: Adjoint,
    *,
    weights: Tensor,
    at_once: int,
) -> Tensor:
    """Turns the adjoint after a step into the adjoint before it, in place: for a large model it takes much memory.

    Args:
        rule: The recorded objective, optimiser and clipping.
        step: The step.
        batches: Its collated micro-batches.
        start: Parameters and optimiser state before the step.
        adjoint: After the step; when the function returns it is that before the step.
        weights: The ``w_i`` of the step's uses of examples, in the order of its micro-batches, ``[U]``.
        at_once: Directions in one backward pass.

    Returns:
        ``[K, U]``: derivatives of ``<direction_k, final parameters>`` by the weight of each use.
    """
    inputs = {name: tensor.detach().requires_grad_() for name, tensor in start.parameters.items()}
    weighted = weights.detach().clone().requires_grad_()
    # The weights of this step's uses alone: a gradient over all examples would be mostly zeros.
    places = list(torch.split(torch.arange(len(weighted)), [len(rows) for rows in step.rows]))
    with seeded(step.seed):
        graph, _, _ = gradient(
            rule.objective, replace(step, rows=places), batches, inputs, weighted, differentiable=True
        )
    raw = {name: tensor.detach() for name, tensor in graph.items()}
    norm = float(gradient_norm(raw))
    used, _ = clipped(raw, rule.max_grad_norm)
    optimizer = rule.optimizer.adjoint(start.optimizer_state, used, step.learning_rate, step.number)
    outputs, sources = list(graph.values()), [*inputs.values(), weighted]
    found = outputs[0].new_empty(adjoint.width, len(weighted))
    for first in range(0, adjoint.width, at_once):
        last = min(first + at_once, adjoint.width)
        chunk = adjoint.chunk(first, last)
        # 1. Through the optimiser's step: chunk.parameters and chunk.state are now those before it, but for step 3.
        by_clipped = optimizer.pull_back(chunk.parameters, chunk.state)
        # 2. Through the clipping.
        by_gradient = clipping_adjoint(by_clipped, raw, norm, rule.max_grad_norm)
        # 3. Through the gradient, by the parameters (a Hessian-vector product) and by the weights.
        *by_parameters, by_weights = _vector_jacobian(
            outputs, sources, list(by_gradient.values()), keep_graph=last < adjoint.width
        )
        for one, part in zip(chunk.parameters.values(), by_parameters, strict=True):
            one.add_(part)
        found[first:last] = by_weights
    return found


def _vector_jacobian(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor], *, keep_graph: bool
) -> Sequence[Tensor]:
    """Vector-Jacobian products for ``K`` vectors, ``[K, *shape]`` for each input."""
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
