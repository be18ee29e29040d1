"""Metrics that take finite numbers only.

One NaN makes the sum of a counter or histogram NaN for good, and an infinite value its mean useless. Every metric of
this package is one of these three: what is no finite number goes nowhere, is counted under the metric's name in
``audit_values_left_out_total``, and is logged the first time. The first label of each is ``model``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import prometheus_client

LEFT_OUT = "audit_values_left_out_total"

left_out = prometheus_client.Counter(
    LEFT_OUT, "Values that are no finite number and went into no metric, by the metric.", ["model", "metric"]
)

logger = logging.getLogger(__name__)

_logged: set[tuple[object, str]] = set()
"""Model and metric of the values left out that the log has told of."""


class Series:
    """One series of a metric.

    Args:
        write: Adds a finite number to it.
        leave_out: Counts one that is not.
    """

    __slots__ = ("_leave_out", "_write")

    def __init__(self, write: Callable[[float], None], leave_out: Callable[[], None]) -> None:
        self._write = write
        self._leave_out = leave_out

    def _take(self, value: float) -> None:
        if math.isfinite(value):
            self._write(value)
        else:
            self._leave_out()

    def leave_out(self) -> None:
        """Counts a value that was found not to be a finite number before it came here."""
        self._leave_out()


class CounterSeries(Series):
    """One series of a ``Counter``."""

    __slots__ = ()

    def inc(self, amount: float = 1.0) -> None:
        """Adds ``amount``, which is not negative."""
        self._take(amount)


class HistogramSeries(Series):
    """One series of a ``Histogram``."""

    __slots__ = ()

    def observe(self, value: float) -> None:
        """Counts one value."""
        self._take(value)


class GaugeSeries(Series):
    """One series of a ``Gauge``."""

    __slots__ = ()

    def set(self, value: float) -> None:
        """Shows a value in place of the one before."""
        self._take(value)


class Metric:
    """What the three kinds have in common."""

    def __init__(self, name: str, metric: Any) -> None:
        self.name = name
        self._metric = metric

    def _leave_out(self, model: object) -> Callable[[], None]:
        series = left_out.labels(model, self.name)  # at zero from the start

        def leave_out() -> None:
            if (model, self.name) not in _logged:
                _logged.add((model, self.name))
                logger.warning(
                    "a value for %s of %s is no finite number and was left out; %s counts such values",
                    self.name,
                    model,
                    LEFT_OUT,
                )
            series.inc()

        return leave_out


class Counter(Metric):
    """A ``prometheus_client.Counter`` that takes finite numbers only."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str]) -> None:
        super().__init__(name, prometheus_client.Counter(name, documentation, labels))

    def labels(self, model: object, *values: object) -> CounterSeries:
        """The series of some label values; made if it is new."""
        return CounterSeries(self._metric.labels(model, *values).inc, self._leave_out(model))


class Histogram(Metric):
    """A ``prometheus_client.Histogram`` that takes finite numbers only."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str], *, buckets: Iterable[float]) -> None:
        super().__init__(name, prometheus_client.Histogram(name, documentation, labels, buckets=tuple(buckets)))

    def labels(self, model: object, *values: object) -> HistogramSeries:
        """The series of some label values; made if it is new."""
        return HistogramSeries(self._metric.labels(model, *values).observe, self._leave_out(model))


class Gauge(Metric):
    """A ``prometheus_client.Gauge`` that takes finite numbers only; of several processes the most recent one counts."""

    multiprocess_mode: Literal["mostrecent"] = "mostrecent"

    def __init__(self, name: str, documentation: str, labels: Sequence[str]) -> None:
        made = prometheus_client.Gauge(name, documentation, labels, multiprocess_mode=self.multiprocess_mode)
        super().__init__(name, made)

    def labels(self, model: object, *values: object) -> GaugeSeries:
        """The series of some label values; made if it is new."""
        return GaugeSeries(self._metric.labels(model, *values).set, self._leave_out(model))


def number(value: object) -> float:
    """``value`` as a number; NaN, which every metric leaves out, where it is none."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan


def share(value: object) -> float:
    """``value`` as a number that is at most 1, as rounding may exceed it; infinity stays, and is left out."""
    found = number(value)
    return min(found, 1.0) if math.isfinite(found) else found


def finite(value: object) -> float | None:
    """``value`` as a number; ``None`` where it is none, or not a finite one."""
    found = number(value)
    return found if math.isfinite(found) else None


def finite_json(value: Any) -> Any:
    """A JSON value with ``None`` in place of every number that is not finite, which JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite_json(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_json(inner) for inner in value]
    return value
