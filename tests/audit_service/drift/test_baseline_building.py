"""The baseline that is built: shares that sum to one, odd names, thresholds, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from audit_service.config import AuditConfig
from audit_service.drift.baseline_building import HeldOut, build_baseline
from audit_service.drift.signals import Explained, Predicted
from audit_service.monitoring.drift_baseline import DriftBaseline, read_baseline
from audit_service.monitoring.values import MAX_VALUES, OTHER
from influence_engine.errors import DataError
from tests.audit_service.drift.conftest import explained, predicted


def test_every_signals_shares_sum_to_one(baseline: DriftBaseline) -> None:
    for one in [*baseline.signals.values(), *baseline.influence]:
        assert sum(one.shares.values()) == pytest.approx(1)
        levels = [level for _, level in one.steps()]
        assert levels == sorted(levels, reverse=True)
        assert all(0 < level < 1 for level in levels)


def test_the_same_events_give_the_same_reference(config: AuditConfig, baseline: DriftBaseline) -> None:
    again = build_baseline(
        config, HeldOut(predicted(), explained(), ["a"] * 300), model_digest="m" * 64, index_digest="i"
    )

    assert again.model_copy(update={"created": "", "digest": ""}) == baseline.model_copy(
        update={"created": "", "digest": ""}
    )


def test_it_is_read_again_as_it_was_built(baseline: DriftBaseline, tmp_path: Path) -> None:
    baseline.write(tmp_path)

    assert read_baseline(tmp_path, model_digest="m" * 64, index_digest="i") == baseline


def test_influence_is_grouped_by_every_column_that_was_asked_for(baseline: DriftBaseline) -> None:
    by_batch = next(one for one in baseline.influence if one.by == "batch")

    assert by_batch.shares["batch=new\n🎭/proponent"] == pytest.approx(0.12, abs=0.01)
    assert {group.partition("=")[0] for group in baseline.groups} == {"label", "batch"}
    assert f"label={OTHER}" in baseline.groups


def test_many_groups_become_the_largest_and_the_rest(config: AuditConfig) -> None:
    groups = [{("source", f"s{number}", "proponent"): 1 / 100 for number in range(100)} for _ in range(30)]
    many = Explained("estimated", groups, [0.1] * 30, [None] * 30)

    baseline = build_baseline(config, HeldOut(predicted(), many), model_digest="m", index_digest="i")

    (one,) = baseline.influence
    assert len(baseline.groups) == MAX_VALUES
    assert one.shares[f"source={OTHER}/proponent"] == pytest.approx((100 - (MAX_VALUES - 1)) / 100)
    assert baseline.outside_index is None


def test_a_model_without_features_simply_has_no_embedding_signal(config: AuditConfig) -> None:
    seen = predicted()
    baseline = build_baseline(
        config, HeldOut(Predicted(seen.labels, seen.confidences), explained()), model_digest="m", index_digest="i"
    )

    assert "embedding" not in baseline.signals
    assert baseline.nearest_centre() is None


def test_too_few_held_out_examples_are_refused(config: AuditConfig) -> None:
    with pytest.raises(DataError, match="at least 20 held-out examples, there are 5"):
        build_baseline(config, HeldOut(predicted(5), explained(5)), model_digest="m", index_digest="i")


def test_it_knows_how_often_the_held_out_examples_were_right(baseline: DriftBaseline) -> None:
    share_of_a = baseline.signals["prediction"].shares["a"]

    assert baseline.outcomes["accuracy"] == pytest.approx(share_of_a)


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_held_out_values_that_are_not_finite_are_refused_by_the_signals_name(config: AuditConfig, odd: float) -> None:
    seen, why = predicted(), explained()
    seen.confidences[3] = odd
    why.top_shares[4] = why.top_shares[5] = odd

    with pytest.raises(DataError, match="values 1 of confidence and 2 of influence are NaN or infinite"):
        build_baseline(config, HeldOut(seen, why), model_digest="m", index_digest="i")


def test_predictions_of_several_labels_count_as_one_each_in_equal_parts(config: AuditConfig) -> None:
    counted = [("a", "b"), ("none",), ("a",)] * 100
    several = Predicted(["a, b", "none", "a"] * 100, [0.9] * 300, counted=counted)

    baseline = build_baseline(
        config, HeldOut(several, explained()), model_digest="m", index_digest="i", labels=["a", "b", "none"]
    )

    shares = baseline.signals["prediction"].shares
    assert shares == pytest.approx({"a": 0.5, "b": 1 / 6, "none": 1 / 3, OTHER: 0})
