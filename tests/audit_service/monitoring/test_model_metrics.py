"""Recorders: every series there from the start, shares that sum to one, mistakes that stay inside."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from audit_service.monitoring import metrics
from audit_service.monitoring.model_metrics import (
    EngineMetrics,
    ExplanationMetrics,
    InfluenceMetrics,
    JobMetrics,
    OutcomeMetrics,
    PredictionMetrics,
    outcome_of,
    shares_by_group,
)


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_a_label_that_never_occurred_has_a_series_at_zero() -> None:
    PredictionMetrics("zero:1", ["a", "b"], clusters=2)

    assert [value("audit_predictions_total", model="zero:1", label=one) for one in ("a", "b", "__other__")] == [0] * 3
    assert [value("audit_embedding_cluster_total", model="zero:1", cluster=one) for one in "01"] == [0, 0]
    assert value("audit_prediction_confidence_ratio_count", model="zero:1") == 0


def test_unknown_labels_count_as_the_rest_and_confidences_fill_their_bins() -> None:
    recorder = PredictionMetrics("rest:1", ["a"])

    for label, confidence in (("a", 0.55), ("b", 1.0000001), (7, None), (None, 0.55)):
        recorder.predicted(label, confidence)

    assert value("audit_predictions_total", model="rest:1", label="a") == 1
    assert value("audit_predictions_total", model="rest:1", label="__other__") == 2
    assert value("audit_prediction_confidence_ratio_bucket", model="rest:1", le="1.0") == 3
    assert value("audit_prediction_confidence_ratio_bucket", model="rest:1", le="0.6") == 2


@pytest.mark.parametrize("confidence", ["high", object(), float("nan")])
def test_a_confidence_that_is_no_number_fails_nothing(confidence: Any) -> None:
    PredictionMetrics("odd:1", ["a"]).predicted("a", confidence)


groups = st.lists(
    st.fixed_dictionaries(
        {
            "by": st.sampled_from(["label", "source"]),
            "group": st.text(max_size=5),
            "supporting": st.floats(0, 1),
            "opposing": st.floats(0, 1),
        }
    ),
    unique_by=lambda one: (one["by"], one["group"]),
)


@given(groups)
def test_each_explanation_adds_one_to_every_grouping(found: list[dict[str, Any]]) -> None:
    shares = shares_by_group(found)

    for by in {one["by"] for one in found}:
        total = sum(share for key, share in shares.items() if key[0] == by)
        assert total == pytest.approx(1) or total == 0


def test_groups_that_are_not_watched_count_as_the_rest_of_their_kind() -> None:
    recorder = InfluenceMetrics("groups:1", ["label=a", "label=__other__", "source=x"])
    rows = [
        ("label", "a", 0.25, 0.25),
        ("label", "new", 0.5, 0.0),
        ("source", "x", 0.5, 0.5),
        ("licence", "y", 1.0, 0.0),
    ]

    recorder.explained(
        [{"by": by, "group": group, "supporting": plus, "opposing": minus} for by, group, plus, minus in rows],
        top_share=0.03,
        outside=True,
    )

    def share(group: str, polarity: str) -> float | None:
        return value("audit_influence_share_total", model="groups:1", group=group, polarity=polarity)

    assert share("label=a", "proponent") == share("label=a", "opponent") == 0.25
    assert share("label=__other__", "proponent") == 0.5
    assert share("source=x", "opponent") == 0.5
    assert share("licence=y", "proponent") is None
    assert value("audit_queries_outside_index_total", model="groups:1") == 1


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(200, "ok"), (202, "ok"), (404, "refused"), (429, "unavailable"), (503, "unavailable"), (500, "failed")],
)
def test_an_answers_status_says_whose_fault_it_was(status: int, outcome: str) -> None:
    assert outcome_of(status) == outcome


def test_explanations_are_counted_by_tier_and_outcome() -> None:
    recorder = ExplanationMetrics("explained:1")

    recorder.explained("replayed", 200)
    recorder.explained(None, 503)

    def count(tier: str, outcome: str) -> float | None:
        return value("audit_explanations_total", model="explained:1", tier=tier, outcome=outcome, cache="miss")

    assert (count("replayed", "ok"), count("none", "unavailable"), count("estimated", "ok")) == (1, 1, 0)


def test_an_index_that_is_no_longer_in_use_is_shown_as_zero() -> None:
    recorder = EngineMetrics("loaded:1")
    recorder.loaded("first-index-of-all", "data", 10, 1.0)
    recorder.loaded("second-index", "data", 12, 2.0)

    def shown(index: str) -> float | None:
        return value("audit_index_info", model="loaded:1", index=index, dataset_digest="data")

    assert (shown("first-index-"), shown("second-index")) == (0, 1)
    assert value("audit_index_rows", model="loaded:1") == 12
    recorder.retired()
    assert (shown("second-index"), value("audit_index_rows", model="loaded:1")) == (0, 0)


def test_true_labels_count_by_label_group_and_confidence() -> None:
    recorder = OutcomeMetrics("outcomes:1", ["a", "b"], ["region=north"])

    recorder.arrived("a", right=True, confidence=0.97, groups=["region=north"])
    recorder.arrived("b", right=False, confidence=None, groups=["region=south"])

    assert value("audit_outcomes_total", model="outcomes:1", label="a", outcome="right") == 1
    assert value("audit_outcomes_by_group_total", model="outcomes:1", group="__other__", outcome="wrong") == 1
    assert value("audit_outcome_confidence_ratio_count", model="outcomes:1", outcome="right") == 1


def test_a_models_label_names_it_and_its_weights() -> None:
    assert metrics.model_label("sentiment", "0123456789abcdef") == "sentiment:0123456789ab"
    assert metrics.model_label("sentiment", None) == "sentiment:unknown"


def test_a_measured_job_is_counted_by_tier_and_kind_and_every_series_is_there_from_the_start() -> None:
    jobs = JobMetrics("some-model")
    jobs.measured({"kind": "remove", "change": {"ratio": {"estimated": 0.8, "replayed": None, "other": 1.0}}})
    found = {
        (sample.labels["tier"], sample.labels["kind"]): sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == f"{metrics.fidelity.name}_count" and sample.labels["model"] == "some-model"
    }
    assert found == {
        (tier, kind): float((tier, kind) == ("estimated", "remove"))
        for tier in metrics.PREDICTING_TIERS
        for kind in metrics.CHANGES
    }


def test_a_prediction_with_several_labels_is_one_in_equal_parts() -> None:
    recorder = PredictionMetrics("several:1", ["a", "b", "none"])

    recorder.predicted("a, b", 0.9, labels=("a", "b", "a", "a"))
    recorder.predicted("none", None, labels=("none",))

    counted = {one: value("audit_predictions_total", model="several:1", label=one) for one in ("a", "b", "none")}
    assert counted == {"a": 0.75, "b": 0.25, "none": 1}


def test_several_true_labels_are_judged_one_by_one() -> None:
    recorder = OutcomeMetrics("judged:1", ["a", "b"], [])

    recorder.arrived("a, b", right=False, confidence=0.7, groups=[], labels=[("a", True), ("b", False)])

    assert value("audit_outcomes_total", model="judged:1", label="a", outcome="right") == 1
    assert value("audit_outcomes_total", model="judged:1", label="b", outcome="wrong") == 1
    assert value("audit_outcome_confidence_ratio_count", model="judged:1", outcome="wrong") == 1
