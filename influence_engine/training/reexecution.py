"""Executing a recorded run's steps again: to check the record, and to train without some examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from influence_engine.errors import DigestMismatchError, RecordError
from influence_engine.progress import Progress, silent
from influence_engine.resources import choose_device
from influence_engine.tasks import Example, Task
from influence_engine.training.execution import execute, weights_by_row
from influence_engine.training.frozen import KeptSteps
from influence_engine.training.identity import data_digest, task_digests
from influence_engine.training.record import Run
from influence_engine.training.step import StepResult, trained_parameters

STAGE = "executing the recorded steps"


def reexecute(
    run: Run,
    task: Task,
    train: Sequence[Example],
    *,
    weights: Mapping[str, float] | None = None,
    into: nn.Module | None = None,
    device: str = "auto",
    kept: KeptSteps | None = None,
    progress: Progress = silent,
) -> dict[str, Tensor]:
    """Executes all recorded steps from the start: same order, learning rates, ``Z_t`` and seeds.

    With the recorded weights, a run of ``finetune`` on the same machine comes out bit for bit; with ``w_i = 0`` it
    is the training without example ``i``.

    Args:
        run: A run that can be replayed.
        task: The one it was trained with.
        train: The examples it was trained on, in any order.
        weights: The ``w_i`` by example id, 1 where not given; None takes the recorded ones.
        into: For a module that is not from ``transformers``: a freshly built one, which is filled.
        device: Where to execute; ``"auto"`` is the GPU if there is one.
        kept: Shared by several executions of this run on one device, frozen layers run in the first one only.
        progress: Told of every step.

    Returns:
        The trained parameters after the last step, by name, on the CPU.

    Raises:
        RecordError: the run cannot be replayed; the message says why.
        DigestMismatchError: task, tokenizer or data are not the recorded ones.
        DataError: a weight is given for an example that is not there.
    """
    if not run.replayable:
        raise RecordError(f"the run in {run.folder} cannot be executed again: {run.why_not_replayable}")
    examples = in_recorded_order(run, task, train)
    example_weights = weights_by_row(run.example_ids, run.weights if weights is None else weights)
    model = run.load_base(into).to(choose_device(device))
    optimizer = run.optimizer
    parameters = trained_parameters(model, run.trainable)

    def told(number: int, result: StepResult) -> None:
        progress(STAGE, number, len(run.schedule), f"loss {float(result.loss):.3f}")

    final = execute(
        task,
        model,
        examples,
        run.schedule,
        optimizer,
        parameters,
        optimizer.initial_state(parameters),
        weights=example_weights,
        max_grad_norm=run.max_grad_norm,
        dropout=run.dropout,
        each_step=told,
        kept=kept,
    )
    return {name: parameter.cpu() for name, parameter in final.items()}


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
