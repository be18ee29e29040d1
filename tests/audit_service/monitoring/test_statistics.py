"""Drift statistics: what they are, and that baseline traffic stays below its threshold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from audit_service.monitoring.statistics import (
    LEAST_THRESHOLDS,
    STATISTICS,
    NearestCentre,
    clusters_of,
    rate_threshold,
    shares,
    thresholds,
)

counts = arrays(np.float64, 5, elements=st.integers(0, 1000).map(float)).filter(lambda found: found.sum() > 0)


@given(counts, counts)
def test_each_statistic_is_symmetric_not_negative_and_zero_for_equal_shares(
    first: np.ndarray, second: np.ndarray
) -> None:
    for statistic in STATISTICS.values():
        there, back = statistic(shares(first), shares(second)), statistic(shares(second), shares(first))
        assert there == pytest.approx(back)
        assert there >= -1e-12
        assert statistic(shares(first), shares(first)) == pytest.approx(0)


@given(counts, counts)
def test_shares_do_not_depend_on_how_events_are_split_over_replicas(first: np.ndarray, second: np.ndarray) -> None:
    assert shares(first + second) == pytest.approx(
        (shares(first) * first.sum() + shares(second) * second.sum()) / (first.sum() + second.sum())
    )


def test_jensen_shannon_is_one_bit_at_most() -> None:
    apart = STATISTICS["js"](np.array([1.0, 0.0]), np.array([0.0, 1.0]))

    assert 0.95 < apart <= 1.0


def test_baseline_traffic_exceeds_its_threshold_as_rarely_as_promised() -> None:
    random = np.random.default_rng(7)
    truth = np.array([0.5, 0.3, 0.15, 0.05])
    exceeded = dict.fromkeys(STATISTICS, 0)
    for _ in range(60):
        events = np.eye(4)[random.choice(4, 400, p=truth)]
        levels = thresholds(events, 200, 0.02, draws=2000)
        traffic = shares(random.multinomial(200, truth, 50))
        for name, statistic in STATISTICS.items():
            exceeded[name] += int((statistic(traffic, events.mean(0)) > levels[name]).sum())

    assert all(count <= 3000 * 0.02 * 2 for count in exceeded.values())


def test_events_that_never_vary_get_the_least_threshold() -> None:
    assert thresholds(np.tile([0.4, 0.6], (50, 1)), 50, 1e-3, draws=500) == LEAST_THRESHOLDS


def test_an_event_absent_from_the_reference_is_not_impossible() -> None:
    assert 0 < rate_threshold(np.zeros(400), 50, 2e-4) < 0.2


def test_clusters_are_the_same_each_time_and_every_point_goes_to_the_nearest() -> None:
    random = np.random.default_rng(0)
    points = np.concatenate([random.normal(mean, 0.1, (30, 3)) for mean in (0, 5, 10)]).astype(np.float32)

    centres = clusters_of(points, 3)
    nearest = NearestCentre(centres).of(points)

    assert np.array_equal(centres, clusters_of(points, 3))
    assert nearest == ((points[:, None] - centres) ** 2).sum(-1).argmin(1).tolist()
    assert [len(set(nearest[start : start + 30])) for start in (0, 30, 60)] == [1, 1, 1]
