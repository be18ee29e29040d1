"""The fast way to predict means what the slow one means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch


def test_serving_inputs_are_those_of_a_batch(small_project: Any) -> None:
    task, examples = small_project.task, small_project.test
    batch = task.model_inputs(task.collate(examples))
    found = task.serving_inputs(examples)
    assert set(found) == set(batch)
    for name, array in found.items():
        assert array.dtype == batch[name].numpy().dtype
        np.testing.assert_array_equal(array, batch[name].numpy())


def test_serving_predictions_are_those_of_torch(small_project: Any) -> None:
    logits = torch.tensor([[1.0, -2.0], [0.0, 0.0], [-80.0, 90.0], [3e4, -3e4]])
    expected = small_project.task.predictions(logits, {})
    found = small_project.task.serving_predictions(logits.numpy())
    for one, other in zip(found, expected, strict=True):
        assert one["label"] == other["label"]
        assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-6)
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-6)
