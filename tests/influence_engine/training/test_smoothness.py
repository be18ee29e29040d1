"""Promises: the advice names settings as they are called, and only those that would change something."""

from __future__ import annotations

from influence_engine.training import FinetuneSettings, LoraSettings
from influence_engine.training.smoothness import smoothness_advice


def test_a_short_warm_up_is_named_with_what_it_should_be() -> None:
    advice = smoothness_advice(FinetuneSettings(warmup_ratio=0.1, learning_rate=1e-4))

    assert advice == ("fine-tune with warmup_ratio 0.5 instead of 0.1; a learning_rate below 0.0001, or fewer epochs")


def test_a_long_one_is_not() -> None:
    assert "warmup_ratio" not in smoothness_advice(FinetuneSettings(warmup_ratio=0.5))


def test_adapters_of_a_small_scale_trade_it_for_learning_rate() -> None:
    few = FinetuneSettings(trainable="lora", warmup_ratio=0.5, lora=LoraSettings(r=8, alpha=16))

    assert "lora.alpha 128 instead of 16 and a learning_rate 8 times lower" in smoothness_advice(few)
    assert "alpha" not in smoothness_advice(few.model_copy(update={"lora": LoraSettings(r=8, alpha=128)}))
    assert "alpha" not in smoothness_advice(few.model_copy(update={"trainable": "all"}))


def test_a_run_of_another_trainer_gets_advice_without_numbers() -> None:
    assert smoothness_advice(None) == "fine-tune with a longer warm-up, a lower learning rate or fewer epochs"
