"""Executing a recorded run's steps again: to check the record, and to train without or with other examples."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from influence_engine.digests import json_digest
from influence_engine.errors import DataError, DigestMismatchError
from influence_engine.progress import Progress, silent
from influence_engine.resources import choose_device
from influence_engine.tasks import Example, Task
from influence_engine.training.checkpoint_intervals import check_loss
from influence_engine.training.execution import execute, weights_by_row
from influence_engine.training.frozen_cache import KeptSteps
from influence_engine.training.identity import check_examples, data_digest, task_digests
from influence_engine.training.record import Run
from influence_engine.training.retraining_cache import SavedTraining
from influence_engine.training.step import StepResult, trained_parameters

STAGE = "executing the recorded steps"


def reexecute(
    run: Run,
    task: Task,
    train: Sequence[Example],
    *,
    weights: Mapping[str, float] | None = None,
    replaced: Mapping[str, Example] | None = None,
    into: nn.Module | None = None,
    device: str = "auto",
    kept: KeptSteps | None = None,
    keep_in: str | os.PathLike[str] | None = None,
    save_every_s: float = 20.0,
    progress: Progress = silent,
) -> dict[str, Tensor]:
    """Executes all recorded steps from the start: same order, learning rates, ``Z_t`` and seeds.

    With the recorded weights, a run of ``finetune`` on the same machine comes out bit for bit; with ``w_i = 0`` it
    is the training without example ``i``, and with ``replaced`` the training with another example in its place.

    Args:
        run: A run that can be replayed.
        task: The one it was trained with.
        train: The examples it was trained on, in any order.
        weights: The ``w_i`` by example id, 1 where not given; None takes the recorded ones.
        replaced: By example id, what stands in an example's place: with another label or another text.
        into: For a module that is not from ``transformers``: a freshly built one, which is filled.
        device: Where to execute; ``"auto"`` is the GPU if there is one.
        kept: Shared by several executions of this run on one device, frozen layers run in the first one only. Not
            used where examples are replaced.
        keep_in: A folder; an interrupted execution goes on from there to the same bits, a finished one is read.
        save_every_s: Seconds of work that an interruption may cost.
        progress: Told of every step.

    Returns:
        The trained parameters after the last step, by name, on the CPU.

    Raises:
        RecordError: the run cannot be replayed; the message says why.
        DigestMismatchError: task, tokenizer or data are not the recorded ones, or a step before the first changed
            example does not come out as recorded; the message names it.
        DataError: a weight or another example is given for one that is not there, or the task refuses the other one.
    """
    run.require_replayable()
    examples = with_replacements(run, task, in_recorded_order(run, task, train), replaced or {})
    given = run.weights if weights is None else weights
    example_weights = weights_by_row(run.example_ids, given)
    model = run.load_base(into).to(choose_device(device))
    optimizer = run.optimizer
    parameters = trained_parameters(model, run.trainable)
    state, after, total = optimizer.initial_state(parameters), 0, len(run.schedule)
    saved = None
    if keep_in is not None:
        key = {"files": run.manifest["files"], "weights": dict(given), "replaced": data_digest(_listed(replaced))}
        saved = SavedTraining(keep_in, json_digest(key), save_every_s)
        found = saved.read(next(iter(parameters.values())).device)
        if found is not None:
            after, parameters, state = found
            progress(STAGE, after, total)
    changed = {name for name in {*given, *run.weights} if dict(given).get(name, 1.0) != run.weights.get(name, 1.0)}
    as_recorded = first_use(run, {*changed, *(replaced or {})}) - 1

    def told(number: int, result: StepResult) -> None:
        if number <= as_recorded:
            check_loss(run, number, float(result.loss))  # if they do not come out so, nothing can be measured
        if saved is not None and number < total and saved.due():
            saved.write(number, result.parameters, result.state)
        progress(STAGE, number, total, f"loss {float(result.loss):.3f}")

    if after < total:
        parameters = execute(
            task,
            model,
            examples,
            run.schedule,
            optimizer,
            parameters,
            state,
            after=after,
            weights=example_weights,
            max_grad_norm=run.max_grad_norm,
            dropout=run.dropout,
            each_step=told,
            kept=None if replaced else kept,
            first_position=run.first_position,
        )
        if saved is not None:
            saved.write(total, parameters, {})
    return {name: parameter.cpu() for name, parameter in parameters.items()}


def first_use(run: Run, example_ids: Collection[str]) -> int:
    """The first step that uses one of the examples; one after the last step where none does."""
    chosen = torch.tensor([example_id in example_ids for example_id in run.example_ids], dtype=torch.bool)
    for step in run.schedule.steps():
        if bool(chosen[torch.cat(step.rows)].any()):
            return step.number
    return len(run.schedule) + 1


def with_replacements(
    run: Run, task: Task, examples: Sequence[Example], replaced: Mapping[str, Example]
) -> list[Example]:
    """The examples, in the recorded order, with others in the place of some.

    Raises:
        DataError: there is none of that id to replace, or the task refuses what takes its place.
    """
    known = set(run.example_ids)
    for example_id in replaced:
        if example_id not in known:
            raise DataError(f"{example_id!r} is to be replaced, which is not in the training data", field="example_id")
    given = [{**example, "example_id": example_id} for example_id, example in replaced.items()]
    if given:
        check_examples(task, given, "changed")
    by_id: dict[str, Example] = {str(example["example_id"]): example for example in given}
    return [by_id.get(example_id, example) for example_id, example in zip(run.example_ids, examples, strict=True)]


def _listed(replaced: Mapping[str, Example] | None) -> list[Example]:
    return [{**example, "example_id": example_id} for example_id, example in (replaced or {}).items()]


def in_recorded_order(run: Run, task: Task, train: Sequence[Example]) -> list[Example]:
    """The examples of the run in the order that its schedule points into.

    Raises:
        DigestMismatchError: task, tokenizer or data are not the recorded ones; the message says which.
    """
    now = {**task_digests(task), "data": data_digest(train)}
    for what, digest in now.items():
        if digest != run.digests[what]:
            raise DigestMismatchError(
                f"the {what} given is not that of the run in {run.folder}: its digest is {digest}, recorded is "
                f"{run.digests[what]}",
                field=what,
            )
    by_id = {example["example_id"]: example for example in train}
    return [by_id[example_id] for example_id in run.example_ids]
