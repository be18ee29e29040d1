"""Promise: what fine-tuning returns can be used in the same way with a record and without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from influence_engine.models.loading import model_digest
from influence_engine.tasks import TextClassification
from influence_engine.training import Finetuned, FinetuneSettings, FinetuningResult, Run, finetune
from tests.influence_engine.vectors import make_network

SETTINGS = FinetuneSettings(trainable=1, epochs=2, batch_size=4, learning_rate=5e-3)


def summary(result: FinetuningResult) -> dict[str, Any]:
    """By the members of the protocol alone."""
    model = result.load_model()
    return {
        "trainable": result.trainable,
        "losses": (result.losses.dtype, result.losses.tolist()),
        "learning_rates": (result.learning_rates.dtype, result.learning_rates.tolist()),
        "validation": result.validation,
        "model": model_digest(model),
        "mode": model.training,
        "requires_grad": [name for name, parameter in model.named_parameters() if parameter.requires_grad],
    }


def test_a_run_and_an_unrecorded_result_say_the_same(
    task: TextClassification, make_model: Callable[..., nn.Module], make_examples: Callable[..., Any], tmp_path: Path
) -> None:
    train, validation = make_examples(12), make_examples(4, seed=1)
    results: list[FinetuningResult] = [
        finetune(task, make_model(), train, validation, SETTINGS, record_to=folder) for folder in (None, tmp_path)
    ]

    assert [type(result) for result in results] == [Finetuned, Run]
    assert all(isinstance(result, FinetuningResult) for result in results)
    assert summary(results[0]) == summary(results[1])
    assert summary(results[1])["requires_grad"] == results[1].trainable


def test_a_module_of_ones_own_is_filled_by_either(vector_task: Any, vector_train: Any, tmp_path: Path) -> None:
    settings = FinetuneSettings(trainable=["3"], epochs=1, learning_rate=0.01)
    results: list[FinetuningResult] = [
        finetune(vector_task, make_network(), vector_train, settings=settings, record_to=folder)
        for folder in (None, tmp_path)
    ]

    filled = [result.load_model(make_network(seed=5)) for result in results]

    assert model_digest(filled[0]) == model_digest(filled[1]) == model_digest(results[0].load_model())
    for model in filled:
        assert not model.training
        assert [name for name, one in model.named_parameters() if one.requires_grad] == ["3.weight", "3.bias"]
    assert torch.equal(results[0].losses, results[1].losses)


def test_an_unknown_option_is_refused_with_the_known_ones(vector_task: Any, vector_train: Any) -> None:
    unknown: dict[str, Any] = {"devise": "cpu"}
    with pytest.raises(TypeError, match=r"finetune\(\) got an unexpected keyword argument 'devise'.*record_to.*device"):
        finetune(vector_task, make_network(), vector_train, **unknown)
