"""Promise: what a query names is explained; what it does not name is chosen once, or refused, never guessed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from influence_engine.errors import InputError
from influence_engine.tasks import aim, choose_targets, measured_gradient, targets_of, with_targets, without_targets


class Bare:
    """A task that says nothing of itself."""

    def collate(self, examples: Any) -> Any:
        return {"x": torch.tensor([len(example["text"]) for example in examples])}

    def measurement(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        return (outputs * batch["weights"]).flatten(1).sum(1)


class Named(Bare):
    labels = ("no", "yes")

    def outputs(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return model(batch["x"])


class Aimed(Named):
    """Chooses among three targets of each row, without saying when."""

    def choose_targets(self, outputs: torch.Tensor, batch: Any) -> Any:
        return {**batch, "target": torch.where(batch["target"] < 0, outputs.argmax(-1), batch["target"])}

    def targets(self, batch: Any) -> Any:
        return [f"number {one}" for one in batch["target"].tolist()]

    def aim(self, example: Any, target: Any) -> Any:
        return {**example, "target": target}


class Choosing(Aimed):
    """And says when."""

    def needs_choice(self, batch: Any) -> torch.Tensor:
        return batch["target"] < 0


class Counted(nn.Linear):
    """Counts how often it runs."""

    def __init__(self) -> None:
        super().__init__(2, 3)
        self.calls = 0
        self.register_forward_hook(lambda *_: self._count())

    def _count(self) -> None:
        self.calls += 1


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


@pytest.mark.parametrize(
    ("task", "named", "runs"),
    [
        (Named(), {"labels": torch.tensor([0, 2])}, 0),
        (Named(), {"labels": torch.tensor([0, -1])}, 1),
        (Named(), {"labels": torch.tensor([[0, -100], [2, 1]])}, 0),
        (Named(), {"labels": torch.tensor([[0.5], [-1.0]])}, 0),
        (Named(), {}, 0),
        (Choosing(), {"target": torch.tensor([0, 2])}, 0),
        (Choosing(), {"target": torch.tensor([0, -1])}, 1),
        (Aimed(), {"target": torch.tensor([0, 2])}, 1),
    ],
    ids=["named", "one is not", "by position", "numbers", "no labels", "says named", "says one is not", "does not say"],
)
def test_the_model_runs_only_where_a_query_may_need_its_prediction(task: Any, named: Any, runs: int) -> None:
    model = Counted()
    batch = {"x": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), **named}
    expected = choose_targets(task, task.outputs(model, batch), batch)
    model.calls = 0

    found = with_targets(task, model, batch)

    assert model.calls == runs
    assert {name: one.tolist() for name, one in found.items()} == {name: one.tolist() for name, one in expected.items()}


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
