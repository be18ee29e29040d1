"""What the Trainer of transformers does that cannot be executed again: it trains all the same, the record says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer

from influence_engine.errors import RecordError
from influence_engine.models.loading import model_digest
from influence_engine.training import reexecute
from influence_engine.training.optimizers import SmoothAdamW
from tests.influence_engine.training.trainer.trainer_runs import Recorded


def test_a_plain_trainer_with_dropout_and_bf16_trains_and_the_record_says_why_it_cannot_be_replayed(
    recorded: Recorded, make_model: Callable[..., nn.Module]
) -> None:
    model = make_model(dropout=0.1)
    before = model_digest(model)

    run = recorded(model, optimizer=None, bf16=True, gradient_accumulation_steps=2)

    assert not run.replayable
    assert run.why_not_replayable is not None
    for reason in ("bf16", "dropout without recorded seeds", "epsilon outside the root"):
        assert reason in run.why_not_replayable
    assert before != model_digest(model) == run.digests["model"] == model_digest(run.load_model())
    assert len(run.schedule) == 6
    assert run.schedule.normalizers.tolist() == [4, 4, 1, 4, 4, 1]
    moments = run.second_moments()
    assert moments is not None
    assert bool((moments["classifier.weight"] > 0).all())
    assert run.epsilon == 1e-8
    with pytest.raises(RecordError, match=r"cannot be executed again: .*bf16"):
        reexecute(run, recorded.task, recorded.examples)


class OtherLoss(Trainer):
    """A Trainer whose loss is not the task's."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        result = super().compute_loss(*args, **kwargs)
        return (result[0] ** 2, result[1]) if isinstance(result, tuple) else result**2


def adamax(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adamax(model.parameters(), lr=1e-3)


def nesterov(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)


def two_rates(model: nn.Module) -> torch.optim.Optimizer:
    first, *rest = model.parameters()
    return SmoothAdamW([{"params": [first], "lr": 1e-3}, {"params": rest, "lr": 1e-2}])


def only_some(model: nn.Module) -> torch.optim.Optimizer:
    return SmoothAdamW(list(model.parameters())[:-1])


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        ({"attn_implementation": "sdpa"}, {}, "attention is 'sdpa'"),
        ({}, {"label_smoothing_factor": 0.1}, "label smoothing"),
        ({}, {"trainer_class": OtherLoss}, "the Trainer's loss is not the task's"),
        ({}, {"optimizer": adamax}, "the optimiser is Adamax"),
        ({}, {"optimizer": nesterov}, "only plain momentum"),
        ({}, {"optimizer": two_rates}, "different learning rates"),
        ({}, {"optimizer": only_some}, "not in the optimiser"),
        ({"classifier_dropout": 0.3, "dropout": 0.1}, {"dropout_seed": 1}, "dropout differs"),
    ],
)
def test_what_cannot_be_replayed_says_why(
    recorded: Recorded,
    make_model: Callable[..., nn.Module],
    model: dict[str, Any],
    options: dict[str, Any],
    reason: str,
) -> None:
    made = make_model(**model)
    optimizer = options.pop("optimizer", "smooth")
    run = recorded(made, optimizer=optimizer(made) if callable(optimizer) else optimizer, max_steps=2, **options)

    assert not run.replayable
    assert run.why_not_replayable is not None
    assert reason in run.why_not_replayable
    assert run.digests["model"] == model_digest(made)


def test_the_best_model_loaded_at_the_end_is_not_where_the_steps_lead(
    recorded: Recorded, make_model: Callable[..., nn.Module]
) -> None:
    model = make_model()
    run = recorded(
        model, eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, save_only_model=True
    )

    assert run.why_not_replayable is not None
    assert "load_best_model_at_end" in run.why_not_replayable
    assert run.digests["model"] == model_digest(model)
