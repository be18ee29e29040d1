"""Executes the steps of a schedule one after another, for a first training and for every later one alike."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from influence_engine.errors import DataError
from influence_engine.tasks import Batch, Example, Task
from influence_engine.training.optimizers import Parameters, TrainingState
from influence_engine.training.schedule import Schedule, Step
from influence_engine.training.step import StepResult, UpdateRule, training_step

StepCallback = Callable[[int, StepResult], None]
"""Called after every step with its number and result."""

MAX_LISTED = 10
"""How many examples a message names."""


def execute(
    rule: UpdateRule,
    examples: Sequence[Example],
    schedule: Schedule,
    start: TrainingState,
    *,
    after: int = 0,
    weights: Tensor | None = None,
    on_step: StepCallback | None = None,
) -> Parameters:
    """Runs the steps that follow step ``after``; the model's own parameters are not changed.

    Args:
        rule: Objective, optimiser and clipping; its model is in the mode in which the steps run (``set_dropout``).
        examples: The data set whose rows ``schedule.rows`` are.
        schedule: All steps.
        start: Parameters, on the model's device, and optimiser state after step ``after``.
        after: The number of the last step that is done already.
        weights: The ``w_i``, ``[N]``; None for weights of 1.
        on_step: Called after every step.

    Returns:
        The trained parameters after the last step.

    Raises:
        DataError: a loss or gradient is not finite; the message names the step and the examples.
    """
    state = start
    device = next(iter(start.parameters.values())).device
    with _deterministic(device):
        for step in schedule.steps(after):
            batches = collate_step(rule.objective.task, examples, step, device)
            result = training_step(rule, step, batches, state, weights=weights)
            # A gradient norm that is infinite or NaN makes a clip factor of 0 or NaN.
            if not (math.isfinite(float(result.loss)) and float(result.clip_factor) > 0):
                raise DataError(_not_finite(step, result, examples))
            state = result.state
            if on_step is not None:
                on_step(step.number, result)
    return state.parameters


def collate_step(task: Task, examples: Sequence[Example], step: Step, device: torch.device) -> list[Batch]:
    """The collated micro-batches of a step, on ``device``."""
    return [
        {name: tensor.to(device) for name, tensor in task.collate([examples[row] for row in rows.tolist()]).items()}
        for rows in step.rows
    ]


def weights_by_row(example_ids: Sequence[str], weights: Mapping[str, float] | None) -> Tensor | None:
    """Weights by example id as a vector ``[N]``, 1 for an id that has none; None if no weight is given.

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
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    listed = ", ".join(names[:MAX_LISTED]) + more
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
