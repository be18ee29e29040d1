"""The signals of a set of inputs: predictions, confidences, clusters, influence by group; one event a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from audit_service.monitoring.finite import finite
from audit_service.monitoring.model_metrics import other_group, shares_by_group
from audit_service.monitoring.values import MAX_VALUES, OTHER, clean
from audit_service.prediction.predictor import OnnxPredictor
from influence_engine.attribution.attributor import Attributor, Tier
from influence_engine.attribution.result import Attribution
from influence_engine.progress import Progress, silent
from influence_engine.resources import to_device
from influence_engine.tasks import (
    Array,
    Example,
    batches_of_like_size,
    predictions_of,
    projection_of,
    without_targets,
)

TOP_K = 10
BATCH = 16


@dataclass(frozen=True)
class Predicted:
    """Predictions of some inputs.

    Attributes:
        labels: Predicted labels, or what stands for them; ``None`` where the task tells none.
        confidences: Their probabilities.
        features: ``[inputs, width]``, or ``None`` where the model has none.
        predictions: All that was predicted, where that is known.
    """

    labels: list[str | None]
    confidences: list[float | None]
    features: Array | None = None
    predictions: list[Mapping[str, Any] | None] = field(default_factory=list)

    @classmethod
    def of(
        cls, task: object, predictions: Sequence[Mapping[str, Any] | None], features: Array | None = None
    ) -> Predicted:
        """Predictions as the task projects them to a label and a confidence."""
        seen = [projection_of(task, one) for one in predictions]
        return cls([one.label for one in seen], [one.confidence for one in seen], features, [*predictions])

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Explained:
    """Explanations of some inputs.

    Attributes:
        tier: Of their influences.
        groups: For each input ``(by, group, polarity)`` -> share; see ``shares_by_group``.
        top_shares: Share of all influence that the ten strongest examples carry.
        outside: Whether the input lies outside what the index knows; ``None`` where that is not known.
    """

    tier: str
    groups: list[dict[tuple[str, str, str], float]]
    top_shares: list[float]
    outside: list[bool | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.groups)

    def by(self) -> list[str]:
        """What training examples are grouped by."""
        return sorted({by for one in self.groups for by, _, _ in one})


class FeatureCatcher:
    """Keeps the features that a predictor observes."""

    def __init__(self) -> None:
        self.caught: list[Array] = []

    def __call__(self, features: Array) -> None:
        """Keeps one batch."""
        self.caught.append(features.copy())

    def all(self) -> Array | None:
        """All of them, ``[inputs, width]``, or ``None`` where there were none."""
        return np.concatenate(self.caught) if self.caught else None


def predict_all(
    predictor: OnnxPredictor,
    catcher: FeatureCatcher,
    examples: Sequence[Example],
    progress: Progress = silent,
    *,
    task: object = None,
) -> Predicted:
    """Predicts each example by itself, as a server does.

    Args:
        predictor: A predictor that ``catcher`` observes.
        catcher: Catches the features.
        examples: Inputs.
        progress: Reports every hundredth.
        task: Projects predictions to a label and a confidence; left out, they are read as they are called.
    """
    found: list[Mapping[str, Any] | None] = []
    for number, example in enumerate(examples, 1):
        found += predictor.predict([example])
        if number % 100 == 0 or number == len(examples):
            progress("predictions", number, len(examples))
    return Predicted.of(task, found, catcher.all())


def predict_with_torch(attributor: Attributor, examples: Sequence[Example], progress: Progress = silent) -> Predicted:
    """Predicts with the model that explains, for a task that is not exported; without features.

    Args:
        attributor: Has the model.
        examples: Inputs.
        progress: Reports every batch.
    """
    task, found = attributor.task, dict[int, Mapping[str, Any] | None]()
    for places in batches_of_like_size(task, examples, BATCH):
        batch = to_device(task.collate([examples[place] for place in places]), attributor.device)
        with torch.no_grad():
            found |= dict(zip(places, predictions_of(task, task.outputs(attributor.model, batch), batch), strict=True))
        progress("predictions", len(found), len(examples))
    return Predicted.of(task, [found[place] for place in range(len(examples))])


def explain_all(
    attributor: Attributor,
    examples: Sequence[Example],
    *,
    tier: Tier,
    group_by: Sequence[str],
    progress: Progress = silent,
) -> tuple[Explained, Predicted]:
    """Explains what the model predicts of each example.

    Args:
        attributor: Explains.
        examples: Inputs; a target that one has is left out, as a served input has none.
        tier: Of the influences.
        group_by: ``label``, ``source`` or metadata columns.
        progress: Reports every batch.

    Returns:
        The explanations, and the predictions that torch made on the way.
    """
    queries = without_targets(attributor.task, examples)
    found: dict[int, Attribution] = {}
    for places in batches_of_like_size(attributor.task, queries, BATCH):
        asked = [queries[place] for place in places]
        answers = attributor.attribute(asked, top_k=TOP_K, tier=tier, group_by=list(group_by))
        found |= dict(zip(places, answers, strict=True))
        progress("explanations", len(found), len(queries))
    ordered = [found[place] for place in range(len(queries))]
    explained = Explained(
        ordered[0].tier if ordered else str(tier),
        [shares_by_group(one.groups) for one in ordered],
        [float(one.quality["share_returned"]) for one in ordered],
        [one.quality["outside_index"] for one in ordered],
    )
    return explained, Predicted.of(attributor.task, [one.prediction for one in ordered])


def one_hot(values: Sequence[object], bins: Sequence[str]) -> Array:
    """``[values, bins]``: a one in each value's bin, in the bin ``__other__`` for what has none."""
    places = {bin_: number for number, bin_ in enumerate(bins)}
    found = np.zeros((len(values), len(bins)))
    for row, value in enumerate(values):
        place = places.get(clean(value), places.get(OTHER))
        if place is not None:
            found[row, place] = 1.0
    return found


