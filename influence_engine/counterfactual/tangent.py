"""Predicts the effect of a change of the training data by forward-mode differentiation along the recorded steps.

At every step in which a changed example was used, its weight falls from 1 while that of its replacement rises from 0.
The derivative of parameters and optimiser state along this change of weights is propagated from the first step to the
last, through clipping and the optimiser: one pass for all queries and all changed examples, where reverse
differentiation (replay) takes one for each query.

The derivative is averaged over the two Gauss-Legendre nodes of the linear path from the recorded example weights to the
changed ones, which is exact where the measurement is a polynomial of at most degree four along the path. At the
beginning of the path, the derivative for another text is no prediction at all where embeddings are trained: the first
gradient that Adam ever sees of a word moves its embedding by a whole learning rate, however small the gradient is.
Halfway to another label, the gradients of a word that only this example has cancel. Between the nodes such jumps are
passed over: where they matter, the prediction is too small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from influence_engine.counterfactual.changes import Change
from influence_engine.errors import RecordError
from influence_engine.gradients.forward_mode import derivative_along, forward
from influence_engine.options import with_defaults
from influence_engine.resources import choose_device, to_device
from influence_engine.tasks import Batch, Example, Task, with_targets
from influence_engine.training import Run, in_recorded_order
from influence_engine.training.clipping import clipped
from influence_engine.training.execution import collate_step, weights_by_row
from influence_engine.training.execution_options import MODEL_DEFAULTS, ModelOptions
from influence_engine.training.optimizers import Parameters
from influence_engine.training.reexecution import with_replacements
from influence_engine.training.schedule import Step
from influence_engine.training.step import (
    Objective,
    gradient,
    seeded,
    set_dropout,
    trained_parameters,
)

STAGE = "differentiating along the recorded steps"

NODES = (0.5 - 0.5 / 3**0.5, 0.5 + 0.5 / 3**0.5)
"""Where on the linear path the derivative is taken: the two Gauss-Legendre nodes, whose weights are equal."""


def first_order(
    run: Run,
    task: Task,
    train: Sequence[Example],
    queries: Sequence[Example],
    change: Change,
    *,
    at: Sequence[float] = NODES,
    **options: Unpack[ModelOptions],
) -> Tensor:
    """Derivative of the measurements along the change, ``[Q]`` in double precision: the prediction of its effect.

    Where dropout was recorded, a replacement has dropout masks of its own.

    Args:
        run: A run that can be replayed.
        task: The task that the run was trained with.
        train: The examples that the run was trained on, in any order.
        queries: What is measured; each names its target, or is measured on what the model predicts.
        change: The change of the training data.
        at: Where on the linear path from the recorded example weights (0) to the changed ones (1) derivatives are
            taken, each in one pass; they are averaged. At 0 alone, for a removal, the result is that of exact replay.
        options: ``ModelOptions``.

    Raises:
        RecordError: the run cannot be replayed, or its model cannot be differentiated in forward mode.
        DigestMismatchError: task, tokenizer or data are not the recorded ones.
        DataError: a changed example is not there, or the task refuses its replacement.
    """
    run.require_replayable()
    chosen = with_defaults(first_order, MODEL_DEFAULTS, options)
    into, progress = chosen["into"], chosen["progress"]
    examples = in_recorded_order(run, task, train)
    with_replacements(run, task, examples, change.replaced)  # refuses replacements that cannot be trained on
    model = run.load_base(into).to(choose_device(chosen["device"]))
    set_dropout(model, run.dropout)
    total = len(at) * len(run.schedule)
    derivatives = []
    try:
        for number, place in enumerate(at):

            def report(done: int, before: int = number * len(run.schedule)) -> None:
                progress(STAGE, before + done, total)

            changed = _Changed(run, examples, change, place)
            objective = Objective(model, task, first_position=run.first_position)
            parameters, tangents = _propagated(run, objective, changed, report)
            model_at_end = run.load_model(into).to(_device(parameters))
            derivatives.append(_measured(model_at_end, task, queries, parameters, tangents))
    except NotImplementedError as error:
        raise RecordError(
            f"{type(model).__name__} cannot be differentiated in forward mode along its steps: {error}; measure the "
            "change by training again instead"
        ) from error
    return torch.stack(derivatives).mean(0)


def _propagated(
    run: Run, objective: Objective, changed: _Changed, report: Callable[[int], None]
) -> tuple[Parameters, Parameters]:
    """The parameters after the last step, and their derivative along the change of the example weights."""
    optimizer = run.optimizer
    parameters = trained_parameters(objective.model, run.trainable)
    state = optimizer.initial_state(parameters)
    tangents = _zeros({"parameters": parameters, **state})
    for step in run.schedule.steps():
        extended = changed.extended(step)
        batches = collate_step(objective.task, changed.examples, extended, _device(parameters))
        with forward.dual_level():
            dual = _dual({"parameters": parameters, **state}, tangents)
            weights = forward.make_dual(changed.weights, changed.tangent)
            inputs = {name: tensor.requires_grad_() for name, tensor in dual.pop("parameters").items()}
            with seeded(step.seed):
                gradients, _, _ = gradient(objective, extended, batches, inputs, weights)
            with torch.no_grad():
                shortened, _ = clipped(gradients, run.max_grad_norm)
                updated, new = optimizer.step(inputs, dual, shortened, step.learning_rate, step.number)
            state, tangents = _unpacked({"parameters": updated, **new})
        parameters = state.pop("parameters")
        report(step.number)
    return parameters, tangents["parameters"]


class _Changed:
    """The training examples, then the replacements; all weights at a place of the linear path, and their tangent."""

    def __init__(self, run: Run, examples: Sequence[Example], change: Change, at: float) -> None:
        rows = {example_id: row for row, example_id in enumerate(run.example_ids)}
        recorded = weights_by_row(run.example_ids, run.weights)
        count = len(examples)
        own = torch.ones(count) if recorded is None else recorded
        self.examples = [*examples, *change.replaced.values()]
        weights = torch.cat([own, torch.zeros(len(change.replaced))])
        self.tangent = torch.zeros(len(self.examples))
        self._successor = torch.full((count,), -1)
        for number, example_id in enumerate(change.replaced):
            self._successor[rows[example_id]] = count + number
            self.tangent[count + number] = own[rows[example_id]]
        for example_id in change.example_ids:
            self.tangent[rows[example_id]] = -own[rows[example_id]]
        self.weights = weights + at * self.tangent

    def extended(self, step: Step) -> Step:
        """The step with a last micro-batch of replacements; those before it draw the recorded random numbers."""
        rows, shares = torch.cat(step.rows), torch.cat(step.shares)
        successors = self._successor[rows]
        there = successors >= 0
        if not bool(there.any()):
            return step
        return replace(step, rows=[*step.rows, successors[there]], shares=[*step.shares, shares[there]])


def _measured(
    model: nn.Module,
    task: Task,
    queries: Sequence[Example],
    parameters: Mapping[str, Tensor],
    along: Mapping[str, Tensor],
) -> Tensor:
    def measure(model: nn.Module, batch: Batch) -> Tensor:
        return task.measurement(task.outputs(model, batch), batch)

    model.eval()
    parts = []
    for start in range(0, len(queries), 16):
        batch = with_targets(task, model, to_device(task.collate(queries[start : start + 16]), _device(parameters)))
        parts.append(derivative_along(model, measure, batch, parameters, along).cpu())
    return torch.cat(parts).double()


Tensors = dict[str, dict[str, Tensor]]


def _zeros(tensors: Mapping[str, Mapping[str, Tensor]]) -> Tensors:
    return {kind: {name: torch.zeros_like(one) for name, one in named.items()} for kind, named in tensors.items()}


def _dual(tensors: Mapping[str, Mapping[str, Tensor]], tangents: Tensors) -> Tensors:
    return {
        kind: {name: forward.make_dual(one.detach(), tangents[kind][name]) for name, one in named.items()}
        for kind, named in tensors.items()
    }


def _unpacked(tensors: Mapping[str, Mapping[str, Tensor]]) -> tuple[Tensors, Tensors]:
    primal: Tensors = {}
    tangents: Tensors = {}
    for kind, named in tensors.items():
        for name, one in named.items():
            found: Any = forward.unpack_dual(one)
            primal.setdefault(kind, {})[name] = found.primal.detach()
            tangent = torch.zeros_like(found.primal) if found.tangent is None else found.tangent.detach()
            tangents.setdefault(kind, {})[name] = tangent
    return primal, tangents


def _device(parameters: Mapping[str, Tensor]) -> torch.device:
    return next(iter(parameters.values())).device
