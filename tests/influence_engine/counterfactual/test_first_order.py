"""Promises: predictions of a change are its exact derivative, and agree with training again as far as it is linear."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from influence_engine import Attributor, InfluenceIndex
from influence_engine.attribution.build_replay_basis import measurement_directions
from influence_engine.counterfactual import (
    Change,
    editing,
    estimate,
    first_order,
    measure,
    relabelling,
    removal,
    train_on_one,
)
from influence_engine.errors import DataError, SettingsError
from influence_engine.replay import replay
from influence_engine.training import FinetuneSettings, LoraSettings, RecordedTraining, Run, finetune
from influence_engine.training.execution import collate_step
from influence_engine.training.step import training_step

OTHER = {"negative": "positive", "positive": "negative"}
VARIANTS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "upper layer": {"trainable": 1},
    "adapters": {"trainable": "lora", "lora": LoraSettings(r=2)},
    "sgd with momentum": {"optimizer": "sgd", "learning_rate": 0.05},
    "accumulation and clipping": {"accumulation": 2, "max_grad_norm": 0.02},
    "dropout with recorded seeds": {"dropout": 0.2},
}


def changed(task: Any, train: list[dict[str, Any]]) -> Change:
    """One example removed, one relabelled, one with another text."""
    ids = [one["example_id"] for one in train]
    relabelled = relabelling(task, train, {ids[3]: OTHER[train[3]["label"]]})
    edited = editing(task, train, {ids[7]: "the very dull and very sad scene"})
    return Change("edit", {ids[1]: None, **relabelled.replacements, **edited.replacements})


def whole_graph(run: Run, task: Any, train: Any, queries: Any, change: Change, at: float) -> Tensor:
    """The derivative with all steps in one autograd graph, both examples in every step."""
    training = RecordedTraining.load(run, task, train, device="cpu")
    model, own, rule, state = training.model, training.examples, training.update_rule(), training.initial_state()
    rows = {name: row for row, name in enumerate(run.example_ids)}
    examples = [*own, *change.replaced.values()]
    successor = {rows[name]: len(own) + number for number, name in enumerate(change.replaced)}
    share = torch.tensor(at, requires_grad=True)
    weights = torch.ones(len(examples))
    weights[len(own) :] = 0
    direction = torch.zeros(len(examples))
    direction[[rows[name] for name in change.example_ids]] = -1
    direction[len(own) :] = 1
    weights = weights + share * direction
    for step in run.schedule.steps():
        uses, shares = torch.cat(step.rows).tolist(), torch.cat(step.shares)
        more = [place for place, row in enumerate(uses) if row in successor]
        if more:
            added = torch.tensor([successor[uses[place]] for place in more])
            step = replace(step, rows=[*step.rows, added], shares=[*step.shares, shares[more]])
        batches = collate_step(task, examples, step, torch.device("cpu"))
        state = training_step(rule, step, batches, state, weights=weights, differentiable=True).state
    model.eval()
    outputs = torch.func.functional_call(model, state.parameters, (), task.model_inputs(task.collate(queries))).logits
    batch = dict(task.collate(queries))
    batch["labels"] = run.load_model()(**task.model_inputs(batch)).logits.argmax(-1)
    measured = task.measurement(outputs, batch)
    return torch.stack([torch.autograd.grad(one, share, retain_graph=True)[0] for one in measured])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_prediction_is_the_derivative_through_all_steps(
    task: Any,
    make_model: Callable[..., nn.Module],
    make_examples: Callable[..., Any],
    tmp_path: Path,
    variant: str,
) -> None:
    train, queries = make_examples(18), [{"text": one["text"]} for one in make_examples(4, seed=1)]
    common = {"epochs": 2, "batch_size": 4, "learning_rate": 5e-3, "seed": 3}
    chosen = FinetuneSettings.model_validate({**common, **VARIANTS[variant]})
    run = finetune(task, make_model(dropout=0.1), train, settings=chosen, record_to=tmp_path)
    change = changed(task, train)

    found = first_order(run, task, list(reversed(train)), queries, change, at=(0.3,))

    expected = whole_graph(run, task, train, queries, change, 0.3)
    assert torch.allclose(found.float(), expected, rtol=2e-3, atol=2e-4 * float(expected.abs().max()))
    assert float(expected.abs().max()) > 1e-4


@pytest.fixture(scope="module")
def gentle(
    task: Any, make_model: Callable[..., nn.Module], make_examples: Callable[..., Any], tmp_path_factory: Any
) -> Callable[[Any], dict[str, Any]]:
    """``gentle(trainable)``: a short training at a low rate, nearly linear in any single example."""
    made: dict[Any, dict[str, Any]] = {}

    def make(trainable: Any) -> dict[str, Any]:
        if trainable not in made:
            folder = tmp_path_factory.mktemp("gentle")
            train, queries = make_examples(40), make_examples(12, seed=1)
            chosen = FinetuneSettings(epochs=3, batch_size=8, learning_rate=1e-3, seed=3, trainable=trainable)
            run = finetune(task, make_model(), train, settings=chosen, record_to=folder / "run")
            index = InfluenceIndex.build_from_run(run, task, train, folder / "index")
            attributor = Attributor(run.load_model(), task, index, device="cpu")
            made[trainable] = {
                "run": run,
                "train": train,
                "queries": queries,
                "attributor": attributor,
                "kept": folder / "kept",
            }
        return made[trainable]

    return make


def cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=0))


@pytest.mark.parametrize(
    ("kind", "trainable", "exact_at_least", "estimated_at_least"),
    [
        ("remove", "all", 0.97, 0.9),
        ("relabel", "all", 0.97, 0.95),
        ("relabel", 2, 0.97, 0.95),
        ("edit", 2, 0.97, 0.8),
        # Embeddings of words that no other example has: a jump for the one, and no metric in the index for the other.
        ("edit", "all", 0.85, None),
    ],
)
def test_predictions_agree_with_training_again_where_training_is_gentle(
    task: Any, gentle: Any, kind: str, trainable: Any, exact_at_least: float, estimated_at_least: float | None
) -> None:
    made = gentle(trainable)
    run, train, queries = made["run"], made["train"], made["queries"]
    exact, estimated, measured = [], [], []
    for place in (0, 5, 11):
        name, label = train[place]["example_id"], train[place]["label"]
        change = {
            "remove": lambda name=name: removal([name]),
            "relabel": lambda name=name, label=label: relabelling(task, train, {name: OTHER[label]}),
            "edit": lambda name=name: editing(task, train, {name: "a dull film with a weak plot"}),
        }[kind]()
        exact.append(first_order(run, task, train, queries, change))
        estimated.append(estimate(made["attributor"], queries, change, train, run=run).changes)
        found = measure(run, task, train, queries, change, keep_in=made["kept"])
        measured.append(torch.tensor([one.measured for one in found.queries]))
    truth, exact_changes, estimates = torch.cat(measured), torch.cat(exact), torch.cat(estimated)
    assert cosine(exact_changes, truth) > exact_at_least
    assert float(exact_changes.norm() / truth.norm()) == pytest.approx(1.0, abs=0.2 if estimated_at_least else 0.5)
    if estimated_at_least is not None:
        assert cosine(estimates, truth) > estimated_at_least


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.sets(st.integers(0, 39), min_size=2, max_size=5))
def test_estimates_add_up_over_examples(task: Any, gentle: Any, places: set[int]) -> None:
    made = gentle(2)
    run, train, queries, attributor = made["run"], made["train"], made["queries"], made["attributor"]
    rows = {example_id: row for row, example_id in enumerate(attributor.index.example_ids)}
    chosen = [train[place] for place in sorted(places)]
    names, labels = [one["example_id"] for one in chosen], {one["example_id"]: OTHER[one["label"]] for one in chosen}
    together = estimate(attributor, queries, relabelling(task, train, labels), train, run=run).changes
    alone = [
        estimate(attributor, queries, relabelling(task, train, {name: label}), train, run=run).changes
        for name, label in labels.items()
    ]
    assert torch.allclose(together, torch.stack(alone).sum(0), atol=1e-6 + 1e-4 * float(together.abs().max()))
    removed = estimate(attributor, queries, removal(names), train).changes
    scores = attributor.scores(queries)[:, [rows[name] for name in names]]
    assert torch.allclose(removed, -scores.double().sum(1))


def test_at_the_recorded_training_a_removal_is_predicted_as_replay_does(task: Any, gentle: Any) -> None:
    made = gentle(2)
    run, train, queries = made["run"], made["train"], [{**one} for one in made["queries"][:2]]
    directions = measurement_directions(made["attributor"], queries, torch.eye(2), run.trainable)
    rows = replay(run, task, train, directions)
    chosen = [3, 8]
    names = [run.example_ids[row] for row in chosen]

    found = first_order(run, task, train, queries, removal(names), at=(0.0,))

    expected = -rows[:, chosen].double().sum(1)
    assert torch.allclose(found, expected, atol=1e-6 + 1e-3 * float(expected.abs().max()))


def test_training_on_one_example_moves_its_likes_and_leaves_the_model_as_it_was(task: Any, gentle: Any) -> None:
    model = gentle(2)["run"].load_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    example = {"text": "a dull dull film", "label": "negative"}
    queries = [{"text": "a dull dull film", "label": "negative"}, {"text": "a dull dull film", "label": "positive"}]

    one = train_on_one(model, task, example, queries, learning_rate=1e-2)
    assert one.own_loss_after < one.own_loss_before
    assert float(one.changes[0]) > 0
    assert float(one.changes[0]) == pytest.approx(-float(one.changes[1]))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    # One small step is its gradient's inner product with the measurement's.
    half = train_on_one(model, task, example, queries, learning_rate=1e-4)
    quarter = train_on_one(model, task, example, queries, learning_rate=5e-5)
    assert float(half.changes[0]) == pytest.approx(2 * float(quarter.changes[0]), rel=0.05)
    assert train_on_one(model, task, example, queries, learning_rate=1e-4, optimizer="adamw").own_loss_after < (
        one.own_loss_before
    )

    for wrong in ({"steps": 0}, {"learning_rate": 0.0}, {"optimizer": "lion"}):
        with pytest.raises(SettingsError):
            train_on_one(model, task, example, queries, **{"learning_rate": 0.1, **wrong})
    with pytest.raises(DataError, match="a loss needs one"):
        train_on_one(model, task, {"text": "a film"}, queries, learning_rate=0.1)
