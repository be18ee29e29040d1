"""Drift of a distribution over bins: two statistics, and the threshold that baseline traffic stays below.

Each is written here once more than in the rules (``promql``); a test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

SMALLEST_SHARE = 1e-3
"""Smaller shares count as this one: an empty bin would make every statistic infinite."""

LEAST_THRESHOLDS = {"psi": 0.01, "js": 0.0018}
"""Whatever noise says, less than this is no drift: shares that hardly ever vary would raise alerts over nothing, and
``increase`` is itself some thousandths off."""

DRAWS = 10_000
_CHUNK = 1_000


def population_stability_index(observed: Array, reference: Array) -> Array:
    """``sum (p - q) ln(p / q)`` over the last dimension, of shares not below ``SMALLEST_SHARE``.

    Args:
        observed: Shares, ``[..., bins]``.
        reference: Shares, ``[bins]`` or as ``observed``.
    """
    p, q = np.maximum(observed, SMALLEST_SHARE), np.maximum(reference, SMALLEST_SHARE)
    return ((p - q) * np.log(p / q)).sum(-1)


def jensen_shannon(observed: Array, reference: Array) -> Array:
    """Jensen-Shannon divergence in bits over the last dimension; arguments as above."""
    p, q = np.maximum(observed, SMALLEST_SHARE), np.maximum(reference, SMALLEST_SHARE)
    parts = p * np.log(2 * p / (p + q)) + q * np.log(2 * q / (p + q))
    return parts.sum(-1) / (2 * np.log(2))


STATISTICS: dict[str, Callable[[Array, Array], Array]] = {
    "psi": population_stability_index,
    "js": jensen_shannon,
}


def shares(counts: Array) -> Array:
    """Counts ``[..., bins]`` as shares; all zero where nothing was counted."""
    totals = counts.sum(-1, keepdims=True)
    return np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)


def thresholds(
    events: Array, volume: int, false_alarm_rate: float, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, float]:
    """The value of each statistic that baseline traffic exceeds with probability ``false_alarm_rate`` at most.

    By bootstrap: both the reference and a window of traffic are drawn from the reference's own events, so that the
    reference's being a sample is part of the noise.

    Args:
        events: What each reference event adds to the bins, ``[events, bins]``: one 1 for a label, shares of influence
            for an explanation.
        volume: Events of a window; larger windows are quieter.
        false_alarm_rate: In (0, 1).
        draws: Windows that are drawn.
        seed: Of the draws.
    """
    random = np.random.default_rng(seed)
    # Equal events are drawn as one: labels then cost as much as there are labels.
    kinds, often = np.unique(events, axis=0, return_counts=True)
    count, chances = len(events), often / len(events)
    found: dict[str, list[Array]] = {name: [] for name in STATISTICS}
    for start in range(0, draws, _CHUNK):
        size = min(_CHUNK, draws - start)
        traffic = shares(random.multinomial(volume, chances, size) @ kinds)
        reference = shares(random.multinomial(count, chances, size) @ kinds)
        for name, statistic in STATISTICS.items():
            found[name].append(statistic(traffic, reference))
    return {
        name: max(float(np.quantile(np.concatenate(values), 1 - false_alarm_rate)), LEAST_THRESHOLDS[name])
        for name, values in found.items()
    }


def rate_threshold(
    events: Array,
    volume: int,
    false_alarm_rate: float,
    *,
    optimism: float = 1.0,
    draws: int = DRAWS,
    seed: int = 0,
) -> float:
    """The share of true events that baseline traffic exceeds with probability ``false_alarm_rate``.

    Args:
        events: Zeros and ones, ``[events]``.
        volume: Events of a window.
        false_alarm_rate: In (0, 1).
        optimism: How many times rarer the events may be here than in baseline traffic.
        draws: Windows that are drawn.
        seed: Of the draws.
    """
    random = np.random.default_rng(seed)
    # What the rate may be, given these events and no other knowledge; absent ones are not impossible.
    true = events.sum()
    believed = np.minimum(random.beta(true + 1, len(events) - true + 1, draws) * optimism, 1.0)
    return float(np.quantile(random.binomial(volume, believed) / volume, 1 - false_alarm_rate))


def clusters_of(features: Array, count: int, *, seed: int = 0, rounds: int = 50) -> Array:
    """Centres ``[count, width]`` of k-means with k-means++ starts, single precision.

    Args:
        features: ``[examples, width]``, at least ``count`` of them.
        count: Clusters.
        seed: Of the starts.
        rounds: Of Lloyd's algorithm at most.
    """
    random = np.random.default_rng(seed)
    points = features.astype(np.float64)
    centres = points[[random.integers(len(points))]]
    while len(centres) < count:
        far = _squared_distances(points, centres).min(1)
        weights = far / far.sum() if far.sum() > 0 else None
        centres = np.vstack([centres, points[random.choice(len(points), p=weights)]])
    for _ in range(rounds):
        nearest = _squared_distances(points, centres).argmin(1)
        moved = np.stack(
            [points[nearest == one].mean(0) if (nearest == one).any() else centres[one] for one in range(count)]
        )
        if np.allclose(moved, centres):
            break
        centres = moved
    return centres.astype(np.float32)


class NearestCentre:
    """The nearest of some centres, in microseconds.

    Args:
        centres: ``[count, width]``.
    """

    def __init__(self, centres: Array) -> None:
        self.count, self.width = centres.shape
        self._twice = np.ascontiguousarray(2 * centres.T, dtype=np.float32)
        self._squares = (centres.astype(np.float32) ** 2).sum(1)

    def of(self, features: Array) -> list[int | None]:
        """For each row of ``features``, ``[examples, width]``, the number of its centre; ``None`` where that is
        not known, since a feature is not finite.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            distances = self._squares - features @ self._twice
        nearest: list[int | None] = distances.argmin(1).tolist()
        known = np.isfinite(distances).all(1)
        if not known.all():  # argmin takes NaN for the least
            return [one if is_known else None for one, is_known in zip(nearest, known, strict=True)]
        return nearest


def _squared_distances(points: Array, centres: Array) -> Array:
    return np.maximum((points**2).sum(1, keepdims=True) - 2 * points @ centres.T + (centres**2).sum(1), 0)
