"""The fast way to predict means what the slow one means."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from influence_engine.tasks import TextClassification
from tests.small_models import LABELS, tokenizer_for


def test_serving_inputs_are_those_of_a_batch() -> None:
    texts = ["the film is good", "a very dull plot with a weak scene", "of nobody known", "warm " * 9]
    task = TextClassification(tokenizer_for(texts), LABELS, max_length=7)
    examples = [{"text": text} for text in texts]
    batch = task.model_inputs(task.collate(examples))
    found = task.serving_inputs(examples)
    assert set(found) == set(batch) >= {"input_ids", "attention_mask"}
    assert batch["input_ids"].shape == (4, 7)
    for name, array in found.items():
        assert array.dtype == batch[name].numpy().dtype
        np.testing.assert_array_equal(array, batch[name].numpy())


def test_serving_predictions_are_those_of_torch(task: TextClassification) -> None:
    logits = torch.tensor([[1.0, -2.0], [0.0, 0.0], [-80.0, 90.0], [3e4, -3e4]])
    expected = task.predictions(logits, {})
    found = task.serving_predictions(logits.numpy())
    for one, other in zip(found, expected, strict=True):
        assert one["label"] == other["label"]
        assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-6)
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-6)
