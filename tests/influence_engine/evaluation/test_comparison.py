"""Promises: all methods meet the same retrainings; the damping is chosen on queries that are not reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from influence_engine import Attributor, IndexSettings, InfluenceIndex, Run
from influence_engine.errors import SettingsError
from influence_engine.evaluation import (
    EvaluationPlan,
    Retraining,
    check_index,
    evaluate,
    linear_datamodeling_score,
    membership,
    single_removals,
)
from influence_engine.evaluation.methods import DAMPING_FACTORS, ESTIMATED, REFINED, TUNED
from influence_engine.evaluation.removals import random_removals
from tests.influence_engine.vectors import make_network, make_vectors

EXACT = IndexSettings(dtype="float32", approximation="final")


def build(run: Run, task: Any, train: Any, folder: Path, network: Any, **settings: Any) -> InfluenceIndex:
    chosen = EXACT.model_copy(update=settings)
    return InfluenceIndex.build_from_run(run, task, train, folder, chosen, into=network)


@pytest.fixture
def attributor(
    vector_run: Run,
    vector_task: Any,
    vector_train: Any,
    vector_model: Any,
    index_folder: Path,
    fresh_network: Any,
) -> Attributor:
    index = build(vector_run, vector_task, vector_train, index_folder, fresh_network)
    return Attributor(vector_model, vector_task, index)


def test_scores_with_another_damping_are_those_of_an_index_built_with_it(
    vector_run: Run, vector_task: Any, vector_train: Any, vector_queries: Any, vector_model: Any, tmp_path: Path
) -> None:
    from tests.influence_engine.vectors import make_network

    first = build(vector_run, vector_task, vector_train, tmp_path / "a", make_network())
    damping = 4 * first.manifest.damping
    second = build(vector_run, vector_task, vector_train, tmp_path / "b", make_network(), damping=damping)
    changed = Attributor(vector_model, vector_task, first).scores(vector_queries, damping=damping)
    built = Attributor(vector_model, vector_task, second).scores(vector_queries)
    assert first.example_ids == second.example_ids
    torch.testing.assert_close(changed, built, rtol=2e-3, atol=2e-4)
    at_once = Attributor(vector_model, vector_task, first).scores_by_damping(vector_queries, [damping], batch_size=3)
    torch.testing.assert_close(at_once[damping], changed, rtol=1e-4, atol=1e-5)


def test_every_method_is_scored_on_the_reported_queries_only(
    retraining: Retraining, attributor: Attributor, vector_queries: Any
) -> None:
    plan = EvaluationPlan(fractions=(0.1, 0.3), subsets=8, tuning=3, single=4, refined=True)
    found = evaluate(attributor, retraining, plan)

    assert found.queries == len(vector_queries) - 3
    assert plan.retrainings == 2 * 8 + 4
    methods = {row.method for row in found.rows}
    assert methods == {ESTIMATED, REFINED, TUNED, "gradient dot", "gradient cosine"}
    assert len(found.rows) == 2 * len(methods)
    removals = random_removals(attributor.index.example_ids, 0.1, 8, seed=0)
    removed, measured = membership(removals, attributor.index.example_ids), retraining.measurements(removals)
    scores = attributor.scores(vector_queries)
    expected = linear_datamodeling_score(scores[3:], removed, measured[:, 3:]).mean
    (ours,) = (row for row in found.rows if row.method == ESTIMATED and row.fraction == 0.1)
    assert ours.lds == pytest.approx(expected, abs=1e-9)
    assert ours.low <= ours.lds <= ours.high
    factors = {round(damping / found.damping, 6) for damping in found.damping_tuned.values()}
    assert factors <= set(DAMPING_FACTORS)
    assert found.single is not None
    assert found.single.examples == 4
    assert found.single.slope > 0
    assert len(found.single.measured) == 4
    assert found.to_dict()["rows"][0]["kind"] == "removal"


def test_named_examples_are_left_out_alone_beside_others(retraining: Retraining, attributor: Attributor) -> None:
    named = attributor.index.example_ids[7:9]
    plan = EvaluationPlan(fractions=(0.1,), subsets=2, tuning=2, single=4, leave_out=[*named, named[0]])
    influences = attributor.scores(retraining.queries).double()[2:]
    removals = single_removals(plan, influences, attributor.index.example_ids)

    found = evaluate(attributor, retraining, plan).single

    assert plan.retrainings == 2 + 4 + 2
    assert len({removal.example_ids for removal in removals}) == 6
    assert [removal.example_ids for removal in removals[:2]] == [(name,) for name in named]
    assert retraining.cached(removals) == 6
    assert found is not None
    assert (found.examples, found.example_ids[:2]) == (6, named)
    assert found.estimated[1] == pytest.approx(influences[:, 8].tolist())
    with pytest.raises(SettingsError, match="no training example has the id 'train-99'") as raised:
        evaluate(attributor, retraining, EvaluationPlan(tuning=2, leave_out=["train-99"]))
    assert raised.value.field == "leave_out"


def test_an_evaluation_goes_on_with_the_retrainings_that_are_there(
    retraining: Retraining, attributor: Attributor
) -> None:
    removals = random_removals(attributor.index.example_ids, 0.1, 5, seed=0)
    retraining.measurements(removals[:2])
    assert retraining.cached(removals) == 2
    plan = EvaluationPlan(fractions=(0.1,), subsets=5, tuning=2)
    first = evaluate(attributor, retraining, plan)
    assert retraining.cached(removals) == 5
    assert [row.lds for row in evaluate(attributor, retraining, plan).rows] == [row.lds for row in first.rows]


@pytest.mark.parametrize("tuning", [0, 8])
def test_a_plan_without_queries_to_tune_on_or_to_report_is_refused(
    retraining: Retraining, attributor: Attributor, tuning: int
) -> None:
    with pytest.raises(SettingsError, match="choosing the damping"):
        evaluate(attributor, retraining, EvaluationPlan(tuning=tuning))


def test_a_check_makes_the_slope_one_and_says_how_often_intervals_hold(
    attributor: Attributor, retraining: Retraining, vector_run: Run, vector_task: Any, vector_train: Any, tmp_path: Path
) -> None:
    plan = EvaluationPlan(fractions=(0.1,), subsets=6, tuning=2)
    before = {row.method: row for row in evaluate(attributor, retraining, plan).rows}
    assert before[ESTIMATED].coverage is None
    assert before[ESTIMATED].slope is not None
    assert before["gradient dot"].slope is None
    queries = make_vectors(24, seed=9, prefix="check-")
    check_index(
        attributor,
        Retraining(vector_run, vector_task, vector_train, queries, tmp_path / "check", into=make_network()),
    )
    after = {row.method: row for row in evaluate(attributor, retraining, plan).rows}
    assert after[ESTIMATED].coverage is not None
    assert after[ESTIMATED].coverage >= 0.8
    assert after[ESTIMATED].slope == pytest.approx(1, abs=0.2)
    assert after["gradient dot"].coverage is None
