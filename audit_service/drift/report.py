"""A drift report over any set of inputs: statistics with tests, groups that gained and lost, inputs that moved it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from audit_service.drift.signals import Explained, Predicted, group_bins, group_events, not_finite, one_hot
from audit_service.monitoring.drift_baseline import Distribution, DriftBaseline, confidence_bin
from audit_service.monitoring.finite import finite, finite_json
from audit_service.monitoring.metrics import CONFIDENCE_BUCKETS, bound
from audit_service.monitoring.statistics import SMALLEST_SHARE
from influence_engine.tasks import Array

MOST_INPUTS = 12
LEAST_EXPECTED = 5.0
"""A chi-square test is rough where a bin is expected to hold fewer events; such bins are tested together."""


def drift_report(
    baseline: DriftBaseline,
    texts: Sequence[str],
    predicted: Predicted,
    explained: Explained,
    explained_rows: Sequence[int],
    outcomes: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Holds inputs against the baseline.

    Args:
        baseline: Of the model and index that predicted and explained.
        texts: What to show of each input.
        predicted: Predictions of the inputs.
        explained: Explanations of some of them.
        explained_rows: Which ones.
        outcomes: Predictions whose true label is known: ``label``, ``predicted``, ``confidence``, ``groups``.

    Returns:
        A JSON value: ``signals`` with statistics, thresholds, a test each and bins; ``groups`` that gained and lost
        influence; ``outside_index``; ``inputs`` that moved the signals most; ``outcomes``; and how many values of each
        signal were ``left_out``, as they are no finite numbers.
    """
    events = _events(baseline, predicted)
    signals = [_signal(name, baseline.signals[name], found, baseline.predictions) for name, found in events.items()]
    groups = []
    for one in baseline.influence:
        found = group_events(explained, one.by, group_bins(_groups(one)))
        signals.append(_signal("influence", one, found, baseline.explanations, counts=False))
        groups.extend(_group_changes(one, found, baseline.explanations))
    return {
        "model": baseline.model,
        "reference": {"digest": baseline.digest, "created": baseline.created},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "inputs_read": len(predicted),
        "inputs_explained": len(explained),
        "tier": explained.tier,
        "signals": signals,
        "groups": sorted(groups, key=lambda one: -abs(one["change"])),
        "outside_index": _outside(baseline, explained),
        "inputs": _moving_inputs(baseline, texts, predicted, events, explained, explained_rows),
        "outcomes": back_test(baseline, outcomes),
        "left_out": not_finite(predicted, explained),
    }


def _events(baseline: DriftBaseline, predicted: Predicted) -> dict[Any, Array]:
    """What each input adds to the bins of each signal, ``[inputs, bins]``."""
    values: dict[Any, Sequence[object]] = {
        "prediction": predicted.labels,
        "confidence": [
            None if (found := finite(one)) is None else confidence_bin(found) for one in predicted.confidences
        ],
    }
    nearest = baseline.nearest_centre()
    if nearest is not None and predicted.features is not None:
        values["embedding"] = nearest.of(predicted.features)
    return {
        name: one_hot(found, list(baseline.signals[name].shares))
        for name, found in values.items()
        if name in baseline.signals
    }


def _signal(
    name: str, distribution: Distribution, events: Array, reference_events: int, *, counts: bool = True
) -> dict[str, Any]:
    expected = np.array(list(distribution.shares.values()))
    observed = events.mean(0) if len(events) else np.zeros(len(expected))
    test = _chi_square(events.sum(0), expected * reference_events) if counts and len(events) else None
    return {**distribution.compare(name, observed, len(events)), "test": test}


def _chi_square(observed: Array, baseline: Array) -> dict[str, Any] | None:
    """Whether two tables of counts may be of one distribution."""
    table = np.stack([observed, baseline])
    expected = table.sum(0) * (table.sum(1).min() / table.sum())
    few = expected < LEAST_EXPECTED
    merged = table[:, ~few]
    if few.any() and table[:, few].sum() > 0:
        merged = np.column_stack([merged, table[:, few].sum(1)])
    if merged.shape[1] < 2:
        return None
    found = stats.chi2_contingency(merged, correction=False)
    return {"name": "chi-square", "statistic": float(found.statistic), "p_value": float(found.pvalue)}


def _groups(distribution: Distribution) -> list[str]:
    return list(dict.fromkeys(bin_.rpartition("/")[0] for bin_ in distribution.shares))


