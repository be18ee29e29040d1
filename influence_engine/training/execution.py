"""Executing the steps of a schedule one after another: for a first training and for every later one alike."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from influence_engine.errors import DataError
from influence_engine.tasks import Batch, Example, Task
from influence_engine.training.frozen_cache import FrozenSteps, KeptSteps
from influence_engine.training.optimizers import Optimizer, OptimizerState, Parameters
from influence_engine.training.schedule import Schedule, Step
from influence_engine.training.step import Objective, StepResult, set_dropout, training_step

EachStep = Callable[[int, StepResult], None]
"""Called after every step with its number and result."""

SHOWN = 10
"""How many examples a message names."""


def execute(
    task: Task,
    model: nn.Module,
    examples: Sequence[Example],
    schedule: Schedule,
    optimizer: Optimizer,
    parameters: Parameters,
    state: OptimizerState,
    *,
    after: int = 0,
    weights: Tensor | None = None,
    max_grad_norm: float | None = None,
    dropout: float = 0.0,
    each_step: EachStep | None = None,
    kept: KeptSteps | None = None,
    first_position: bool = False,
) -> Parameters:
    """Runs the steps that follow step ``after``.

    The model's own parameters are not changed; the mode and dropout of its modules are.

    Args:
        task: Collates the examples and gives their losses.
        model: On the device where the steps are to run.
        examples: The data set that ``schedule.rows`` points into.
        schedule: All steps.
        optimizer: Its step.
        parameters: The trained parameters after step ``after``, on the model's device.
        state: The optimiser's state after step ``after``.
        after: The last step that is already done.
        weights: The ``w_i``, ``[N]``; None weighs all examples 1.
        max_grad_norm: Longest gradient that is not scaled down.
        dropout: Probability of dropout.
        each_step: Told of every step.
        kept: Outputs of frozen layers, shared by all executions of these steps; unused where there is dropout.
        first_position: As for ``Objective``.

    Returns:
        The trained parameters after the last step.

    Raises:
        DataError: a loss or gradient is not finite; the message names the step and the examples.
    """
    set_dropout(model, dropout)
    frozen = None if kept is None or dropout else FrozenSteps(model, list(parameters), kept)
    objective = Objective(model, task, frozen, first_position=first_position)
    device = next(iter(parameters.values())).device
    with _deterministic(device):
        for step in schedule.steps(after):
            batches = collate_step(task, examples, step, device)
            result = training_step(
                objective, optimizer, step, batches, parameters, state, weights=weights, max_grad_norm=max_grad_norm
            )
            # A norm that is infinite or not a number makes a factor of 0 or one that is not a number.
            if not (math.isfinite(float(result.loss)) and float(result.clip_factor) > 0):
                raise DataError(_not_finite(step, result, examples))
            parameters, state = result.parameters, result.state
            if each_step is not None:
                each_step(step.number, result)
    return parameters


def collate_step(task: Task, examples: Sequence[Example], step: Step, device: torch.device) -> list[Batch]:
    """The micro-batches of a step, on ``device``."""
    return [
        {name: tensor.to(device) for name, tensor in task.collate([examples[row] for row in rows.tolist()]).items()}
        for rows in step.rows
    ]


def weights_by_row(example_ids: Sequence[str], weights: Mapping[str, float] | None) -> Tensor | None:
    """The ``w_i`` as a vector ``[N]``, 1 where not given; None if all are 1.

    Raises:
        DataError: an id is not in the data set, or a weight is not finite.
    """
    if not weights:
        return None
    rows = {example_id: row for row, example_id in enumerate(example_ids)}
    values = torch.ones(len(rows))
    for example_id, weight in weights.items():
        if example_id not in rows:
            raise DataError(f"a weight is given for {example_id!r}, which is not in the training data", field="weights")
        if not math.isfinite(weight):
            raise DataError(f"the weight of {example_id!r} is {weight}, not a finite number", field="weights")
        values[rows[example_id]] = weight
    return values


def _not_finite(step: Step, result: StepResult, examples: Sequence[Example]) -> str:
    rows = torch.cat(step.rows)
    bad = rows[~torch.cat(result.losses).cpu().isfinite()]
    what = "loss" if len(bad) else "gradient"
    names = [str(examples[row].get("example_id", row)) for row in (bad if len(bad) else rows).tolist()]
    listed = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    hint = (
        "the model or these examples give no usable loss"
        if step.number == 1
        else "either these examples are unusable, or training diverged and a lower learning rate will help"
    )
    return f"the {what} is not finite in step {step.number}, for the examples {listed}: {hint}"


@contextlib.contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    # On the CPU torch is deterministic for a given number of threads; on a GPU it has to be asked.
    if device.type == "cpu":
        yield
        return
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
