"""Executes a recorded run's steps again: to check the record, and to train without or with other examples."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor

from influence_engine.digests import json_digest
from influence_engine.errors import DataError
from influence_engine.options import with_defaults
from influence_engine.tasks import Example, Task
from influence_engine.training.checkpoint_intervals import check_loss
from influence_engine.training.execution import execute, weights_by_row
from influence_engine.training.execution_options import EXECUTION_DEFAULTS, RENAMED, ExecutionOptions
from influence_engine.training.identity import check_examples, data_digest
from influence_engine.training.optimizers import TrainingState
from influence_engine.training.record import Run
from influence_engine.training.recorded_training import RecordedTraining
from influence_engine.training.retraining_cache import RetrainingCheckpoint
from influence_engine.training.step import StepResult

STAGE = "executing the recorded steps"


def reexecute(
    run: Run,
    task: Task,
    train: Sequence[Example],
    *,
    weights: Mapping[str, float] | None = None,
    replaced: Mapping[str, Example] | None = None,
    **options: Unpack[ExecutionOptions],
) -> dict[str, Tensor]:
    """Executes all recorded steps from the start: same order, learning rates, ``Z_t`` and seeds.

    With the recorded weights, a run of ``finetune`` on the same machine comes out bit for bit; with ``w_i = 0`` it
    is the training without example ``i``, and with ``replaced`` the training with another example in its place.

    Args:
        run: A run that can be replayed.
        task: The task that the run was trained with.
        train: The examples that the run was trained on, in any order.
        weights: The ``w_i`` by example id, 1 where not given; None takes the recorded ones.
        replaced: By example id, the example that is trained on in its place: with another label or another text.
        options: ``ExecutionOptions``; ``frozen_cache`` is not used where examples are replaced, ``save_every_s`` is 20
            by default.

    Returns:
        The trained parameters after the last step, by name, on the CPU.

    Raises:
        RecordError: the run cannot be replayed; the message says why.
        DigestMismatchError: task, tokenizer or data are not the recorded ones, or a step before the first changed
            example does not come out as recorded; the message names it.
        DataError: a weight or replacement is given for an unknown example, or the task refuses the replacement.
        TypeError: an option is unknown.
    """
    run.require_replayable()
    chosen = with_defaults(reexecute, EXECUTION_DEFAULTS, options, renamed=RENAMED)
    training = RecordedTraining.load(run, task, train, into=chosen["into"], device=chosen["device"])
    training = replace(training, examples=with_replacements(run, task, training.examples, replaced or {}))
    given = run.weights if weights is None else weights
    example_weights = weights_by_row(run.example_ids, given)
    rule = training.update_rule(None if replaced else chosen["frozen_cache"])
    state, after, total = training.initial_state(), 0, len(run.schedule)
    progress, checkpoint = chosen["progress"], None
    if chosen["keep_in"] is not None:
        key = {"files": run.manifest["files"], "weights": dict(given), "replaced": data_digest(_with_ids(replaced))}
        checkpoint = RetrainingCheckpoint(chosen["keep_in"], json_digest(key), chosen["save_every_s"])
        found = checkpoint.read(training.device)
        if found is not None:
            after, state = found
            progress(STAGE, after, total)
    changed = {name for name in {*given, *run.weights} if dict(given).get(name, 1.0) != run.weights.get(name, 1.0)}
    as_recorded = first_use(run, {*changed, *(replaced or {})}) - 1

    def on_step(number: int, result: StepResult) -> None:
        if number <= as_recorded:
            check_loss(run, number, float(result.loss))  # if they do not come out as recorded, nothing can be measured
        if checkpoint is not None and number < total and checkpoint.due():
            checkpoint.write(number, result.state)
        progress(STAGE, number, total, f"loss {float(result.loss):.3f}")

    parameters = state.parameters
    if after < total:
        parameters = execute(
            rule, training.examples, run.schedule, state, after=after, weights=example_weights, on_step=on_step
        )
        if checkpoint is not None:
            checkpoint.write(total, TrainingState(parameters, {}))
    return {name: parameter.cpu() for name, parameter in parameters.items()}


def first_use(run: Run, example_ids: Collection[str]) -> int:
    """The number of the first step that uses one of the examples; the number of steps plus one where none does."""
    chosen = torch.tensor([example_id in example_ids for example_id in run.example_ids], dtype=torch.bool)
    for step in run.schedule.steps():
        if bool(chosen[torch.cat(step.rows)].any()):
            return step.number
    return len(run.schedule) + 1


def with_replacements(
    run: Run, task: Task, examples: Sequence[Example], replaced: Mapping[str, Example]
) -> list[Example]:
    """The examples of a run in recorded order, some of them replaced.

    Args:
        run: The run.
        task: Checks the replacements.
        examples: The run's examples in recorded order.
        replaced: The replacements, by the id of the example that each replaces; they take over this id.

    Raises:
        DataError: there is no example of such an id, or the task refuses a replacement.
    """
    known = set(run.example_ids)
    for example_id in replaced:
        if example_id not in known:
            raise DataError(f"{example_id!r} is to be replaced, which is not in the training data", field="example_id")
    given = _with_ids(replaced)
    if given:
        check_examples(task, given, "changed")
    by_id: dict[str, Example] = {str(example["example_id"]): example for example in given}
    return [by_id.get(example_id, example) for example_id, example in zip(run.example_ids, examples, strict=True)]


def _with_ids(replaced: Mapping[str, Example] | None) -> list[Example]:
    return [{**example, "example_id": example_id} for example_id, example in (replaced or {}).items()]
