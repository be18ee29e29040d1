"""Exposes a drift baseline as metrics, so that Prometheus can compare traffic with it."""

from __future__ import annotations

from collections.abc import Iterable

from audit_service.monitoring import metrics
from audit_service.monitoring.drift_baseline import DriftBaseline
from audit_service.monitoring.values import clean, quietly


class ExposedBaseline:
    """The baseline that this process shows; bins that another one had are set to zero."""

    def __init__(self) -> None:
        self._shown: set[tuple[str, str, str]] = set()

    def show(self, model: str, baseline: DriftBaseline | None) -> None:
        """Shows ``baseline`` under the label ``model``, or none."""
        wanted = {} if baseline is None else {(model, signal, clean(bin_)): v for signal, bin_, v in baseline.bins()}
        for key in self._shown - set(wanted):
            _set(key, 0.0)
        for key, share in wanted.items():
            _set(key, share)
        self._shown = set(wanted)


def watched_groups(baseline: DriftBaseline | None, labels: Iterable[str]) -> list[str]:
    """The groups whose influence is counted: the reference's, or those of the labels where there is none."""
    return baseline.groups if baseline is not None else [f"label={label}" for label in labels]


def _set(key: tuple[str, str, str], share: float) -> None:
    quietly(lambda: metrics.reference_shares.labels(*key).set(share))
