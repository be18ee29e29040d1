"""Recording rules and alerts as Prometheus reads them, and how many series a replica adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import yaml

from audit_service.config import MonitoringSettings
from audit_service.monitoring import metrics
from audit_service.monitoring.alerts import alert_groups
from audit_service.monitoring.drift_baseline import DriftBaseline
from audit_service.monitoring.finite import Metric
from audit_service.monitoring.promql import RULES, explanations_in, outside_share, predictions_in
from audit_service.monitoring.statistics import STATISTICS
from audit_service.monitoring.values import admitted

Format = Literal["prometheus", "prometheus-operator"]


def recording_group(window: str) -> dict[str, Any]:
    """The recording rules of one window, in an order in which each finds what it reads."""
    rules = [
        {"record": f"model:audit_prediction_volume:{window}", "expr": predictions_in(window)},
        {"record": f"model:audit_explanation_volume:{window}", "expr": explanations_in(window)},
        {"record": f"model:audit_queries_outside_index_share:{window}", "expr": outside_share(window)},
    ]
    for rule in RULES.values():
        rules.append({"record": rule.share_record(window), "expr": rule.shares(window)})
        for statistic in STATISTICS:
            expression = rule.drift(statistic, rule.share_record(window))
            rules.append({"record": rule.drift_record(statistic, window), "expr": expression})
    return {"name": f"audit_drift_{window}", "rules": rules}


def rule_groups(baselines: Sequence[DriftBaseline], settings: MonitoringSettings) -> list[dict[str, Any]]:
    """All groups of rules: those that record hold for every model, drift alerts for those of ``baselines``."""
    return [*map(recording_group, settings.windows), *alert_groups(baselines, settings)]


def render(baselines: Sequence[DriftBaseline], settings: MonitoringSettings, *, format: Format = "prometheus") -> str:
    """The rules as YAML; in front, as a comment, what they are and what they cost.

    Args:
        baselines: Of the models whose drift is to raise alerts.
        settings: Windows, gates and links.
        format: A file for Prometheus's ``rule_files``, or a ``PrometheusRule`` for its operator.
    """
    groups = rule_groups(baselines, settings)
    document: dict[str, Any] = {"groups": groups}
    if format == "prometheus-operator":
        document = {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": {"name": "bento-audit", "labels": {"app.kubernetes.io/name": "bento-audit"}},
            "spec": document,
        }
    facts = [
        f"{clean_line(baseline.model)}: baseline {baseline.digest[:12]} of {baseline.predictions} predictions "
        f"and {baseline.explanations} explanations; a replica adds at most {series_of(baseline)} series."
        for baseline in baselines
    ]
    comment = "".join(f"# {line}\n" for line in ("Rendered by `bento-audit rules render`.", *facts))
    return comment + yaml.dump(
        document, Dumper=_Readable, sort_keys=False, allow_unicode=True, width=120, default_flow_style=False
    )


def series_of(baseline: DriftBaseline, *, outcome_groups: Sequence[str] = ()) -> int:
    """Series that one replica with this baseline exposes at most, however many workers it has."""

    def histogram(bounds: Sequence[float]) -> int:
        return len(bounds) + 1 + 2  # +Inf; _count and _sum

    labels = len(admitted(one for one in baseline.labels))
    by: dict[str, int] = {}
    for group in baseline.groups:
        by[group.partition("=")[0]] = by.get(group.partition("=")[0], 0) + 1
    # Where prometheus_client also shows when a counter was made it does so only outside multi-process mode.
    explanations = 2 * (len(metrics.TIERS) - 1) + len(metrics.OUTCOMES) - 1
    return sum(
        (
            labels,
            histogram(metrics.CONFIDENCE_BUCKETS),
            len(baseline.centres),
            sum(2 * count for count in by.values()),
            histogram(metrics.TOP_SHARE_BUCKETS),
            1,  # outside the index
            sum(1 for _ in baseline.bins()),
            explanations,
            len(metrics.STAGES) * histogram(metrics.DURATION_BUCKETS),
            len(metrics.JOB_STATES),
            3,  # index info, rows, created
            len(metrics.PREDICTING_TIERS) * len(metrics.CHANGES) * histogram(metrics.FIDELITY_BUCKETS),
            len(metrics.DROP_REASONS) + 1,
            1,  # records that could not be written
            2 * labels,
            2 * len(admitted(outcome_groups)),
            2 * histogram(metrics.CONFIDENCE_BUCKETS),
            sum(isinstance(one, Metric) for one in vars(metrics).values()),  # values left out of each
        )
    )


def clean_line(text: str) -> str:
    """``text`` on one line, for a comment."""
    return " ".join(text.split())


class _Readable(yaml.SafeDumper):
    """Writes texts of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Readable.add_representer(str, _text)
