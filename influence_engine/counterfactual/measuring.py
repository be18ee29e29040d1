"""Executes a recorded run again with a change of its training data, and measures what the change does to queries."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from influence_engine.counterfactual.changes import Change
from influence_engine.counterfactual.queries import Queries, probability
from influence_engine.options import with_defaults
from influence_engine.resources import choose_device
from influence_engine.tasks import Example, Target, Task, projection_of
from influence_engine.training import Run, reexecute
from influence_engine.training.execution_options import INTERRUPTIBLE_DEFAULTS, InterruptibleOptions
from influence_engine.training.step import put_parameters

CACHED = 16
"""Retrainings whose parameters a folder caches, the latest used; each takes the disk of the trained weights."""

CONTROL = "control: the recorded steps as they are"
CHANGED = "training with the change"


@dataclass(frozen=True)
class QueryChange:
    """The effect of a change of the training data on one query.

    Attributes:
        target: What is measured, as the task names it.
        before: The measurement without the change: after the recorded steps, executed on this machine.
        after: The measurement after training with the change.
        measured: ``after - before``.
        predicted: By tier, what was predicted for ``measured``.
        ratio: By tier, ``measured / predicted``: 1 is right; None where next to nothing was predicted.
        probability_before: The target's probability that ``before`` stands for; None where the task says none.
        probability_after: The probability that ``after`` stands for.
        probability_predicted: By tier, the probability that ``before + predicted`` stands for.
        label_before: What the model predicts, where the task can say.
        label_after: What it predicts after training with the change.
        flipped: Whether the two differ; None where the task cannot say.
    """

    target: Target | None
    before: float
    after: float
    measured: float
    predicted: dict[str, float]
    ratio: dict[str, float | None]
    probability_before: float | None
    probability_after: float | None
    probability_predicted: dict[str, float | None]
    label_before: str | None
    label_after: str | None
    flipped: bool | None


@dataclass(frozen=True)
class Measured:
    """The effect of a change of the training data.

    Attributes:
        kind: ``remove``, ``relabel`` or ``edit``.
        changed_examples: How many examples were changed.
        training_examples: How many training examples there are.
        steps: Optimiser steps of the training.
        queries: The effect on each query.
        control_gap: Largest difference between a measurement of the recorded model and of the recorded steps executed
            on this machine without a change: what is below it means nothing. 0 where they agree bit for bit.
        seconds: Time of training with the change; of an interrupted training, since it was resumed.
        control_seconds: Time of training without the change; next to nothing where that was cached.
    """

    kind: str
    changed_examples: int
    training_examples: int
    steps: int
    queries: list[QueryChange]
    control_gap: float
    seconds: float
    control_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The result as a JSON value."""
        return asdict(self)


def measure(
    run: Run,
    task: Task,
    train: Sequence[Example],
    queries: Sequence[Example],
    change: Change,
    *,
    keep_in: str | os.PathLike[str],
    predicted: Mapping[str, Tensor] | None = None,
    **options: Unpack[InterruptibleOptions],
) -> Measured:
    """Executes the recorded steps with and without the change, and measures the queries on both models.

    The steps without the change are executed once and cached: on the machine that recorded the run they give the
    recorded weights bit for bit; on another one, or with other threads, rounding differs, and both models must be
    trained alike.

    Args:
        run: A run that can be replayed.
        task: The task that the run was trained with.
        train: The examples that the run was trained on, in any order.
        queries: What is measured; each names its target, or is measured on what the recorded model predicts.
        change: The change of the training data.
        keep_in: Folder that caches retrained parameters, so that an interrupted training goes on and none is repeated.
        predicted: By tier, the predicted changes, ``[Q]``.
        options: ``InterruptibleOptions``; ``save_every_s`` is 20 by default.

    Raises:
        RecordError: the run cannot be replayed; the message says why.
        DigestMismatchError: task, tokenizer, data, base model or a library are not the recorded ones.
        DataError: a changed example is not in the training data.
    """
    run.require_replayable()
    chosen = with_defaults(measure, INTERRUPTIBLE_DEFAULTS, options)
    trainer = _Retrainer(run, task, train, Path(keep_in), chosen)
    model = run.load_model(chosen["into"]).to(choose_device(chosen["device"]))
    asked = Queries(model, task, queries)
    recorded, _ = asked.measured(model)
    begun = time.monotonic()
    put_parameters(model, trainer.parameters(None))
    before, predictions_before = asked.measured(model)
    middle = time.monotonic()
    put_parameters(model, trainer.parameters(change))
    after, predictions_after = asked.measured(model)
    ended = time.monotonic()
    trainer.tidy()
    rows = []
    predictions = zip(predictions_before, predictions_after, strict=True)
    for place, (target, one, other, both) in enumerate(zip(asked.targets, before, after, predictions, strict=True)):
        expected = {tier: float(changes[place]) for tier, changes in (predicted or {}).items()}
        rows.append(_row(task, target, float(one), float(other), expected, both))
    return Measured(
        kind=change.kind,
        changed_examples=len(change.replacements),
        training_examples=len(run.example_ids),
        steps=len(run.schedule),
        queries=rows,
        control_gap=float((before - recorded).abs().max()),
        seconds=ended - middle,
        control_seconds=middle - begun,
    )


class _Retrainer:
    """Executes the recorded steps with a change of the data, or without, and caches the parameters on disk."""

    def __init__(
        self, run: Run, task: Task, train: Sequence[Example], folder: Path, options: InterruptibleOptions
    ) -> None:
        self.run, self.task, self.train, self.folder, self.options = run, task, train, folder, options

    def parameters(self, change: Change | None) -> dict[str, Tensor]:
        """The parameters after the recorded steps with a change of the data, or without."""
        stage_name, progress = CONTROL if change is None else CHANGED, self.options["progress"]

        def report(stage: str, done: int, total: int, note: str = "") -> None:
            progress(stage_name, done, total, note)

        options: InterruptibleOptions = {**self.options, "progress": report}
        removed = dict.fromkeys(change.removed, 0.0) if change is not None else {}
        return reexecute(
            self.run,
            self.task,
            self.train,
            weights={**self.run.weights, **removed},
            replaced=change.replaced if change is not None else None,
            # Rounding differs with the number of threads, so each number has a cache of its own.
            keep_in=self.folder / f"threads-{torch.get_num_threads()}",
            **options,
        )

    def tidy(self) -> None:
        """Deletes the cached parameters that have not been used for longest, all but ``CACHED``."""
        files = sorted(self.folder.rglob("retraining-*.safetensors"), key=lambda path: path.stat().st_mtime)
        for path in files[:-CACHED]:
            path.unlink(missing_ok=True)


def _row(
    task: Task,
    target: Target | None,
    before: float,
    after: float,
    predicted: dict[str, float],
    predictions: tuple[Mapping[str, Any] | None, Mapping[str, Any] | None],
) -> QueryChange:
    labels = [projection_of(task, one).label for one in predictions]
    return QueryChange(
        target=target,
        before=before,
        after=after,
        measured=after - before,
        predicted=predicted,
        ratio={tier: fidelity_ratio(after - before, value) for tier, value in predicted.items()},
        probability_before=probability(task, before),
        probability_after=probability(task, after),
        probability_predicted={tier: probability(task, before + value) for tier, value in predicted.items()},
        label_before=labels[0],
        label_after=labels[1],
        flipped=None if labels[0] is None else labels[0] != labels[1],
    )


def fidelity_ratio(measured: float, predicted: float) -> float | None:
    """Ratio of measured to predicted change; None where next to nothing was predicted."""
    return None if abs(predicted) < 1e-6 else measured / predicted
