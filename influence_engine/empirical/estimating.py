"""What the index predicts for a change of the training data, before anything is trained.

Removing examples takes their influences away. Where another example takes the place of one, the prediction is the
damped step of the final weights along the difference of the two loss gradients,
``-phi^T (G + lambda D)^-1 (g_new - g_old) a / Z`` (Koh and Liang 2017): the rows of an index that follows the recorded
steps are of the examples as they were, so it has none for the other one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from influence_engine.attribution import Attributor
from influence_engine.curvature import heuristic_damping, recorded_damping
from influence_engine.empirical.changes import Change
from influence_engine.errors import DataError
from influence_engine.gradients import tracing
from influence_engine.resources import to_device
from influence_engine.tasks import Example
from influence_engine.training import Run

_BATCH = 16


@dataclass(frozen=True)
class Estimate:
    """A predicted change of measurements.

    Attributes:
        changes: ``[Q]``, double precision, in the measurement's units: with the change minus as it is.
        tier: How it was obtained: ``estimated`` or ``replayed``.
        method: ``rows of the index`` or ``difference of gradients at the final weights``.
    """

    changes: Tensor
    tier: str
    method: str


def estimate(
    attributor: Attributor,
    queries: Sequence[Example],
    change: Change,
    train: Sequence[Example],
    *,
    run: Run | None = None,
) -> Estimate:
    """Predicts what a change of the training data does to the measurements of queries.

    Args:
        attributor: Of the model.
        queries: As for ``Attributor.attribute``.
        change: Of the training data.
        train: The examples of the index, in any order.
        run: The recorded run, where there is one: an index that follows its steps has no damping of its own, and the
            difference of gradients takes the record's, ``1 / sum of learning rates``.

    Raises:
        DataError: the index does not hold a changed example.
    """
    index = attributor.index
    rows = {example_id: row for row, example_id in enumerate(index.example_ids)}
    for example_id in change.example_ids:
        if example_id not in rows:
            raise DataError(f"the index holds no example {example_id!r}", field="examples")
    if not change.replaced:
        tier = "estimated" if index.basis is None else "replayed"
        scores = attributor.scores(queries, "best")
        chosen = torch.tensor([rows[example_id] for example_id in change.example_ids])
        return Estimate(-scores[:, chosen].double().sum(1), tier, "rows of the index")
    by_id = {example["example_id"]: example for example in train}
    before = [by_id[example_id] for example_id in change.example_ids]
    after = [one for one in (change.replacements[name] for name in change.example_ids) if one is not None]
    difference = _summed(attributor, after, "loss") - _summed(attributor, before, "loss")
    phi = _encoded(attributor, queries, "measurement").double()
    eigenvalues = index.encoder.eigenvalues.double().cpu()
    recorded = None if run is None else _damping_of(run)
    step = (
        difference / (eigenvalues + (index.manifest.damping or recorded or heuristic_damping(eigenvalues))) / len(index)
    )
    return Estimate(-(phi @ step), "estimated", "difference of gradients at the final weights")


def _damping_of(run: Run) -> float | None:
    optimizer = run.manifest["optimizer"]
    momentum = float(optimizer.get("momentum", 0.0)) if optimizer["type"] == "sgd" else 0.0
    return recorded_damping(run.learning_rates * run.clip_factors.nan_to_num(1.0), momentum=momentum)


def _summed(attributor: Attributor, examples: Sequence[Example], what: str) -> Tensor:
    return _encoded(attributor, examples, what).double().sum(0)


def _encoded(attributor: Attributor, examples: Sequence[Example], what: str) -> Tensor:
    """Gradients of losses or measurements in the index's coordinates, ``[B, k]``."""
    task, parts = attributor.task, []
    for start in range(0, len(examples), _BATCH):
        batch = to_device(task.collate(examples[start : start + _BATCH]), attributor.device)
        with tracing(attributor.model, task, attributor.tracked.layers, batch) as trace:
            scalar = task.loss if what == "loss" else task.measurement
            gradients = trace.layer_gradients(scalar(trace.outputs, trace.batch))
        parts.append(attributor.index.encoder.encode(gradients).cpu())
    return torch.cat(parts)
