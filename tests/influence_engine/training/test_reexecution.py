"""Executing the recorded steps again gives the recorded weights, and with other weights the other training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from influence_engine.errors import DataError, DigestMismatchError
from influence_engine.tasks import TextClassification
from influence_engine.training import FinetuneSettings, LoraSettings, Run, finetune, reexecute
from influence_engine.training.frozen_cache import FrozenCache

VARIANTS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "upper layer": {"trainable": 1},
    "adapters": {"trainable": "lora", "lora": LoraSettings(r=2)},
    "sgd": {"optimizer": "sgd", "learning_rate": 0.05},
    "dropout": {"dropout": 0.2},
    "accumulation and clipping": {"accumulation": 2, "max_grad_norm": 0.02},
    "cosine without clipping": {"schedule": "cosine", "max_grad_norm": None, "weight_decay": 0.0},
}


def settings_of(variant: str) -> FinetuneSettings:
    common = {"epochs": 2, "batch_size": 4, "learning_rate": 5e-3, "seed": 3}
    return FinetuneSettings.model_validate({**common, **VARIANTS[variant]})


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_recorded_steps_lead_to_the_recorded_weights_bit_for_bit(
    task: TextClassification,
    make_model: Callable[..., nn.Module],
    make_examples: Callable[..., Any],
    tmp_path: Path,
    variant: str,
) -> None:
    train = make_examples(18)
    finetune(task, make_model(dropout=0.1), train, settings=settings_of(variant), record_to=tmp_path)
    run = Run.open(tmp_path)

    found = reexecute(run, task, list(reversed(train)))

    recorded, _ = run.checkpoint(run.checkpoints[-1])
    assert list(found) == run.trainable
    assert all(torch.equal(found[name], recorded[name]) for name in found)
    model = run.load_model()
    assert all(torch.equal(found[name], model.get_parameter(name)) for name in found)


@pytest.mark.parametrize("variant", VARIANTS)
def test_leaving_examples_out_of_the_record_is_fine_tuning_without_them(
    task: TextClassification,
    make_model: Callable[..., nn.Module],
    make_examples: Callable[..., Any],
    tmp_path: Path,
    variant: str,
) -> None:
    train, out = make_examples(18), {"0-2": 0.0, "0-9": 0.0}
    run = finetune(task, make_model(), train, settings=settings_of(variant), record_to=tmp_path)
    without = finetune(task, make_model(), train, settings=settings_of(variant), weights=out)

    cache = FrozenCache()
    reexecute(run, task, train, frozen_cache=cache)
    # With frozen layers from the execution before, and computed anew.
    for found in (
        reexecute(run, task, train, weights=out, frozen_cache=cache),
        reexecute(run, task, train, weights=out),
    ):
        assert all(torch.equal(found[name], without.model.get_parameter(name)) for name in without.trainable)


def test_frozen_layers_run_once_for_all_executions_of_a_run(
    task: TextClassification, make_model: Callable[..., nn.Module], make_examples: Callable[..., Any], tmp_path: Path
) -> None:
    train = make_examples(18)
    run = finetune(task, make_model(), train, settings=settings_of("upper layer"), record_to=tmp_path)
    cache, little = FrozenCache(), FrozenCache(max_bytes=1)
    reexecute(run, task, train, frozen_cache=cache)
    reexecute(run, task, train, frozen_cache=little)
    assert cache.bytes > 0
    assert little.bytes == 0
    before = cache.bytes
    reexecute(run, task, train, frozen_cache=cache)
    assert cache.bytes == before


def test_a_record_of_a_weighted_run_remembers_its_weights(
    task: TextClassification, make_model: Callable[..., nn.Module], make_examples: Callable[..., Any], tmp_path: Path
) -> None:
    train, weights = make_examples(10), {"0-2": 0.0, "0-9": 0.5, "0-1": 1.0}
    settings = settings_of("all weights")
    run = finetune(task, make_model(), train, settings=settings, weights=weights, record_to=tmp_path)
    recorded, _ = run.checkpoint(run.checkpoints[-1])

    assert run.weights == {"0-2": 0.0, "0-9": 0.5}
    again, all_in = reexecute(run, task, train), reexecute(run, task, train, weights={})
    assert all(torch.equal(again[name], recorded[name]) for name in recorded)
    assert any(not torch.equal(all_in[name], recorded[name]) for name in recorded)


def test_other_data_or_another_task_is_refused(
    task: TextClassification, make_model: Callable[..., nn.Module], make_examples: Callable[..., Any], tmp_path: Path
) -> None:
    train = make_examples(10)
    run = finetune(task, make_model(), train, settings=settings_of("all weights"), record_to=tmp_path)

    relabelled = [dict(example) for example in train]
    relabelled[4]["label"] = {"negative": "positive", "positive": "negative"}[relabelled[4]["label"]]
    for other in (relabelled, train[:-1], [*train, *make_examples(1, seed=1)]):
        with pytest.raises(DigestMismatchError, match="the data given is not that of the run"):
            reexecute(run, task, other)
    with pytest.raises(DigestMismatchError, match="the task given"):
        reexecute(run, TextClassification(task.tokenizer, task.labels, max_length=4), train)
    with pytest.raises(DataError, match="'nobody', which is not in the training data"):
        reexecute(run, task, train, weights={"nobody": 0.0})


def test_progress_counts_the_steps(
    task: TextClassification, make_model: Callable[..., nn.Module], make_examples: Callable[..., Any], tmp_path: Path
) -> None:
    train, seen = make_examples(10), []
    run = finetune(task, make_model(), train, settings=settings_of("all weights"), record_to=tmp_path)

    def note(stage: str, done: int, total: int, note: str = "") -> None:
        seen.append((stage, done, total))

    reexecute(run, task, train, progress=note)

    assert seen == [("executing the recorded steps", done, 6) for done in range(1, 7)]
