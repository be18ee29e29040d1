"""Promise: what a query names is explained; what it does not name is chosen once, or refused, never guessed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from influence_engine.errors import InputError
from influence_engine.tasks import aim, choose_targets, measured_gradient, targets_of, without_targets


class Bare:
    """A task that says nothing of itself."""

    def collate(self, examples: Any) -> Any:
        return {"x": torch.tensor([len(example["text"]) for example in examples])}

    def measurement(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        return (outputs * batch["weights"]).flatten(1).sum(1)


class Named(Bare):
    labels = ("no", "yes")


def test_one_label_a_row_is_what_the_query_names_or_the_model_predicts() -> None:
    outputs = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 0.0]])
    batch = {"labels": torch.tensor([-1, -1, 1])}
    chosen = choose_targets(Bare(), outputs, batch)  # type: ignore[arg-type]
    assert chosen["labels"].tolist() == [0, 1, 1]
    assert targets_of(Named(), chosen) == ["no", "yes", "yes"]  # type: ignore[arg-type]
    assert targets_of(Bare(), chosen) == [None] * 3  # type: ignore[arg-type]


def test_labels_by_position_are_filled_where_none_is_named_and_left_where_there_is_nothing_to_say() -> None:
    outputs = torch.tensor([[[2.0, 1.0], [0.0, 3.0], [5.0, 0.0]]])
    chosen = choose_targets(Bare(), outputs, {"labels": torch.tensor([[-1, -1, -100]])})  # type: ignore[arg-type]
    assert chosen["labels"].tolist() == [[0, 1, -100]]


def test_a_query_by_position_that_names_nothing_is_refused() -> None:
    outputs = torch.zeros(2, 3, 4)
    batch = {"labels": torch.tensor([[0, -100, -100], [-100, -100, -100]])}
    with pytest.raises(InputError, match="query 1 names no target, and Bare has no choose_targets") as refused:
        choose_targets(Bare(), outputs, batch)  # type: ignore[arg-type]
    assert refused.value.field == "target"


@pytest.mark.parametrize(
    "labels", [torch.tensor([[-1.5], [2.0]]), torch.tensor([[1, 0, 1], [0, 0, -1]])], ids=["numbers", "several a row"]
)
def test_negative_numbers_of_another_meaning_are_left_alone(labels: torch.Tensor) -> None:
    outputs = torch.zeros(2, labels.shape[1])
    chosen = choose_targets(Bare(), outputs, {"labels": labels})  # type: ignore[arg-type]
    assert torch.equal(chosen["labels"], labels)


def test_a_measurement_that_does_not_depend_on_the_outputs_is_refused() -> None:
    outputs = torch.ones(2, 3, requires_grad=True) * 2
    batch = {"weights": torch.tensor([[1.0, 0, 0], [0, 0, 0]])}
    with pytest.raises(InputError, match="query 1 cannot be measured") as refused:
        measured_gradient(Bare(), outputs, batch)  # type: ignore[arg-type]
    assert refused.value.field == "target"


def test_a_named_target_goes_into_the_field_that_training_teaches() -> None:
    example = {"text": "a"}
    assert aim(Named(), example, "yes") == {"text": "a", "label": "yes"}
    assert aim(Named(), example, {"label": "no"}) == {"text": "a", "label": "no"}
    assert without_targets(Named(), [{"text": "a", "label": "no"}]) == [example]
    with pytest.raises(InputError, match="unknown label 'perhaps'; the labels are 'no', 'yes'"):
        aim(Named(), example, "perhaps")
    with pytest.raises(InputError, match="Bare has no target to name"):
        aim(Bare(), example, "yes")
