"""Builds the drift baseline: distributions of the signals on held-out data, with thresholds by bootstrap."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from audit_service.config import AuditConfig
from audit_service.drift.signals import (
    Explained,
    Predicted,
    binned,
    group_bins,
    group_events,
    not_finite,
    one_hot,
    shares_of,
    watched,
)
from audit_service.monitoring.drift_baseline import (
    Distribution,
    DriftBaseline,
    OutsideIndex,
    confidence_bin,
    top_share_bin,
)
from audit_service.monitoring.metrics import CONFIDENCE_BUCKETS, TOP_SHARE_BUCKETS, bound, model_label
from audit_service.monitoring.statistics import NearestCentre, clusters_of, rate_threshold, thresholds
from audit_service.monitoring.values import MAX_VALUES, admitted
from influence_engine.errors import DataError
from influence_engine.tasks import Array

FEWEST_EXAMPLES = 20

TIERS = (1, 2, 5, 20)
"""Thresholds are calibrated for so many times the minimum volume: a small drift shows once enough has been seen."""

SEEN_OPTIMISM = 4.0
"""So much rarer inputs may lie outside the index when it is they that it learnt from what lies outside: 1.0% of the
demo's validation snippets, 3.4% of others (`python benchmarks/drift_alerts.py`)."""


@dataclass(frozen=True)
class HeldOut:
    """What is known of the held-out inputs that a baseline is made of.

    Attributes:
        predicted: Their predictions.
        explained: Their explanations.
        truths: The true labels of the predicted inputs, where they are known.
        unseen: Explanations of inputs that the index has not seen either: it learnt from the other ones what lies
            outside, so that of those one in a hundred does by construction.
    """

    predicted: Predicted
    explained: Explained
    truths: Sequence[str | None] = ()
    unseen: Explained | None = None


def build_baseline(
    config: AuditConfig,
    held_out: HeldOut,
    *,
    model_digest: str,
    index_digest: str,
    labels: Sequence[str] = (),
) -> DriftBaseline:
    """The baseline of a model and an index.

    Args:
        config: Names the model, and says gates and rates.
        held_out: How the model answered held-out inputs.
        model_digest: Of the weights.
        index_digest: ``build_digest`` of the index.
        labels: Labels that can be predicted, where the task says.

    Raises:
        DataError: too few held-out examples, or what the model says of one is no finite number.
    """
    settings, predicted, explained = config.monitoring, held_out.predicted, held_out.explained
    if min(len(predicted), len(explained)) < FEWEST_EXAMPLES:
        raise DataError(
            f"a baseline needs at least {FEWEST_EXAMPLES} held-out examples, there are {len(predicted)}; name more in "
            "data.validation",
            field="data.validation",
        )
    if broken := not_finite(predicted, explained):
        found = " and ".join(f"{count} of {signal}" for signal, count in broken.items())
        raise DataError(
            f"a baseline is of finite numbers, and of the held-out examples' values {found} are NaN or infinite: "
            "predict these examples and see which the model fails on",
            field="data.validation",
        )

    def distribution(events: Array, bins: Sequence[str], volume: int, by: str = "") -> Distribution:
        return Distribution(
            by=by,
            shares=dict(shares_of(events, bins)),
            thresholds=_levels({one: thresholds(events, one, settings.false_alarm_rate) for one in tiers(volume)}),
        )

    signals: dict[Any, Distribution] = {}
    known = [label for label in predicted.labels if label is not None]
    if known:
        bins = admitted([*labels, *sorted(set(known))])
        signals["prediction"] = distribution(one_hot(known, bins), bins, settings.minimum_predictions)
    confidences = binned(predicted.confidences, confidence_bin)
    if confidences:
        bins = list(map(bound, CONFIDENCE_BUCKETS))
        signals["confidence"] = distribution(one_hot(confidences, bins), bins, settings.minimum_predictions)
    centres: Array | None = None
    if predicted.features is not None:
        centres = clusters_of(predicted.features, settings.clusters)
        bins = [str(number) for number in range(len(centres))]
        nearest = NearestCentre(centres).of(predicted.features)
        signals["embedding"] = distribution(one_hot(nearest, bins), bins, settings.minimum_predictions)
    columns = explained.by()
    influence = []
    for by in columns:
        # All columns share the values of one label.
        bins = group_bins(watched(explained, by, MAX_VALUES // len(columns)))
        events = group_events(explained, by, bins)
        influence.append(distribution(events, bins, settings.minimum_explanations, by))
    tops = list(map(bound, TOP_SHARE_BUCKETS))
    baseline = DriftBaseline(
        model=model_label(config.name, model_digest),
        model_digest=model_digest,
        index_digest=index_digest,
        tier=explained.tier,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        predictions=len(predicted),
        explanations=len(explained),
        minimum_predictions=settings.minimum_predictions,
        minimum_explanations=settings.minimum_explanations,
        false_alarm_rate=settings.false_alarm_rate,
        signals=signals,
        influence=influence,
        outside_index=_outside(explained, held_out.unseen, settings.minimum_explanations, settings.false_alarm_rate),
        top_share=dict(shares_of(one_hot(binned(explained.top_shares, top_share_bin), tops), tops)),
        centres=[] if centres is None else centres.tolist(),
        outcomes=_outcomes(predicted, held_out.truths),
    )
    return baseline.model_copy(update={"digest": baseline.content_digest()})


def tiers(minimum: int) -> list[int]:
    """Volumes for which thresholds are calibrated."""
    return [minimum * times for times in TIERS]


def _levels(by_volume: Mapping[int, Mapping[str, float]]) -> dict[str, dict[int, float]]:
    """Volume -> statistic -> value, as statistic -> volume -> value."""
    names = {name: None for found in by_volume.values() for name in found}
    return {name: {volume: found[name] for volume, found in by_volume.items()} for name in names}


def _outside(
    explained: Explained, unseen: Explained | None, minimum: int, false_alarm_rate: float
) -> OutsideIndex | None:
    source = explained if unseen is None else unseen
    known = [float(outside) for outside in source.outside if outside is not None]
    if not known:
        return None
    events = np.array(known)
    optimism = SEEN_OPTIMISM if unseen is None else 1.0
    levels = {
        volume: {"share": rate_threshold(events, volume, false_alarm_rate, optimism=optimism)}
        for volume in tiers(minimum)
    }
    return OutsideIndex(share=float(events.mean()), thresholds=_levels(levels))


def _outcomes(predicted: Predicted, truths: Sequence[str | None]) -> Mapping[str, Any]:
    pairs = [(t, p) for t, p in zip(truths, predicted.labels, strict=False) if t is not None and p is not None]
    if not pairs:
        return {}
    labels = sorted({truth for truth, _ in pairs})
    by_label = {}
    for label in labels:
        mine = [truth == guess for truth, guess in pairs if truth == label]
        by_label[label] = {"examples": len(mine), "accuracy": sum(mine) / len(mine)}
    return {"examples": len(pairs), "accuracy": sum(t == p for t, p in pairs) / len(pairs), "by_label": by_label}
