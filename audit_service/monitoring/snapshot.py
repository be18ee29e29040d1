"""What one replica has counted since its start, compared with the baseline: ``/audit/drift``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from audit_service.monitoring.drift_baseline import Distribution, DriftBaseline
from audit_service.monitoring.metrics import CONFIDENCE_BUCKETS, bound
from audit_service.monitoring.statistics import shares

Counted = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass(frozen=True)
class Samples:
    """Samples of one model, summed over the workers of this replica.

    Attributes:
        values: Name of a sample and its labels without ``model`` -> value.
    """

    values: Counted

    @classmethod
    def of(cls, model: str) -> Samples:
        """Reads the metrics store of this replica; takes milliseconds, so not on an event loop."""
        registry = REGISTRY
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        found: Counted = {}
        for family in registry.collect():
            if not family.name.startswith("audit_"):
                continue
            for sample in family.samples:
                labels = dict(sample.labels)
                if labels.pop("model", None) == model:
                    found[sample.name, frozenset(labels.items())] = sample.value
        return cls(found)

    def value(self, name: str, **labels: str) -> float:
        """One sample's value; 0 where there is none."""
        return self.values.get((name, frozenset(labels.items())), 0.0)

    def by(self, name: str, label: str) -> dict[str, float]:
        """Values of one metric by one of its labels."""
        found: dict[str, float] = {}
        for (sample, labels), value in self.values.items():
            if sample == name:
                key = dict(labels).get(label, "")
                found[key] = found.get(key, 0.0) + value
        return found


def snapshot(model: str, baseline: DriftBaseline | None, reason: str | None) -> dict[str, Any]:
    """The drift of every signal since this replica's start.

    Args:
        model: The label ``model``.
        baseline: What to hold the counts against.
        reason: Why there is no baseline, where there is none.
    """
    samples = Samples.of(model)
    predictions = sum(samples.by("audit_predictions_total", "label").values())
    explanations = samples.value("audit_influence_top_share_ratio_count")
    found: dict[str, Any] = {
        "model": model,
        "reference": None,
        "reason": reason,
        "predictions": int(predictions),
        "explanations": int(explanations),
        "outside_index": None,
        "signals": [],
        "outcomes": _outcomes(samples),
    }
    if baseline is None:
        return found
    found["reference"] = {
        "digest": baseline.digest,
        "created": baseline.created,
        "predictions": baseline.predictions,
        "explanations": baseline.explanations,
    }
    if baseline.outside_index is not None:
        share = samples.value("audit_queries_outside_index_total") / explanations if explanations else None
        found["outside_index"] = {
            "share": share,
            "reference": baseline.outside_index.share,
            "threshold": baseline.outside_index.level(explanations, "share"),
            "moved": share is not None
            and explanations >= baseline.minimum_explanations
            and share > baseline.outside_index.level(explanations, "share"),
        }
    signals: list[tuple[str, Distribution, float]] = [
        (signal, one, predictions) for signal, one in baseline.signals.items()
    ]
    signals += [("influence", one, explanations) for one in baseline.influence]
    for signal, one, volume in signals:
        counts = _counts(samples, signal)
        observed = shares(np.array([counts.get(bin_, 0.0) for bin_ in one.shares]))
        found["signals"].append(one.compare(signal, observed, int(volume)))
    return found


def _counts(samples: Samples, signal: str) -> dict[str, float]:
    if signal == "prediction":
        return samples.by("audit_predictions_total", "label")
    if signal == "embedding":
        return samples.by("audit_embedding_cluster_total", "cluster")
    if signal == "confidence":
        return histogram_bins(samples, "audit_prediction_confidence_ratio")
    found: dict[str, float] = {}
    for (name, labels), value in samples.values.items():
        if name == "audit_influence_share_total":
            chosen = dict(labels)
            found[f"{chosen['group']}/{chosen['polarity']}"] = value
    return found


def histogram_bins(samples: Samples, name: str, **labels: str) -> dict[str, float]:
    """Counts of each bin of a histogram of probabilities: differences of its cumulative buckets."""
    found, below = {}, 0.0
    for upper in map(bound, CONFIDENCE_BUCKETS):
        cumulative = samples.value(f"{name}_bucket", le=upper, **labels)
        found[upper] = cumulative - below
        below = cumulative
    return found


def _outcomes(samples: Samples) -> dict[str, Any]:
    right, wrong = ({}, {})  # type: tuple[dict[str, float], dict[str, float]]
    for (name, labels), value in samples.values.items():
        if name == "audit_outcomes_total":
            chosen = dict(labels)
            (right if chosen["outcome"] == "right" else wrong)[chosen["label"]] = value
    by_label = {
        label: {
            "examples": int(right.get(label, 0) + wrong.get(label, 0)),
            "accuracy": right.get(label, 0) / (right.get(label, 0) + wrong.get(label, 0)),
        }
        for label in sorted({*right, *wrong})
        if right.get(label, 0) + wrong.get(label, 0)
    }
    bins = {
        outcome: histogram_bins(samples, "audit_outcome_confidence_ratio", outcome=outcome)
        for outcome in ("right", "wrong")
    }
    calibration = [
        {
            "confidence_up_to": upper,
            "examples": int(bins["right"][upper] + bins["wrong"][upper]),
            "accuracy": bins["right"][upper] / (bins["right"][upper] + bins["wrong"][upper]),
        }
        for upper in bins["right"]
        if bins["right"][upper] + bins["wrong"][upper]
    ]
    return {"by_label": by_label, "calibration": calibration}
