"""Label values: clean, few, known from the start."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from audit_service.monitoring.values import LONGEST_VALUE, MAX_VALUES, OTHER, Children, admitted, clean

ODD = ['a "quoted" name', "two\nlines", "back\\slash", "🎭 emoji", "", " ", "{}", "le", "\ud800", "x" * 10_000]


@given(st.lists(st.text()))
def test_there_are_never_more_values_than_allowed_and_the_last_is_the_rest(values: list[str]) -> None:
    found = admitted(values)

    assert len(found) == len(set(found)) <= MAX_VALUES
    assert found[-1] == OTHER
    assert set(found[:-1]) <= {clean(value) for value in values}


@given(st.text() | st.integers() | st.none() | st.floats(allow_nan=True))
def test_every_value_is_valid_text_of_bounded_length(value: object) -> None:
    found = clean(value)

    assert found.encode("utf-8").decode("utf-8") == found
    assert len(found) <= LONGEST_VALUE


def test_ten_thousand_odd_names_neither_break_the_exposition_nor_explode_it() -> None:
    registry = CollectorRegistry()
    counter = Counter("odd_total", "Odd.", ["label"], registry=registry)
    names = [*ODD, *(f'name {number}\n"{number}" 🎭' for number in range(10_000))]
    children: Children[Counter] = Children(counter.labels, admitted(names))

    for name in names:
        children.get(name).inc()

    family = next(iter(text_string_to_metric_families(generate_latest(registry).decode())))
    found = {sample.labels["label"]: sample.value for sample in family.samples if sample.name == "odd_total"}
    assert len(found) == MAX_VALUES
    assert sum(found.values()) == len(names)
    assert found[OTHER] == len(names) - (MAX_VALUES - 1)
    assert found["two\nlines"] == found['a "quoted" name'] == 1


def test_a_value_that_cannot_be_looked_up_counts_among_the_rest() -> None:
    counter = Counter("unhashable_total", "Odd.", ["label"], registry=CollectorRegistry())
    children: Children[Counter] = Children(counter.labels, admitted(["a"]))

    children.get(["a", "list"]).inc()

    assert counter.labels(OTHER)._value.get() == 1


UNWRITABLE = """
from audit_service.monitoring.model_metrics import *
metrics = PredictionMetrics("m:1", ["a", "b"], 3)
metrics.predicted("a", 0.5)
metrics.predicted(None, None)
metrics.clustered([0, 1])
DropMetrics("m:1").dropped("store_unavailable")
InfluenceMetrics("m:1", ["label=a"]).explained(
    [{"by": "label", "group": "a", "supporting": 1.0, "opposing": 0.0}], 0.5, True)
ExplanationMetrics("m:1").explained("estimated", 200)
EngineMetrics("m:1").loaded("i", "d", 3, 0.0)
OutcomeMetrics("m:1", ["a"], []).arrived("a", right=True, confidence=0.5, groups=[])
from audit_service.monitoring.values import quietly
print("went on", quietly.failures > 0)
"""


def test_a_metrics_store_that_cannot_be_written_never_fails_a_prediction() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", UNWRITABLE],
        env={"PROMETHEUS_MULTIPROC_DIR": "/nowhere/at/all", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert finished.stdout.strip() == "went on True", finished.stderr
    assert finished.stderr.count("the metrics store cannot be written") == 1
