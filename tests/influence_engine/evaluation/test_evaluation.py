"""Promises: LDS is the mean rank correlation with retraining; retrainings are honest, done once, and kept by digest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from influence_engine import Attributor, FinetuneSettings, IndexSettings, InfluenceIndex, Run, finetune
from influence_engine.errors import SettingsError
from influence_engine.evaluation import (
    Removal,
    Retraining,
    linear_datamodeling_score,
    membership,
    random_removals,
    spearman,
)
from influence_engine.training import reexecute

IDS = [f"e{number:02d}" for number in range(40)]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=20).filter(
        lambda pairs: len({a for a, _ in pairs}) > 1 and len({b for _, b in pairs}) > 1
    )
)
def test_rank_correlation_equals_scipys_ties_included(pairs: list[tuple[int, int]]) -> None:
    first, second = (torch.tensor(column, dtype=torch.float64)[:, None] for column in zip(*pairs, strict=True))
    expected = spearmanr(first.flatten(), second.flatten()).statistic
    assert float(spearman(first, second)) == pytest.approx(expected, abs=1e-9)


def test_influences_that_add_up_exactly_score_one() -> None:
    influences = torch.randn(5, len(IDS), dtype=torch.float64)
    removed = membership(random_removals(IDS, 0.2, 12, seed=0), IDS)
    measured = 3.0 - removed @ influences.T
    score = linear_datamodeling_score(influences, removed, measured)
    assert score.mean == pytest.approx(1.0)
    assert linear_datamodeling_score(-influences, removed, measured).mean == pytest.approx(-1.0)
    assert score.low <= score.mean <= score.high


def test_unrelated_influences_score_about_zero_within_their_interval() -> None:
    removed = membership(random_removals(IDS, 0.2, 40, seed=0), IDS)
    score = linear_datamodeling_score(torch.randn(30, len(IDS)), removed, torch.randn(40, 30))
    assert abs(score.mean) < 0.15
    assert score.low < 0 < score.high


def test_removals_are_the_same_for_a_seed_and_asking_for_more_keeps_the_first() -> None:
    few, many = random_removals(IDS, 0.25, 4, seed=3), random_removals(IDS[::-1], 0.25, 9, seed=3)
    assert few == many[:4]
    assert {len(removal.example_ids) for removal in many} == {10}
    assert random_removals(IDS, 0.25, 4, seed=4) != few


@pytest.mark.parametrize("fraction", [0.0, 0.001, 1.0])
def test_a_removal_of_nothing_or_all_is_refused(fraction: float) -> None:
    with pytest.raises(SettingsError, match="must leave some and take some"):
        random_removals(IDS, fraction, 1, seed=0)


def test_removing_nothing_measures_the_recorded_model(retraining: Retraining) -> None:
    again = retraining.measurements([Removal.of([])])
    torch.testing.assert_close(again[0], retraining.recorded(), rtol=1e-5, atol=1e-6)


def test_a_removal_is_the_recorded_run_with_those_weights_zero(
    retraining: Retraining,
    vector_run: Run,
    vector_task: Any,
    vector_train: Any,
    fresh_network: Any,
    vector_queries: Any,
) -> None:
    gone = ["train-0003", "train-0010"]
    parameters = reexecute(
        vector_run, vector_task, vector_train, weights=dict.fromkeys(gone, 0.0), into=fresh_network, device="cpu"
    )
    batch = vector_task.collate(vector_queries)
    outputs = torch.func.functional_call(fresh_network, parameters, (batch["x"],))
    expected = vector_task.measurement(outputs, batch).double().detach()
    torch.testing.assert_close(retraining.measurements([Removal.of(gone)])[0], expected, rtol=1e-5, atol=1e-6)


def test_afresh_trains_in_a_new_order_without_the_removed(
    retraining: Retraining,
    vector_run: Run,
    vector_task: Any,
    vector_train: Any,
    vector_queries: Any,
    fresh_network: Any,
) -> None:
    gone = Removal.of(["train-0003"])
    first, second = (retraining.measurements([gone], "afresh", seed=seed)[0] for seed in (1, 2))
    assert not torch.allclose(first, second)
    settings_ = vector_run.settings
    assert isinstance(settings_, FinetuneSettings)
    model = finetune(
        vector_task,
        vector_run.load_base(fresh_network),
        [example for example in vector_train if example["example_id"] != "train-0003"],
        settings=settings_.model_copy(update={"seed": settings_.seed + 1}),
        device="cpu",
    ).model
    batch = vector_task.collate(vector_queries)
    with torch.no_grad():
        expected = vector_task.measurement(vector_task.outputs(model, batch), batch).double()
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-6)


def test_a_retraining_that_was_done_is_taken_from_disk(retraining: Retraining) -> None:
    removals = random_removals(retraining.run.example_ids, 0.1, 3, seed=0)
    first = retraining.measurements(removals)
    written = {path: path.stat().st_mtime_ns for path in retraining.cache.iterdir()}
    assert len(written) == 3
    torch.testing.assert_close(retraining.measurements(removals), first, rtol=0, atol=0)
    assert {path: path.stat().st_mtime_ns for path in retraining.cache.iterdir()} == written
    one_more = random_removals(retraining.run.example_ids, 0.1, 4, seed=0)
    retraining.measurements(one_more)
    assert len(list(retraining.cache.iterdir())) == 4


def test_the_index_predicts_what_retraining_does_on_a_small_network(
    retraining: Retraining,
    vector_run: Run,
    vector_model: Any,
    vector_task: Any,
    vector_train: Any,
    vector_queries: Any,
    index_folder: Path,
    fresh_network: Any,
) -> None:
    index = InfluenceIndex.build_from_run(
        vector_run, vector_task, vector_train, index_folder, IndexSettings(dtype="float32"), into=fresh_network
    )
    scores = Attributor(vector_model, vector_task, index).scores(vector_queries)
    removals = random_removals(index.example_ids, 0.1, 40, seed=0)
    measured = retraining.measurements(removals)
    score = linear_datamodeling_score(scores, membership(removals, index.example_ids), measured)
    assert score.mean > 0.5
