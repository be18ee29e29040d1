"""Label values of metrics: clean, few, and all known from the start.

A value that never occurred has no series and silently drops out of PromQL's sums, so every one is created at zero;
that needs them to be known, and bounds them: at most ``MAX_VALUES`` a label, the rest is ``OTHER``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

OTHER = "__other__"
MAX_VALUES = 32
LONGEST_VALUE = 120

Child = TypeVar("Child")

logger = logging.getLogger(__name__)


def clean(value: object) -> str:
    """``value`` as a label value: valid UTF-8, not longer than ``LONGEST_VALUE`` characters."""
    return str(value)[:LONGEST_VALUE].encode("utf-8", "replace").decode("utf-8")


def admitted(values: Iterable[object]) -> list[str]:
    """The first ``MAX_VALUES - 1`` different values, cleaned, and ``OTHER``."""
    found = dict.fromkeys(clean(value) for value in values)
    found.pop(OTHER, None)
    return [*list(found)[: MAX_VALUES - 1], OTHER]


class Children(Generic[Child]):
    """The series of one metric, one for each value of one label, made at once and looked up by value.

    Args:
        make: The series of a value, such as ``lambda label: counter.labels(model, label)``.
        values: As ``admitted`` returns them.
    """

    def __init__(self, make: Callable[[str], Child], values: Iterable[str]) -> None:
        self._children: dict[Any, Child] = {value: make(value) for value in values}
        self._other = self._children.get(OTHER)

    def get(self, value: object) -> Child:
        """The series of ``value``, or of ``OTHER`` where it is not an admitted one."""
        try:
            found = self._children.get(value)
        except TypeError:  # not hashable
            found = None
        if found is None:
            found = self._children.get(clean(value), self._other)
        assert found is not None
        return found


class Quietly:
    """Runs what touches the metrics store; whatever it raises is logged once and never reaches a prediction."""

    def __init__(self) -> None:
        self.failures = 0

    def __call__(self, work: Callable[[], Any]) -> Any:
        """What ``work`` returns, or ``None`` where it raised."""
        try:
            return work()
        except Exception:
            if not self.failures:
                logger.exception("the metrics store cannot be written; predictions go on without metrics")
            self.failures += 1
            return None


quietly = Quietly()
