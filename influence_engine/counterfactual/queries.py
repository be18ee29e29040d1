"""Measurements of queries on models that differ: of one model's prediction, not of each model's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from influence_engine.resources import to_device
from influence_engine.tasks import Batch, Example, PredictingTask, Task, with_predicted_targets

_BATCH = 32


def with_targets(task: Task, model: nn.Module, batch: Batch) -> Batch:
    """The batch with the model's own prediction as the target where a query names none."""
    labels = batch.get("labels")
    if labels is None or labels.dim() != 1 or not bool((labels < 0).any()):
        return batch
    with torch.no_grad():
        return with_predicted_targets(batch, task.outputs(model, batch))


class Queries:
    """Queries whose targets are fixed: where one names none, it is what ``model`` predicts.

    Args:
        model: The recorded model, in evaluation mode.
        task: Its task.
        queries: What is measured.
    """

    def __init__(self, model: nn.Module, task: Task, queries: Sequence[Example]) -> None:
        device = next(model.parameters()).device
        self.task = task
        self._batches = [
            with_targets(task, model, to_device(task.collate(queries[start : start + _BATCH]), device))
            for start in range(0, len(queries), _BATCH)
        ]

    @property
    def targets(self) -> list[str | None]:
        """The labels that are measured, where the task has labels."""
        names = getattr(self.task, "labels", None)
        found: list[str | None] = []
        for batch in self._batches:
            labels = batch.get("labels")
            known = names is not None and labels is not None and labels.dim() == 1
            count = len(next(iter(batch.values())))
            found += [str(names[int(one)]) for one in labels] if known else [None] * count  # type: ignore[index,union-attr]
        return found

    def measured(self, model: nn.Module) -> tuple[Tensor, list[dict[str, Any] | None]]:
        """Measurements ``[Q]`` in double precision, and predictions where the task can say them."""
        model.eval()
        parts: list[Tensor] = []
        predictions: list[dict[str, Any] | None] = []
        with torch.no_grad():
            for batch in self._batches:
                outputs = self.task.outputs(model, batch)
                parts.append(self.task.measurement(outputs, batch).double().cpu())
                if isinstance(self.task, PredictingTask):
                    predictions += self.task.predictions(outputs, batch)
                else:
                    predictions += [None] * len(parts[-1])
        return torch.cat(parts), predictions


def probability(measurement: float) -> float:
    """``sigma(f)``: the probability whose log-odds are ``f``."""
    return float(torch.sigmoid(torch.tensor(measurement, dtype=torch.float64)))


def label_of(prediction: Mapping[str, Any] | None) -> str | None:
    """The predicted label."""
    return None if prediction is None else str(prediction["label"])
