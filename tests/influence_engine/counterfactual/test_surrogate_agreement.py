"""A model agrees with itself wholly, with a surrogate for the most part, and the comparison changes neither model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from influence_engine.counterfactual import Agreement, agreement
from influence_engine.errors import DataError
from influence_engine.training import FinetuneSettings, finetune


def test_agreement_is_whole_with_itself_and_less_with_another(
    task: Any, make_model: Callable[..., nn.Module], make_examples: Callable[..., Any]
) -> None:
    settings = FinetuneSettings(epochs=6, batch_size=8, learning_rate=5e-3)
    made = [
        finetune(task, make_model(), make_examples(40), settings=settings.model_copy(update={"seed": seed}))
        for seed in (1, 2)
    ]
    served_model, surrogate = (one.model.eval() for one in made)
    trained, held_out = made[1].trainable, make_examples(20, seed=7)
    before = {name: (tensor.clone(), tensor.requires_grad) for name, tensor in served_model.named_parameters()}

    same = agreement(served_model, served_model, task, held_out, trained)
    assert (same.examples, same.labels) == (20, 1.0)
    assert same.logits == pytest.approx(1.0)
    assert same.gradients == pytest.approx(1.0, abs=1e-4)
    other = agreement(served_model, surrogate, task, held_out, trained)
    untrained = agreement(served_model, make_model(seed=5).eval(), task, held_out, trained)
    assert other.gradients is not None
    assert untrained.gradients is not None
    assert untrained.logits < other.logits < 1.0
    assert untrained.gradients < other.gradients < 1.0
    assert other.to_dict()["summary"] == other.summary
    assert f"{other.labels:.1%}" in other.summary
    after = {name: (tensor, tensor.requires_grad) for name, tensor in served_model.named_parameters()}
    assert all(torch.equal(before[name][0], after[name][0]) for name in before)
    assert all(before[name][1] == after[name][1] for name in before)

    assert agreement(served_model, surrogate, task, held_out, ["another.weight"]).gradients is None
    with pytest.raises(DataError, match="no held-out examples"):
        agreement(served_model, surrogate, task, [], trained)


@pytest.mark.parametrize(
    ("labels", "logits", "unusable", "untrusted"),
    [
        (0.317, -0.06, "the commonest label alone is right for 41.7%", "commonest label"),
        (0.5, 0.1, "correlation of 0.10", "correlation of 0.10"),
        (0.5, float("nan"), "correlation of nan", "correlation of nan"),
        (0.5, 0.4, None, "correlation of 0.40"),
        (0.75, 0.7, None, None),
    ],
)
def test_a_surrogate_below_the_commonest_label_or_unrelated_is_named_unusable(
    labels: float, logits: float, unusable: str | None, untrusted: str | None
) -> None:
    found = Agreement(60, labels, logits, None, 0.417)

    for said, expected in ((found.unusable, unusable), (found.untrusted, untrusted)):
        assert (said is None) == (expected is None)
        assert expected is None or expected in (said or "")
    assert found.to_dict()["unusable"] == found.unusable
    assert repr(Agreement.of(found.to_dict())) == repr(found)
