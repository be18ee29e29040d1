"""Promises: what is measured is what training again does; interrupted ones go on to the same bits and never twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from influence_engine.counterfactual import Change, editing, measure, members, relabelling, removal
from influence_engine.errors import DataError, DigestMismatchError, InputError, SettingsError
from influence_engine.training import FinetuneSettings, Run, finetune, reexecute
from influence_engine.training.retraining_cache import RetrainingCheckpoint

OTHER = {"negative": "positive", "positive": "negative"}
SETTINGS = FinetuneSettings(epochs=2, batch_size=4, learning_rate=5e-3, seed=3)


@pytest.fixture
def train(make_examples: Callable[..., Any]) -> list[dict[str, Any]]:
    return make_examples(18)


@pytest.fixture
def run(task: Any, make_model: Callable[..., nn.Module], train: Any, tmp_path: Path) -> Run:
    return finetune(task, make_model(), train, settings=SETTINGS, record_to=tmp_path / "run")


def changed_data(change: Change, train: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [dict(change.replacements.get(one["example_id"]) or one) for one in train]


@pytest.mark.parametrize("kind", ["remove", "relabel", "edit"])
@pytest.mark.parametrize("settings", [{}, {"trainable": 1}, {"dropout": 0.2}, {"accumulation": 2}], ids=str)
def test_what_is_measured_is_what_fine_tuning_on_the_changed_data_gives(
    task: Any,
    make_model: Callable[..., nn.Module],
    train: Any,
    make_examples: Callable[..., Any],
    tmp_path: Path,
    kind: str,
    settings: dict[str, Any],
) -> None:
    chosen = SETTINGS.model_copy(update=settings)
    run = finetune(task, make_model(), train, settings=chosen, record_to=tmp_path / "run")
    ids = [train[2]["example_id"], train[9]["example_id"]]
    # Of the same length: fine-tuning puts examples of like length into a micro-batch.
    text = " ".join(["very", *train[9]["text"].split()[1:-1], "dull"])
    change = {
        "remove": lambda: removal(ids),
        "relabel": lambda: relabelling(task, train, {train[2]["example_id"]: OTHER[train[2]["label"]]}),
        "edit": lambda: editing(task, train, {train[9]["example_id"]: text}),
    }[kind]()
    queries = [{"text": one["text"]} for one in make_examples(6, seed=1)]

    found = measure(run, task, train, queries, change, keep_in=tmp_path / "kept")

    weights = dict.fromkeys(change.removed, 0.0)
    # The same order of ids: fine-tuning draws its order by row.
    other = finetune(task, make_model(), changed_data(change, train), settings=chosen, weights=weights).model.eval()
    model = run.load_model()
    with torch.no_grad():
        batch = dict(task.collate(queries))
        before = model(**task.model_inputs(batch)).logits
        batch["labels"] = before.argmax(-1)
        expected = [task.measurement(other(**task.model_inputs(batch)).logits, batch), task.measurement(before, batch)]
    assert [one.after for one in found.queries] == pytest.approx(expected[0].tolist(), abs=1e-6)
    assert [one.before for one in found.queries] == pytest.approx(expected[1].tolist(), abs=1e-6)
    assert found.control_gap == 0.0
    assert found.changed_examples == len(change.replacements)
    assert any(one.measured != 0 for one in found.queries)


def test_a_change_is_predicted_and_measured_side_by_side(task: Any, run: Run, train: Any, tmp_path: Path) -> None:
    predicted = {"estimated": torch.tensor([0.5, 0.0])}
    queries = [{"text": "a good film", "label": "negative"}, {"text": "a dull plot"}]
    found = measure(run, task, train, queries, removal(["0-1"]), predicted=predicted, keep_in=tmp_path)

    first, second = found.queries
    assert (first.target, second.target) == ("negative", second.label_before)
    assert first.measured == pytest.approx(first.after - first.before)
    assert first.ratio["estimated"] == pytest.approx(first.measured / 0.5)
    assert second.ratio["estimated"] is None
    assert first.probability_after == pytest.approx(1 / (1 + torch.tensor(-first.after).exp().item()))
    assert first.flipped is (first.label_before != first.label_after)
    assert found.to_dict()["queries"][0]["target"] == "negative"


class KilledError(Exception):
    pass


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_an_interrupted_retraining_goes_on_to_the_same_bits_and_a_finished_one_is_not_done_again(
    task: Any, make_model: Callable[..., nn.Module], train: Any, tmp_path: Path, dropout: float
) -> None:
    settings = SETTINGS.model_copy(update={"dropout": dropout})
    run = finetune(task, make_model(), train, settings=settings, record_to=tmp_path / "run")
    whole = reexecute(run, task, train, weights={"0-2": 0.0})
    seen: list[int] = []

    def stop_at_6(_: str, done: int, total: int, note: str = "") -> None:
        if done == 6:
            raise KilledError

    def count(_: str, done: int, total: int, note: str = "") -> None:
        seen.append(done)

    options: dict[str, Any] = {"weights": {"0-2": 0.0}, "keep_in": tmp_path / "kept", "save_every_s": 0.0}
    with pytest.raises(KilledError):
        reexecute(run, task, train, **options, progress=stop_at_6)
    found = reexecute(run, task, train, **options, progress=count)
    assert seen == [6, 7, 8, 9, 10]
    assert all(torch.equal(found[name], whole[name]) for name in whole)

    seen.clear()
    again = reexecute(run, task, train, **options, progress=count)
    assert seen == [10]
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_a_damaged_file_of_a_retraining_is_done_again(task: Any, run: Run, train: Any, tmp_path: Path) -> None:
    first = reexecute(run, task, train, weights={"0-2": 0.0}, keep_in=tmp_path / "kept")
    (file,) = (tmp_path / "kept").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    key = file.stem.removeprefix("retraining-")
    assert RetrainingCheckpoint(tmp_path / "kept", key).read(torch.device("cpu")) is None
    again = reexecute(run, task, train, weights={"0-2": 0.0}, keep_in=tmp_path / "kept")
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_steps_that_do_not_come_out_as_recorded_before_the_change_are_refused(
    task: Any, run: Run, train: Any, make_model: Callable[..., nn.Module]
) -> None:
    last = run.example_ids[int(run.schedule.step(5).rows[0][-1])]  # of the first epoch's last step
    reexecute(run, task, train, weights={last: 0.0})
    run.losses[1] += 0.1
    with pytest.raises(DigestMismatchError, match=r"step 2 of the run .* does not come out as recorded"):
        reexecute(run, task, train, weights={last: 0.0})
    first = run.example_ids[int(run.schedule.step(1).rows[0][0])]
    reexecute(run, task, train, weights={first: 0.0})  # changed from the first step on: nothing to compare


def test_a_change_that_cannot_be_made_is_refused_with_what_would_be_right(task: Any, train: Any, run: Run) -> None:
    label = train[0]["label"]
    with pytest.raises(DataError, match="is already what it was to become"):
        relabelling(task, train, {"0-0": label})
    with pytest.raises(InputError, match="unknown label 'fine'; the labels are 'negative', 'positive'"):
        relabelling(task, train, {"0-0": "fine"})
    with pytest.raises(DataError, match="no training example 'nobody'"):
        editing(task, train, {"nobody": "a film"})
    with pytest.raises(InputError, match="is empty"):
        editing(task, train, {"0-0": "  "})
    with pytest.raises(SettingsError, match="name at least one"):
        removal([])
    with pytest.raises(DataError, match="'nobody' is to be replaced"):
        reexecute(run, task, train, replaced={"nobody": train[0]})
    with pytest.raises(DataError, match="'nobody', which is not in the training data"):
        reexecute(run, task, train, weights={"nobody": 0.0})


def test_a_group_is_every_example_with_that_value_in_that_column(train: Any) -> None:
    for number, one in enumerate(train):
        one["source"] = f"site-{number % 3}"
    assert members(train, "source", "site-1") == [one["example_id"] for one in train[1::3]]
    assert members(train, "label", "negative") == [o["example_id"] for o in train if o["label"] == "negative"]
    with pytest.raises(SettingsError, match="no training example has the source 'x'; there is site-0, site-1, site-2"):
        members(train, "source", "x")
    with pytest.raises(SettingsError, match="no training example has a 'author'; they have example_id, label, source"):
        members(train, "author", "x")
