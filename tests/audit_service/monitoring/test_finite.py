"""No metric takes a number that is not finite, and what is left out is counted by the metric's name."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

import audit_service
from audit_service.monitoring import metrics
from audit_service.monitoring.exposed_baseline import ExposedBaseline
from audit_service.monitoring.finite import CounterSeries, Metric, finite_json, share
from audit_service.monitoring.model_metrics import (
    EngineMetrics,
    ExplanationMetrics,
    InfluenceMetrics,
    JobMetrics,
    OutcomeMetrics,
    PredictionMetrics,
)
from audit_service.monitoring.sink import AuditMonitor
from audit_service.monitoring.statistics import NearestCentre

PACKAGE = Path(audit_service.__file__).parent
ODD = (math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf"))
DECLARED = {name: one for name, one in vars(metrics).items() if isinstance(one, Metric)}


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def left_out(model: str, metric: str) -> float | None:
    return value("audit_values_left_out_total", model=model, metric=metric)


def samples_of(model: str) -> dict[str, float]:
    return {
        f"{sample.name}{sample.labels}": sample.value
        for family in REGISTRY.collect()
        if family.name.startswith("audit_")
        for sample in family.samples
        if sample.labels.get("model") == model
    }


def test_only_the_finite_ones_make_metrics() -> None:
    made = [r"prometheus_client import .*(Counter|Gauge|Histogram|Summary)", r"prometheus_client\.(Counter|Gauge|Hist)"]
    makers = {
        path.name
        for path in PACKAGE.rglob("*.py")
        if any(re.search(one, path.read_text(encoding="utf-8")) for one in made)
    }

    assert makers == {"finite.py"}
    assert len(DECLARED) > 10


@pytest.mark.parametrize("name", sorted(DECLARED))
@pytest.mark.parametrize("odd", ODD)
def test_no_series_takes_a_number_that_is_not_finite_and_each_is_counted(name: str, odd: Any) -> None:
    metric, model = DECLARED[name], f"odd {name} {odd!r}"
    others = ["x"] * (len(metric._metric._labelnames) - 1)
    series = metric.labels(model, *others)
    write = series.inc if isinstance(series, CounterSeries) else getattr(series, "set", None) or series.observe
    assert left_out(model, metric.name) == 0

    write(0.5)
    before = samples_of(model)
    write(odd)

    assert left_out(model, metric.name) == 1
    after = samples_of(model)
    assert all(math.isfinite(one) for one in after.values())
    assert {key for key in after if after[key] != before[key]} == {
        f"audit_values_left_out_total{ {'model': model, 'metric': metric.name} }"
    }


def recorders(model: str) -> list[Callable[[float], object]]:
    """Every way in which a number comes into a metric."""
    group = {"by": "label", "group": "a", "supporting": 0.5, "opposing": 0.5}
    predictions = PredictionMetrics(model, ["a"], clusters=2)
    influence = InfluenceMetrics(model, ["label=a"])
    sink = AuditMonitor("odd", model=model, labels=["a"])
    sink.export_schema({"p": {"role": "prediction", "type": "numerical"}})
    nearest = NearestCentre(np.array([[0.0, 1.0], [1.0, 0.0]], dtype=np.float32))
    return [
        lambda odd: predictions.predicted("a", odd),
        lambda odd: predictions.clustered(nearest.of(np.array([[odd, 1.0]], dtype=np.float32))),
        lambda odd: influence.explained([group], odd, False),
        lambda odd: influence.explained([{**group, "supporting": odd}], 0.5, False),
        lambda odd: influence.explained([group, {**group, "group": "b", "opposing": odd}], 0.5, False),
        lambda odd: ExplanationMetrics(model).took(odd),
        lambda odd: EngineMetrics(model).timed({"search": odd}),
        lambda odd: EngineMetrics(model).loaded("index", "data", 1, odd),
        lambda odd: JobMetrics(model).measured({"kind": "remove", "change": {"ratio": {"estimated": odd}}}),
        lambda odd: OutcomeMetrics(model, ["a"], []).arrived("a", right=True, confidence=odd, groups=[]),
        lambda odd: sink.export_data({"p": deque([odd])}),
    ]


@pytest.mark.parametrize("number", range(len(recorders("listed"))))
@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_no_recorder_lets_one_through(number: int, odd: float) -> None:
    model = f"recorder {number} {odd}"
    record = recorders(model)[number]

    record(odd)

    found = samples_of(model)
    assert all(math.isfinite(one) for one in found.values())
    assert sum(one for key, one in found.items() if "left_out" in key) >= 1


@pytest.mark.parametrize("confidence", ["high", object(), math.nan, 10**400, math.inf, -math.inf])
def test_a_confidence_that_is_no_finite_number_is_counted_as_left_out_and_its_label_counts(confidence: Any) -> None:
    model = f"confidence {str(confidence)[:10]}"
    PredictionMetrics(model, ["a"]).predicted("a", confidence)

    assert value("audit_predictions_total", model=model, label="a") == 1
    assert value("audit_prediction_confidence_ratio_sum", model=model) == 0
    assert value("audit_prediction_confidence_ratio_count", model=model) == 0
    assert left_out(model, "audit_prediction_confidence_ratio") == 1


def test_features_that_are_not_finite_are_in_no_cluster() -> None:
    nearest = NearestCentre(np.array([[0.0, 1.0], [1.0, 0.0]], dtype=np.float32))
    rows = np.array([[0.0, 0.9], [math.nan, 0.0], [math.inf, 0.0], [3e38, 3e38], [0.9, 0.0]], dtype=np.float32)

    assert nearest.of(rows) == [0, None, None, None, 1]


def test_the_first_value_left_out_is_logged_and_the_next_ones_are_not(caplog: pytest.LogCaptureFixture) -> None:
    recorder = PredictionMetrics("logged:1", ["a"])

    for _ in range(3):
        recorder.predicted("a", math.nan)

    (record,) = caplog.records
    assert "audit_prediction_confidence_ratio of logged:1" in record.getMessage()


def test_a_baseline_that_holds_what_is_not_finite_is_shown_without_it(baseline: Any) -> None:
    broken = baseline.model_copy(update={"model": "broken:1", "top_share": {"0.1": math.nan, "0.2": 0.5}})

    ExposedBaseline().show("broken:1", broken)

    assert value("audit_reference_share_ratio", model="broken:1", signal="top_share", bin="0.2") == 0.5
    assert left_out("broken:1", "audit_reference_share_ratio") == 1


def test_rounding_above_one_is_one_and_infinity_is_not() -> None:
    assert share(1.0000001) == 1.0
    assert share("0.5") == 0.5
    assert share(math.inf) == math.inf
    assert math.isnan(share(None))


def test_json_has_null_where_a_number_is_not_finite() -> None:
    given = {"a": [1, 0.5, math.nan], "b": {"c": -math.inf, "d": "nan", "e": None}, "f": True}

    assert finite_json(given) == {"a": [1, 0.5, None], "b": {"c": None, "d": "nan", "e": None}, "f": True}
