"""Expressions of Prometheus: shares of the bins of a signal, and the two statistics over them.

``window`` is a time such as ``1h``; ``None`` takes the counters as they are, since the start of every process, which
is what a test can hold against all events to the last digit (``increase`` extrapolates).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from audit_service.monitoring.drift_baseline import Signal
from audit_service.monitoring.metrics import CONFIDENCE_BUCKETS, bound
from audit_service.monitoring.statistics import SMALLEST_SHARE

BY = "(?s)([^=]*)=.*"
"""What a group is grouped by; ``(?s)`` lets the dot match a newline in a group's name."""


@dataclass(frozen=True)
class SignalRule:
    """How the bins of one signal are counted.

    Attributes:
        name: The signal, and its word in the rules' names.
        keys: Labels that tell its distributions apart.
    """

    name: Signal
    keys: tuple[str, ...]

    def share_record(self, window: str) -> str:
        """Name of the rule that records the share of each bin."""
        return f"model_bin:audit_{self.name}_share:{window}"

    def drift_record(self, statistic: str, window: str) -> str:
        """Name of the rule that records a statistic."""
        return f"model:audit_{self.name}_drift_{statistic}:{window}"

    def shares(self, window: str | None) -> str:
        """Share of every bin: an expression with the labels ``keys`` and ``bin``; nothing where nothing was counted."""
        if self.name == "confidence":
            return _confidence_shares(window)
        counts = f"sum by ({', '.join((*self.keys, 'bin'))}) ({self._binned(window)})"
        return (
            f"{counts}\n/ ignoring (bin) group_left ()\n(sum by ({', '.join(self.keys)}) ({self._binned(window)}) > 0)"
        )

    def baseline(self) -> str:
        """The reference's share of every bin, with the same labels."""
        shown = f'audit_reference_share_ratio{{signal="{self.name}"}}'
        if "by" in self.keys:
            shown = f'label_replace({shown}, "by", "$1", "bin", "{BY}")'
        return f"max by ({', '.join((*self.keys, 'bin'))}) ({shown})"

    def drift(self, statistic: str, shares: str) -> str:
        """A statistic over bins, from an expression of shares (an inner one, or the name of its record)."""
        p, q = f"clamp_min({shares}, {SMALLEST_SHARE})", f"clamp_min({self.baseline()}, {SMALLEST_SHARE})"
        on = f"on ({', '.join((*self.keys, 'bin'))})"
        if statistic == "psi":
            inner = f"({p} - {on} {q})\n* {on} ln({p} / {on} {q})"
            return f"sum by ({', '.join(self.keys)}) (\n{inner}\n)"
        middle = f"(({p} + {on} {q}) / 2)"
        inner = f"{p} * {on} ln({p} / {on} {middle})\n+ {on} {q} * {on} ln({q} / {on} {middle})"
        return f"sum by ({', '.join(self.keys)}) (\n{inner}\n) / {2 * math.log(2)!r}"

    def _binned(self, window: str | None) -> str:
        if self.name == "prediction":
            return f'label_join({counted("audit_predictions_total", window)}, "bin", "", "label")'
        if self.name == "embedding":
            return f'label_join({counted("audit_embedding_cluster_total", window)}, "bin", "", "cluster")'
        joined = f'label_join({counted("audit_influence_share_total", window)}, "bin", "/", "group", "polarity")'
        return f'label_replace({joined}, "by", "$1", "group", "{BY}")'


RULES: dict[str, SignalRule] = {
    "prediction": SignalRule("prediction", ("model",)),
    "confidence": SignalRule("confidence", ("model",)),
    "embedding": SignalRule("embedding", ("model",)),
    "influence": SignalRule("influence", ("model", "by")),
}


def counted(metric: str, window: str | None, **labels: str) -> str:
    """A counter within a window, or as it is."""
    chosen = ", ".join(f"{name}={quoted(value)}" for name, value in labels.items())
    selector = metric + (f"{{{chosen}}}" if chosen else "")
    return selector if window is None else f"increase({selector}[{window}])"


def quoted(value: str) -> str:
    """``value`` as a string of PromQL."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def predictions_in(window: str | None) -> str:
    """Predictions of each model."""
    return f"sum by (model) ({counted('audit_predictions_total', window)})"


def explanations_in(window: str | None) -> str:
    """Sampled explanations of each model."""
    return f"sum by (model) ({counted('audit_influence_top_share_ratio_count', window)})"


def outside_share(window: str | None) -> str:
    """Share of the sampled explanations whose query lies outside the index."""
    outside = f"sum by (model) ({counted('audit_queries_outside_index_total', window)})"
    return f"{outside}\n/ on (model) ({explanations_in(window)} > 0)"


def _confidence_shares(window: str | None) -> str:
    # Buckets are cumulative; a bin is the difference of two, and all are of one denominator.
    name = "audit_prediction_confidence_ratio"
    total = f"(sum by (model) ({counted(f'{name}_count', window)}) > 0)"
    parts = []
    below = ""
    for upper in map(bound, CONFIDENCE_BUCKETS):
        counts = f"sum by (model) ({counted(f'{name}_bucket', window, le=upper)})"
        inner = f"({counts}{below}) / on (model) {total}"
        parts.append(f'label_replace({inner}, "bin", "{upper}", "", "")')
        below = f" - {counts}"
    return "\nor ".join(parts)
