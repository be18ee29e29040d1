"""BentoML's ``monitoring`` slot as a source of the same metrics, for services that already call ``bentoml.monitor``.

::

    @bentoml.service(monitoring={
        "enabled": True,
        "type": "audit_service.monitoring.sink.AuditMonitor",
        "options": {"model": "churn:2030-01", "labels": ["stays", "leaves"]},
    })

What is logged with the role ``prediction`` counts: a categorical column is the label, a numerical one its probability.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from bentoml.monitoring import MonitorBase

from audit_service.monitoring.model_metrics import PredictionMetrics


class AuditMonitor(MonitorBase[Any]):
    """Counts predictions that are logged.

    Args:
        name: The monitor's name; the label ``model`` where no ``model`` is given.
        model: The label ``model``.
        labels: Labels that can be predicted; others count as ``__other__``.
    """

    def __init__(self, name: str, model: str | None = None, labels: Sequence[str] = (), **options: Any) -> None:
        super().__init__(name, **options)
        self._metrics = PredictionMetrics(model or name, labels)
        self._label: str | None = None
        self._confidence: str | None = None

    def export_schema(self, columns_schema: Mapping[str, Mapping[str, str]]) -> None:
        """Finds the label's column and that of its probability."""
        for column, about in columns_schema.items():
            if about.get("role") == "prediction":
                if about.get("type") == "categorical" and self._label is None:
                    self._label = column
                elif about.get("type") == "numerical" and self._confidence is None:
                    self._confidence = column

    def export_data(self, datas: Mapping[str, deque[Any]]) -> None:
        """Counts one record's rows."""
        labels = list(datas.get(self._label, ())) if self._label else []
        confidences = list(datas.get(self._confidence, ())) if self._confidence else []
        for row in range(max(len(labels), len(confidences))):
            self._metrics.predicted(
                labels[row] if row < len(labels) else None, confidences[row] if row < len(confidences) else None
            )
