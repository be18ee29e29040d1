"""Loss and accuracy of a model on labelled examples that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from influence_engine.progress import Progress, silent
from influence_engine.tasks import Example, PredictingTask, Task

BATCH = 64
"""Examples in one forward pass."""


@runtime_checkable
class LabellingTask(PredictingTask, Protocol):
    """A task that predicts one label and names the field of an example that holds the true one."""

    label: str


def validate(
    task: Task, model: nn.Module, examples: Sequence[Example], progress: Progress = silent
) -> dict[str, float]:
    """Measures a model on labelled examples and leaves it in evaluation mode.

    Returns:
        ``examples``, their number; their mean ``loss``; and, where the task predicts labels, ``accuracy``.
    """
    model.eval()
    device = next(model.parameters()).device
    loss, right = 0.0, 0
    labelling = isinstance(task, LabellingTask)
    with torch.no_grad():
        for start in range(0, len(examples), BATCH):
            chunk = [examples[row] for row in range(start, min(start + BATCH, len(examples)))]
            batch = {name: tensor.to(device) for name, tensor in task.collate(chunk).items()}
            outputs = task.outputs(model, batch)
            loss += float(task.loss(outputs, batch).double().sum())
            if isinstance(task, LabellingTask):
                predicted = task.predictions(outputs, batch)
                right += sum(
                    found["label"] == example[task.label] for found, example in zip(predicted, chunk, strict=True)
                )
            progress("validation", min(start + BATCH, len(examples)), len(examples))
    measured = {"examples": float(len(examples)), "loss": loss / len(examples)}
    return measured | {"accuracy": right / len(examples)} if labelling else measured
