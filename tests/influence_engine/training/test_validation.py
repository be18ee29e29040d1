"""Held-out examples are measured one by one, whatever the batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from influence_engine.tasks import TextClassification
from influence_engine.training.validation import validate


def test_loss_and_accuracy_are_means_over_examples(
    task: TextClassification, make_model: Callable[..., nn.Module], make_examples: Callable[..., Any]
) -> None:
    model, examples = make_model().train(), make_examples(70)

    found = validate(task, model, examples)

    assert not model.training
    losses, right = [], 0
    for example in examples:
        batch = task.collate([example])
        outputs = task.outputs(model, batch)
        losses.append(float(task.loss(outputs, batch).detach()))
        right += task.predictions(outputs, batch)[0]["label"] == example["label"]
    assert found == {
        "examples": 70,
        "loss": pytest.approx(sum(losses) / 70, rel=1e-5),
        "accuracy": right / 70,
    }


def test_a_task_that_predicts_no_labels_has_a_loss_only(
    task: TextClassification, make_model: Callable[..., nn.Module], make_examples: Callable[..., Any]
) -> None:
    class Unlabelled:
        collate, outputs, loss, measurement = task.collate, task.outputs, task.loss, task.measurement

    assert set(validate(Unlabelled(), make_model(), make_examples(3))) == {"examples", "loss"}
