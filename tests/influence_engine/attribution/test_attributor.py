"""Promises of the front door: what an explanation holds adds up, and what cannot be asked is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from influence_engine import Attributor, IndexSettings, InfluenceIndex, Run
from influence_engine.errors import ModelError, SettingsError, TierUnavailableError
from influence_engine.index import top_rows


@pytest.fixture
def attributor(
    vector_run: Run,
    vector_model: nn.Module,
    vector_task: Any,
    vector_train: Any,
    vector_queries: Any,
    index_folder: Path,
    fresh_network: nn.Module,
) -> Attributor:
    index = InfluenceIndex.build_from_run(
        vector_run,
        vector_task,
        vector_train,
        index_folder,
        IndexSettings(),
        into=fresh_network,
        held_out=vector_queries,
    )
    return Attributor(vector_model, vector_task, index, base_model=vector_run.load_base(fresh_network))


def test_returned_influences_are_the_strongest_of_the_scores(attributor: Attributor, vector_queries: Any) -> None:
    scores = attributor.scores(vector_queries)
    for explanation, row in zip(attributor.attribute(vector_queries, top_k=7), scores, strict=True):
        assert [e.rank for e in explanation.examples] == list(range(1, 8))
        assert {e.row for e in explanation.examples} == set(row.abs().topk(7).indices.tolist())
        for example in explanation.examples:
            assert example.influence == pytest.approx(float(row[example.row]), rel=1e-3)
            assert example.example_id == attributor.index.example_ids[example.row]
            assert example.polarity == ("proponent" if example.influence >= 0 else "opponent")


@pytest.mark.parametrize(("polarity", "sign"), [("proponents", 1), ("opponents", -1)])
def test_one_polarity_returns_only_its_sign_strongest_first(
    polarity: Any, sign: int, attributor: Attributor, vector_queries: Any
) -> None:
    for explanation in attributor.attribute(vector_queries, top_k=50, polarity=polarity):
        influences = [sign * example.influence for example in explanation.examples]
        assert influences == sorted(influences, reverse=True)
        assert all(influence > 0 for influence in influences)


def test_group_influences_add_up_to_all_of_them(attributor: Attributor, vector_queries: Any) -> None:
    scores = attributor.scores(vector_queries)
    for explanation, row in zip(attributor.attribute(vector_queries), scores, strict=True):
        assert [(group["by"], group["group"]) for group in explanation.groups] == [
            ("label", "0"),
            ("label", "1"),
            ("label", "2"),
            ("source", "clouds"),
        ]
        for column in ("label", "source"):
            groups = [group for group in explanation.groups if group["by"] == column]
            assert sum(group["share"] for group in groups) == pytest.approx(1, abs=1e-5)
            total = sum(group["influence"] for group in groups)
            assert total == pytest.approx(float(row.sum()), abs=2e-3 * float(row.abs().sum()))


def test_share_returned_is_all_when_everything_is_returned(attributor: Attributor, vector_queries: Any) -> None:
    (explanation,) = attributor.attribute(vector_queries[:1], top_k=60)
    assert explanation.quality["share_returned"] == pytest.approx(1, abs=1e-2)


def test_module_changes_and_their_remainder_add_up_to_the_whole_change(
    attributor: Attributor, vector_queries: Any
) -> None:
    for explanation in attributor.attribute(vector_queries):
        assert explanation.base_measurement is not None
        assert explanation.modules_residual is not None
        parts = sum(module["change"] for module in explanation.modules) + explanation.modules_residual
        assert parts == pytest.approx(explanation.measurement - explanation.base_measurement, abs=1e-5)
        assert {module["module"] for module in explanation.modules} == {"0", "2", "3"}


def test_module_changes_equal_autograd_times_displacement(
    attributor: Attributor, vector_run: Run, vector_task: Any, vector_queries: Any
) -> None:
    model, start = attributor.model, vector_run.checkpoint(0)[0]
    batch = vector_task.collate(vector_queries[:1])
    measured = vector_task.measurement(vector_task.outputs(model, batch), batch).sum()
    names = [name for name, _ in model.named_parameters()]
    gradients = torch.autograd.grad(measured, list(model.parameters()))
    expected: dict[str, float] = {}
    for name, gradient, parameter in zip(names, gradients, model.parameters(), strict=True):
        module = name.partition(".")[0]
        change = float((gradient * (parameter.detach() - start[name])).sum())
        expected[module] = expected.get(module, 0.0) + change
    (explanation,) = attributor.attribute(vector_queries[:1])
    found = {module["module"]: module["change"] for module in explanation.modules}
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_an_explanation_is_json(attributor: Attributor, vector_queries: Any) -> None:
    (explanation,) = attributor.attribute(vector_queries[:1])
    assert json.loads(json.dumps(explanation.to_dict()))["tier"] == "estimated"


def test_a_query_far_from_all_training_data_lies_outside_the_index(
    attributor: Attributor,
    vector_queries: Any,
    vector_train: Any,
    vector_model: nn.Module,
    vector_task: Any,
    tmp_path: Path,
) -> None:
    (usual,) = attributor.attribute(vector_queries[:1])
    assert usual.quality["outside_index"] is False
    # The network's six inputs trained on the first three only: a query on the others has gradients of its own.
    narrow = [{**example, "x": [*example["x"][:3], 0.0, 0.0, 0.0]} for example in vector_train]
    index = InfluenceIndex.build(vector_model, vector_task, narrow[:40], tmp_path / "narrow", held_out=narrow[40:])
    strange = {"x": [0.0, 0.0, 0.0, 9.0, -9.0, 9.0], "label": 0}
    seen, unseen = Attributor(vector_model, vector_task, index).attribute([narrow[45], strange])
    assert seen.quality["retained"] > unseen.quality["retained"]
    assert unseen.quality["outside_index"] is True


@pytest.mark.parametrize("top_k", [0, -1, 101, True])
def test_top_k_out_of_range_is_refused(top_k: int, attributor: Attributor, vector_queries: Any) -> None:
    with pytest.raises(SettingsError, match="must be from 1 to 100"):
        attributor.attribute(vector_queries[:1], top_k=top_k)


def test_each_returns_as_many_of_either_sign_ranked_by_themselves(attributor: Attributor, vector_queries: Any) -> None:
    sides = [attributor.attribute(vector_queries, top_k=4, polarity=side) for side in ("proponents", "opponents")]  # type: ignore[arg-type]
    for both, *alone in zip(attributor.attribute(vector_queries, top_k=4, polarity="each"), *sides, strict=True):
        expected = [(one.row, one.rank) for side in alone for one in side.examples]
        assert [(one.row, one.rank) for one in both.examples] == expected


def test_more_examples_than_there_are_returns_them_all(attributor: Attributor, vector_queries: Any) -> None:
    (explanation,) = attributor.attribute(vector_queries[:1], top_k=100)
    assert len(explanation.examples) == 60


@pytest.mark.parametrize("tier", ["refined", "replayed", "measured"])
def test_a_tier_that_is_not_there_says_why(tier: Any, attributor: Attributor, vector_queries: Any) -> None:
    with pytest.raises(TierUnavailableError, match=f"{tier!r} cannot be had from this index"):
        attributor.attribute(vector_queries[:1], tier=tier)


def test_unknown_tier_and_polarity_are_refused_with_what_is_allowed(
    attributor: Attributor, vector_queries: Any
) -> None:
    with pytest.raises(SettingsError, match="allowed are best, estimated"):
        attributor.attribute(vector_queries[:1], tier="fast")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="allowed are both, each, proponents, opponents"):
        attributor.attribute(vector_queries[:1], polarity="positive")  # type: ignore[arg-type]


def test_no_queries_have_no_explanations(attributor: Attributor) -> None:
    assert attributor.attribute([]) == []
    assert attributor.scores([]).shape == (0, 60)


def test_without_a_base_model_there_are_no_differences(
    attributor: Attributor, vector_task: Any, vector_queries: Any
) -> None:
    alone = Attributor(attributor.model, vector_task, attributor.index)
    (explanation,) = alone.attribute(vector_queries[:1])
    assert (explanation.base_measurement, explanation.modules, explanation.modules_residual) == (None, [], None)


def test_a_model_whose_trained_layers_are_not_the_indexs_is_refused(
    attributor: Attributor, vector_task: Any, vector_run: Run, fresh_network: nn.Module
) -> None:
    model = vector_run.load_model(fresh_network)
    model.get_parameter("0.weight").requires_grad_(False)
    model.get_parameter("0.bias").requires_grad_(False)
    with pytest.raises(ModelError, match="trained layers"):
        Attributor(model, vector_task, attributor.index)


def test_a_model_on_another_device_than_the_index_is_refused(attributor: Attributor, vector_task: Any) -> None:
    with pytest.raises(SettingsError, match="the index is on cpu, the model should be on meta"):
        Attributor(attributor.model, vector_task, attributor.index, device="meta")


def test_scores_do_not_depend_on_the_order_or_the_batches_of_queries(
    attributor: Attributor, vector_queries: Any
) -> None:
    scores = attributor.scores(vector_queries)
    turned = attributor.scores(vector_queries[::-1], batch_size=3).flip(0)
    torch.testing.assert_close(turned, scores, rtol=0, atol=1e-5 * float(scores.abs().max()))


def test_top_rows_of_a_tie_free_vector_are_sorted() -> None:
    scores = torch.tensor([0.1, -0.9, 0.5, -0.2])
    assert top_rows(scores, 3, "both").tolist() == [1, 2, 3]
    assert top_rows(scores, 3, "proponents").tolist() == [2, 0]
    assert top_rows(scores, 9, "opponents").tolist() == [1, 3]
    assert top_rows(scores, 1, "each").tolist() == [2, 1]
