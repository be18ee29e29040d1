"""Measurements of the same targets on several models: those of one model's predictions, not of each model's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from influence_engine.resources import to_device
from influence_engine.tasks import (
    Example,
    Target,
    Task,
    predictions_of,
    probabilities_of,
    targets_of,
    with_targets,
)

_BATCH = 32


class Queries:
    """Queries whose targets are fixed: where one names none, its target is what ``model`` predicts.

    Args:
        model: The recorded model, in evaluation mode.
        task: The model's task.
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
    def targets(self) -> list[Target | None]:
        """The targets that are measured, as the task names them."""
        return [target for batch in self._batches for target in targets_of(self.task, batch)]

    def measured(self, model: nn.Module) -> tuple[Tensor, list[dict[str, Any] | None]]:
        """Measurements ``[Q]`` in double precision, and predictions where the task can say them."""
        model.eval()
        parts: list[Tensor] = []
        predictions: list[dict[str, Any] | None] = []
        with torch.no_grad():
            for batch in self._batches:
                outputs = self.task.outputs(model, batch)
                parts.append(self.task.measurement(outputs, batch).double().cpu())
                predictions += predictions_of(self.task, outputs, batch)
        return torch.cat(parts), predictions


def probability(task: Task, measurement: float) -> float | None:
    """The probability that a measurement stands for; ``None`` where the task says none."""
    value = probabilities_of(task, torch.tensor(measurement, dtype=torch.float64))
    return None if value is None else float(value)