def _group_changes(distribution: Distribution, events: Array, reference_events: int) -> list[dict[str, Any]]:
    """Each group's share of influence, now and in the baseline, with Welch's test of the difference."""
    bins = list(distribution.shares)
    found = []
    for group in _groups(distribution):
        columns = [number for number, bin_ in enumerate(bins) if bin_.rpartition("/")[0] == group]
        shares = events[:, columns].sum(1)
        before = sum(distribution.shares[bins[column]] for column in columns)
        if not len(shares) or (before == 0 and not shares.any()):
            continue
        # The baseline keeps no single events; their spread is taken to be that of these.
        spread = float(shares.std(ddof=1)) if len(shares) > 1 else 0.0
        p_value = None
        if spread > 0:
            p_value = float(
                stats.ttest_ind_from_stats(
                    float(shares.mean()), spread, len(shares), before, spread, reference_events, equal_var=False
                ).pvalue
            )
        found.append(
            {
                "by": distribution.by,
                "group": group.partition("=")[2],
                "share": float(shares.mean()),
                "reference": before,
                "change": float(shares.mean()) - before,
                "p_value": p_value,
            }
        )
    return found


def _outside(baseline: DriftBaseline, explained: Explained) -> dict[str, Any] | None:
    known = [bool(one) for one in explained.outside if one is not None]
    if baseline.outside_index is None or not known:
        return None
    before = baseline.outside_index.share
    level = baseline.outside_index.level(len(known), "share")
    count = sum(known)
    test = stats.binomtest(count, len(known), max(before, 1 / (baseline.explanations + 2)), alternative="greater")
    return {
        "share": count / len(known),
        "reference": before,
        "threshold": level,
        "moved": len(known) >= baseline.minimum_explanations and count / len(known) > level,
        "test": {"name": "binomial", "p_value": float(test.pvalue)},
    }


def _moving_inputs(
    baseline: DriftBaseline,
    texts: Sequence[str],
    predicted: Predicted,
    events: Mapping[Any, Array],
    explained: Explained,
    explained_rows: Sequence[int],
) -> list[dict[str, Any]]:
    """The inputs whose bins gained most, over all signals: ``sum ln(share now / share in the baseline)``."""
    scores = np.zeros(len(predicted))
    why: list[list[str]] = [[] for _ in range(len(predicted))]
    for name, found in events.items():
        bins = list(baseline.signals[name].shares)
        now = np.maximum(found.mean(0), SMALLEST_SHARE)
        before = np.maximum(np.array(list(baseline.signals[name].shares.values())), SMALLEST_SHARE)
        gains = np.log(now / before)
        places = found.argmax(1)
        scores += np.where(found.any(1), gains[places], 0)
        for row, place in enumerate(places):
            if found[row].any() and gains[place] > 0.1:
                why[row].append(f"{name} {bins[place]}")
    for row, outside in zip(explained_rows, explained.outside, strict=False):
        if outside:
            scores[row] += 1.0
            why[row].append("outside the index")
    order = np.argsort(-scores, kind="stable")[:MOST_INPUTS]
    return [
        {
            "text": texts[row],
            "label": predicted.labels[row],
            "confidence": finite(predicted.confidences[row]),
            **_whole(predicted, row),
            "score": float(scores[row]),
            "why": why[row],
        }
        for row in order.tolist()
        if scores[row] > 0
    ]


def _whole(predicted: Predicted, row: int) -> dict[str, Any]:
    """All that was predicted of an input, where there is no label to show of it."""
    known = predicted.labels[row] is None and bool(predicted.predictions)
    return {"prediction": finite_json(predicted.predictions[row])} if known else {}


def back_test(baseline: DriftBaseline, outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Accuracy and calibration of predictions whose true label is known, against the held-out examples."""
    if not outcomes:
        return None
    right = [one["label"] == one["predicted"] for one in outcomes]
    before = baseline.outcomes.get("accuracy")
    by: dict[str, list[bool]] = {}
    for one, is_right in zip(outcomes, right, strict=True):
        by.setdefault(f"label={one['label']}", []).append(is_right)
        for column, value in one["groups"].items():
            by.setdefault(f"{column}={value}", []).append(is_right)
    calibration = []
    for upper in map(bound, CONFIDENCE_BUCKETS):
        rows = [
            (one["confidence"], is_right)
            for one, is_right in zip(outcomes, right, strict=True)
            if finite(one["confidence"]) is not None and confidence_bin(one["confidence"]) == upper
        ]
        if rows:
            calibration.append(
                {
                    "confidence_up_to": float(upper),
                    "examples": len(rows),
                    "mean_confidence": sum(value for value, _ in rows) / len(rows),
                    "accuracy": sum(is_right for _, is_right in rows) / len(rows),
                }
            )
    error = sum(abs(one["mean_confidence"] - one["accuracy"]) * one["examples"] for one in calibration)
    counted = sum(one["examples"] for one in calibration)
    return {
        "examples": len(right),
        "accuracy": sum(right) / len(right),
        "reference_accuracy": before,
        "test": None
        if before is None
        else {"name": "binomial", "p_value": float(stats.binomtest(sum(right), len(right), before).pvalue)},
        "groups": [
            {"group": group, "examples": len(found), "accuracy": sum(found) / len(found)}
            for group, found in sorted(by.items())
        ],
        "calibration": calibration,
        "calibration_error": error / counted if counted else None,
    }
