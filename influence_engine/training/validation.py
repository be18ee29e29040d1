"""Loss and accuracy of a model on examples that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from influence_engine.progress import Progress, silent
from influence_engine.tasks import Example, Task, is_right, predictions_of, predicts_labels

BATCH = 64
"""Examples in one forward pass."""


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
    labelling = predicts_labels(task)
    with torch.no_grad():
        for start in range(0, len(examples), BATCH):
            chunk = [examples[row] for row in range(start, min(start + BATCH, len(examples)))]
            batch = {name: tensor.to(device) for name, tensor in task.collate(chunk).items()}
            outputs = task.outputs(model, batch)
            loss += float(task.loss(outputs, batch).double().sum())
            if labelling:
                predicted = predictions_of(task, outputs, batch)
                right += sum(is_right(task, found, example) for found, example in zip(predicted, chunk, strict=True))
            progress("validation", min(start + BATCH, len(examples)), len(examples))
    measured = {"examples": float(len(examples)), "loss": loss / len(examples)}
    return measured | {"accuracy": right / len(examples)} if labelling else measured
