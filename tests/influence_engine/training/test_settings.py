"""Settings refuse what cannot be trained, and say where and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from influence_engine.training import FinetuneSettings


@pytest.mark.parametrize("value", ["upper", "2", 0, -1, True, 2.5, [2], [], ["head", ""], ["head", 2], None])
def test_an_unknown_choice_of_weights_is_one_error_that_names_the_choices(value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        FinetuneSettings(trainable=value)

    (error,) = caught.value.errors()
    assert error["loc"] == ("trainable",)
    assert "'all', 'lora', or a number of upper layers" in error["msg"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("accumulation", 0),
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("schedule", "step"),
        ("warmup_ratio", 1.0),
        ("optimizer", "lion"),
        ("momentum", 1.0),
        ("betas", (0.9, 1.0)),
        ("epsilon", 0),
        ("weight_decay", -0.1),
        ("max_grad_norm", 0),
        ("dropout", 1.0),
        ("seed", -1),
        ("checkpoints", 0),
        ("lora", {"r": 0}),
        ("lora", {"rank": 4}),
        ("lora", {"target_modules": []}),
        ("learning_rates", 1e-4),
    ],
)
def test_a_value_out_of_range_or_an_unknown_key_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        FinetuneSettings.model_validate({key: value})

    assert caught.value.errors()[0]["loc"][0] == key


@pytest.mark.parametrize("trainable", ["all", "lora", 2, ["classifier", "bert.encoder.layer.5.*"]])
def test_settings_survive_json(trainable: Any) -> None:
    settings = FinetuneSettings(trainable=trainable, betas=(0.8, 0.99), max_grad_norm=None)

    assert FinetuneSettings.model_validate_json(settings.model_dump_json()) == settings
