"""BentoML's monitoring slot: what is logged there is counted here."""

from __future__ import annotations

import bentoml
from prometheus_client import REGISTRY

OPTIONS = {"model": "slot:1", "labels": ["stays", "leaves"]}


def test_predictions_logged_through_bentomls_monitor_are_counted() -> None:
    for label, confidence in (("stays", 0.9), ("leaves", 0.6), ("elsewhere", 0.7)):
        with bentoml.monitor(
            "churn", monitor_class="audit_service.monitoring.sink.AuditMonitor", monitor_options=OPTIONS
        ) as monitor:
            monitor.log(31, "age", "feature", "numerical")
            monitor.log(label, "answer", "prediction", "categorical")
            monitor.log(confidence, "probability", "prediction", "numerical")

    def count(label: str) -> float | None:
        return REGISTRY.get_sample_value("audit_predictions_total", {"model": "slot:1", "label": label})

    assert (count("stays"), count("leaves"), count("__other__")) == (1, 1, 1)
    assert REGISTRY.get_sample_value("audit_prediction_confidence_ratio_count", {"model": "slot:1"}) == 3
