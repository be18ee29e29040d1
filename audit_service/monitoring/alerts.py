"""Alerts: drift beyond what baseline traffic shows, slow explanations, a stale index, lost records and values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from audit_service.config import MonitoringSettings
from audit_service.monitoring.drift_baseline import Distribution, DriftBaseline
from audit_service.monitoring.finite import LEFT_OUT
from audit_service.monitoring.promql import RULES, quoted

ALERTS = (
    "AuditPredictionDrift",
    "AuditInfluenceDrift",
    "AuditExplainLatencyHigh",
    "AuditIndexStale",
    "AuditRecordsWait",
    "AuditRecordsDropped",
    "AuditValuesLeftOut",
)


def drift_alerts(baseline: DriftBaseline, settings: MonitoringSettings, window: str) -> Iterator[dict[str, Any]]:
    """The drift alerts of one model: each signal against its own threshold, gated on volume."""
    for signal, distribution in baseline.signals.items():
        yield _drift_alert("AuditPredictionDrift", signal, distribution, baseline, settings, window)
    for distribution in baseline.influence:
        yield _drift_alert("AuditInfluenceDrift", "influence", distribution, baseline, settings, window)
    if baseline.outside_index is not None:
        model = f"{{model={quoted(baseline.model)}}}"
        yield _alert(
            "AuditInfluenceDrift",
            _exceeds(
                f"model:audit_queries_outside_index_share:{window}{model}",
                f"model:audit_explanation_volume:{window}{model}",
                baseline.outside_index.steps("share"),
            ),
            settings,
            {"model": baseline.model, "signal": "outside_index", "window": window},
            summary="More inputs of {{ $labels.model }} than usual lie outside its training data",
            description=(
                f"{{{{ $value | humanizePercentage }}}} of the sampled predictions of the last {window} have a "
                "gradient of which the index keeps less than of 99% of held-out examples; of the reference's inputs it "
                f"were {baseline.outside_index.share:.1%}. Explanations of such inputs say little."
            ),
        )


def service_alerts(settings: MonitoringSettings) -> list[dict[str, Any]]:
    """The alerts that need no baseline; they are of every model."""
    total = 'audit_explanation_duration_seconds{suffix}{{stage="total"}}[10m]'
    return [
        _alert(
            "AuditExplainLatencyHigh",
            "histogram_quantile(0.95, sum by (model, le) (rate("
            + total.format(suffix="_bucket")
            + f"))) > {settings.explain_latency_s:g}\nand on (model) sum by (model) (increase("
            + total.format(suffix="_count")
            + ")) >= 20",
            settings,
            {},
            summary="Explanations of {{ $labels.model }} are slow",
            description=(
                "95% of the explanations of the last ten minutes took up to {{ $value | humanizeDuration }}; "
                f"{settings.explain_latency_s:g} s are allowed. Predictions are not affected."
            ),
        ),
        _alert(
            "AuditIndexStale",
            "time() - max by (model) (audit_index_created_timestamp_seconds > 0) > "
            f"{settings.stale_after_s}\nand on (model) max by (model) (audit_index_rows) > 0",
            settings,
            {},
            summary="The index of {{ $labels.model }} is old",
            description=(
                "It was built {{ $value | humanizeDuration }} ago; "
                f"{settings.stale_after} are allowed. What was learnt since is missing from explanations."
            ),
        ),
        _alert(
            "AuditRecordsWait",
            "sum by (model) (increase(audit_record_write_failures_total[5m])) > 0",
            settings,
            {},
            summary="Predictions of {{ $labels.model }} cannot be put on record",
            description=(
                "{{ $value | humanize }} attempts to write records failed in the last five minutes. Records wait in "
                "memory, ten thousand for each worker; what comes then is lost."
            ),
        ),
        _alert(
            "AuditRecordsDropped",
            'sum by (model, reason) (increase(audit_records_dropped_total{reason!~"sample_.*"}[15m])) > 0',
            settings,
            {"severity": "critical"},
            summary="Predictions of {{ $labels.model }} are missing from the record",
            description=(
                "About {{ $value | humanize }} predictions of the last 15 minutes were answered but not recorded: "
                "{{ $labels.reason }}."
            ),
        ),
        _alert(
            "AuditValuesLeftOut",
            f"sum by (model, metric) (increase({LEFT_OUT}[15m])) > 0",
            settings,
            {},
            summary="{{ $labels.model }} answers with numbers that are not finite",
            description=(
                "About {{ $value | humanize }} values of the last 15 minutes were NaN or infinite and are missing from "
                "{{ $labels.metric }}."
            ),
        ),
    ]


def _drift_alert(
    name: str,
    signal: str,
    distribution: Distribution,
    baseline: DriftBaseline,
    settings: MonitoringSettings,
    window: str,
) -> dict[str, Any]:
    model = quoted(baseline.model)
    chosen = f"{{model={model}, by={quoted(distribution.by)}}}" if distribution.by else f"{{model={model}}}"
    of_influence = signal == "influence"
    volume = "explanation" if of_influence else "prediction"
    minimum = baseline.minimum_explanations if of_influence else baseline.minimum_predictions
    what = f"influence by {distribution.by}" if of_influence else signal
    return _alert(
        name,
        _exceeds(
            f"{RULES[signal].drift_record('psi', window)}{chosen}",
            f"model:audit_{volume}_volume:{window}{{model={model}}}",
            distribution.steps(),
        ),
        settings,
        {
            "model": baseline.model,
            "signal": signal,
            **({"by": distribution.by} if distribution.by else {}),
            "window": window,
        },
        summary=f"The {what} of {{{{ $labels.model }}}} has moved",
        description=(
            f"The population stability index of {what} over the last {window} is {{{{ $value | humanize }}}}. Of "
            f"baseline traffic, {minimum} {volume}s exceed {distribution.level(minimum):.3g} in "
            f"{baseline.false_alarm_rate:.2g} of all windows, and more of them less."
        ),
    )


def _exceeds(value: str, volume: str, steps: Sequence[tuple[int, float]]) -> str:
    """An expression: ``value`` exceeds the threshold that holds for this ``volume``."""
    return "\nor ".join(f"({value} > {threshold:.6g} and on (model) {volume} >= {least})" for least, threshold in steps)


def _alert(
    name: str,
    expression: str,
    settings: MonitoringSettings,
    labels: dict[str, str],
    *,
    summary: str,
    description: str,
) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expression,
        "for": settings.alert_for,
        "labels": {"severity": "warning", **labels},
        "annotations": {
            "summary": summary,
            "description": description,
            "runbook_url": f"{settings.runbook}#{name.lower()}",
        },
    }


def alert_groups(baselines: Sequence[DriftBaseline], settings: MonitoringSettings) -> list[dict[str, Any]]:
    """The rule groups of all alerts."""
    drift = [
        alert
        for window in settings.windows
        for baseline in baselines
        for alert in drift_alerts(baseline, settings, window)
    ]
    groups = [{"name": "audit_service_alerts", "rules": service_alerts(settings)}]
    return [{"name": "audit_drift_alerts", "rules": drift}, *groups] if drift else groups
