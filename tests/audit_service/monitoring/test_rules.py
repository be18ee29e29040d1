"""Rules: what promtool reads, what it computes, and what each alert tells whoever is woken by it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from audit_service.config import MonitoringSettings
from audit_service.monitoring.alerts import ALERTS
from audit_service.monitoring.dashboards import queries, render_all
from audit_service.monitoring.drift_baseline import DriftBaseline
from audit_service.monitoring.metrics import CONFIDENCE_BUCKETS, bound
from audit_service.monitoring.promql import RULES, quoted
from audit_service.monitoring.rules import render, series_of
from audit_service.monitoring.statistics import STATISTICS, shares
from audit_service.workflows.processes.prometheus import installed
from audit_service.workflows.processes.promtool import RulesError, check_rules

needs_promtool = pytest.mark.skipif(
    not installed(), reason="Prometheus is not installed (apt-get install --no-install-recommends prometheus)"
)
SETTINGS = MonitoringSettings()
ROOT = Path(__file__).resolve().parents[3]


def groups_of(text: str) -> list[dict[str, Any]]:
    document = yaml.safe_load(text)
    found: list[dict[str, Any]] = document.get("spec", document)["groups"]
    return found


@needs_promtool
@pytest.mark.parametrize("format_", ["prometheus", "prometheus-operator"])
def test_promtool_accepts_what_is_rendered(baseline: DriftBaseline, format_: Any) -> None:
    text = render([baseline, baseline.model_copy(update={"model": "canary:1"})], SETTINGS, format=format_)

    assert "SUCCESS" in check_rules(text)


@needs_promtool
def test_promtools_objection_is_passed_on() -> None:
    with pytest.raises(RulesError, match="parse error"):
        check_rules("groups: [{name: a, rules: [{record: b, expr: 'sum('}]}]")


def test_every_alert_says_what_happened_and_where_the_runbook_is(baseline: DriftBaseline) -> None:
    alerts = [rule for group in groups_of(render([baseline], SETTINGS)) for rule in group["rules"] if "alert" in rule]

    assert {alert["alert"] for alert in alerts} == set(ALERTS)
    runbook = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    for alert in alerts:
        annotations = alert["annotations"]
        assert annotations["summary"]
        assert annotations["description"]
        page, _, anchor = annotations["runbook_url"].partition("#")
        assert page == "docs/runbook.md"
        assert f"## {alert['alert']}\n" in runbook
        assert anchor == alert["alert"].lower()


def test_every_signal_has_both_statistics_in_every_window() -> None:
    recorded = {
        rule["record"] for group in groups_of(render([], SETTINGS)) for rule in group["rules"] if "record" in rule
    }

    for signal in RULES:
        for statistic in STATISTICS:
            for window in ("1h", "24h"):
                assert f"model:audit_{signal}_drift_{statistic}:{window}" in recorded


def test_the_number_of_series_is_said(baseline: DriftBaseline) -> None:
    assert f"a replica adds at most {series_of(baseline)} series" in render([baseline], SETTINGS)


def series(name: str, value: float, **labels: str) -> dict[str, Any]:
    """A counter that was 0 and then rose to ``value`` within a minute."""
    chosen = ",".join(f"{key}={quoted(one)}" for key, one in labels.items())
    return {"series": f"{name}{{{chosen}}}", "values": f"0 {value}x60"}


def constant(signal: str, bin_: str, share: float, model: str) -> dict[str, Any]:
    chosen = f"model={quoted(model)},signal={quoted(signal)},bin={quoted(bin_)}"
    return {"series": f"audit_reference_share_ratio{{{chosen}}}", "values": f"{share}x61"}


@needs_promtool
@pytest.mark.parametrize("signal", ["prediction", "embedding", "influence", "confidence"])
def test_promtool_computes_the_statistics_that_numpy_computes(
    baseline: DriftBaseline, signal: str, tmp_path: Path
) -> None:
    model, random = baseline.model, np.random.default_rng(3)
    distribution = baseline.influence[0] if signal == "influence" else baseline.signals[signal]  # type: ignore[index]
    bins = list(distribution.shares)
    counts = random.integers(0, 50, (2, len(bins))).astype(float)
    inputs = [constant(signal, bin_, share, model) for bin_, share in distribution.shares.items()]
    for replica, row in enumerate(counts):
        inputs += counters(signal, bins, row, model=model, instance=str(replica))
    expected = {
        name: float(statistic(shares(counts.sum(0)), np.array(list(distribution.shares.values()))))
        for name, statistic in STATISTICS.items()
    }
    rule = RULES[signal]
    keys = f"model={quoted(model)}" + (f",by={quoted(distribution.by)}" if distribution.by else "")
    checks = []
    for name in STATISTICS:
        difference = f"abs({rule.drift(name, f'({rule.shares(None)})')} - {expected[name]!r}) < bool 1e-9"
        checks.append({"expr": difference, "eval_time": "30m", "exp_samples": [{"labels": f"{{{keys}}}", "value": 1}]})
    run_promtool(tmp_path, [{"interval": "1m", "input_series": inputs, "promql_expr_test": checks}], "groups: []")


def counters(signal: str, bins: list[str], row: np.ndarray, *, model: str, instance: str) -> list[dict[str, Any]]:
    labels = {"model": model, "instance": instance}
    if signal == "confidence":
        name = "audit_prediction_confidence_ratio"
        cumulative = [*np.cumsum(row), row.sum()]
        found = [
            series(f"{name}_bucket", value, le=upper, **labels)
            for upper, value in zip([*map(bound, CONFIDENCE_BUCKETS), "+Inf"], cumulative, strict=True)
        ]
        return [*found, series(f"{name}_count", row.sum(), **labels)]
    if signal == "influence":
        return [
            series(
                "audit_influence_share_total",
                value,
                group=one.rpartition("/")[0],
                polarity=one.rpartition("/")[2],
                **labels,
            )
            for one, value in zip(bins, row, strict=True)
        ]
    name, label = {
        "prediction": ("audit_predictions_total", "label"),
        "embedding": ("audit_embedding_cluster_total", "cluster"),
    }[signal]
    return [series(name, value, **{label: one}, **labels) for one, value in zip(bins, row, strict=True)]


def run_promtool(folder: Path, tests: list[dict[str, Any]], rules: str) -> None:
    (folder / "rules.yml").write_text(rules, encoding="utf-8")
    document = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}
    (folder / "tests.yml").write_text(yaml.safe_dump(document, allow_unicode=True, width=10_000), encoding="utf-8")
    finished = subprocess.run(["promtool", "test", "rules", str(folder / "tests.yml")], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr


@needs_promtool
@pytest.mark.parametrize(("count", "fires"), [(150, False), (300, True)])
def test_an_alert_waits_for_its_volume(baseline: DriftBaseline, tmp_path: Path, count: int, fires: bool) -> None:
    bins = list(baseline.signals["prediction"].shares)
    inputs = [
        constant("prediction", one, share, baseline.model)
        for one, share in baseline.signals["prediction"].shares.items()
    ]
    inputs += counters("prediction", bins, np.array([float(count), 0, 0]), model=baseline.model, instance="a")
    firing = 'count(ALERTS{alertname="AuditPredictionDrift",alertstate="firing",window="1h"})'
    samples = [{"labels": "{}", "value": 1}] if fires else []
    test = {
        "interval": "1m",
        "input_series": inputs,
        "promql_expr_test": [{"expr": firing, "eval_time": "10m", "exp_samples": samples}],
    }

    run_promtool(tmp_path, [test], render([baseline], SETTINGS))


def test_a_model_is_judged_by_its_own_reference(baseline: DriftBaseline) -> None:
    canary = baseline.model_copy(update={"model": "canary:1"})
    text = render([baseline, canary], SETTINGS)
    alerts = [
        rule for group in groups_of(text) for rule in group["rules"] if rule.get("alert") == "AuditPredictionDrift"
    ]

    assert {alert["labels"]["model"] for alert in alerts} == {baseline.model, "canary:1"}
    assert all(f"model={quoted(alert['labels']['model'])}" in alert["expr"] for alert in alerts)


def test_dashboards_have_fixed_uids_variables_and_different_queries() -> None:
    documents = render_all(SETTINGS)

    for uid, document in documents.items():
        assert document["uid"] == uid
        assert [one["name"] for one in document["templating"]["list"]] == ["datasource", "model"]
        asked = list(queries(document))
        assert asked
        assert all('model=~"$model"' in one for one in asked)


def test_the_committed_dashboards_are_those_that_the_code_makes() -> None:
    import json

    for uid, document in render_all(SETTINGS).items():
        file = ROOT / "configs" / "grafana" / f"{uid}.json"
        assert json.loads(file.read_text(encoding="utf-8")) == document, (
            "render them again: bento-audit dashboard render"
        )