def watched(explained: Explained, by: str, most: int = MAX_VALUES) -> list[str]:
    """The groups of a column that are watched one by one, as ``by=group``: the most influential, and the rest."""
    totals: dict[str, float] = {}
    for one in explained.groups:
        for (column, group, _), share in one.items():
            if column == by and math.isfinite(share):
                name = clean(f"{by}={group}")
                totals[name] = totals.get(name, 0.0) + share
    totals.pop(other_group(by), None)
    ranked = sorted(totals, key=lambda name: (-totals[name], name))
    return [*ranked[: most - 1], other_group(by)]


def group_bins(groups: Sequence[str]) -> list[str]:
    """The bins of a grouping: each group once as proponent and once as opponent."""
    return [f"{group}/{polarity}" for group in groups for polarity in ("proponent", "opponent")]


def group_events(explained: Explained, by: str, bins: Sequence[str]) -> Array:
    """What each explanation adds to the bins of a grouping, ``[explanations, bins]``; rows sum to one, or are zero
    where a share is not finite.
    """
    places = {bin_: number for number, bin_ in enumerate(bins)}
    found = np.zeros((len(explained), len(bins)))
    for row, one in enumerate(explained.groups):
        for (column, group, polarity), share in one.items():
            if column == by and math.isfinite(share):
                bin_ = clean(f"{by}={group}") + f"/{polarity}"
                found[row, places.get(bin_, places[f"{other_group(by)}/{polarity}"])] += share
    return found


def binned(values: Sequence[Any], bin_of: Callable[[Any], str]) -> list[str]:
    """The bin of each value that is there and a finite number."""
    return [bin_of(value) for value in values if finite(value) is not None]


def not_finite(predicted: Predicted, explained: Explained) -> dict[str, int]:
    """How many values of each signal are no finite numbers, and so in no bin; signals without such a value are left
    out.
    """
    shares = [*explained.top_shares, *(sum(one.values()) for one in explained.groups)]
    found = {
        "confidence": sum(one is not None and finite(one) is None for one in predicted.confidences),
        "embedding": 0 if predicted.features is None else int((~np.isfinite(predicted.features).all(1)).sum()),
        "influence": sum(finite(one) is None for one in shares),
    }
    return {signal: count for signal, count in found.items() if count}


def shares_of(events: Array, bins: Sequence[str]) -> Mapping[str, float]:
    """The mean event, by bin."""
    means = events.mean(0) if len(events) else np.zeros(len(bins))
    return dict(zip(bins, map(float, means), strict=True))
