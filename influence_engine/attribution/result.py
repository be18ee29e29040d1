"""``Attribution``, the explanation of one prediction: the training examples, groups and modules behind it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from influence_engine.tasks import Target


@dataclass(frozen=True)
class Influential:
    """One training example of an explanation.

    Attributes:
        rank: 1 is the strongest; counted within its polarity where as many of each were asked for.
        row: Row of the example in the index.
        influence: Change of the measurement that having had this example in training made; positive supports.
        error_90: Half of the 90% interval around ``influence``, where the index was checked against retraining.
        probability_change: The same change as one of the target's probability, where the task can say.
        polarity: ``proponent`` or ``opponent``.
        tier: How the influence was obtained.
        fields: The task's fields of the example.
        label: What it is grouped under: its label, or what stands for it.
        parts: The influence split over parts of the example, where that was asked for and the example is at hand:
            ``field``, ``start``, ``end``, ``label`` and ``influence`` of each.
        parts_residual: The influence less the sum of its parts.
    """

    rank: int
    row: int
    example_id: str
    example_handle: str
    influence: float
    error_90: float | None
    probability_change: float | None
    polarity: Literal["proponent", "opponent"]
    tier: str
    label: str | None
    source: str | None
    fields: dict[str, Any]
    parts: list[dict[str, Any]] | None = None
    parts_residual: float | None = None


@dataclass(frozen=True)
class Attribution:
    """The explanation of one prediction.

    Attributes:
        prediction: The fine-tuned model's prediction, as the task says it; ``None`` where it cannot say.
        base_prediction: The base model's prediction, where that model is known.
        target: What is explained, as the task names it; ``None`` where it has no names.
        measurement: The fine-tuned model's measurement of the target, in its units (log-odds for a classification).
        base_measurement: The base model's measurement of the same target.
        examples: The most influential training examples, strongest first.
        groups: Influence summed by columns of the training examples, as ``Grouping.influences`` returns it.
        modules: First-order split of ``measurement - base_measurement`` over layers, largest first.
        modules_residual: What the first-order split leaves of that difference.
        changed_parts: The same first-order change over parts of the query: ``field``, ``start``, ``end``, ``label`` and
            ``change`` of each; ``None`` where it was not asked for, or positions lie in no parts.
        tier: How the influences were obtained.
        quality: How far the explanation can be trusted, as ``quality_of`` returns it.
        timings_ms: Milliseconds of each stage, of the whole batch that the query was answered in.
    """

    prediction: dict[str, Any] | None
    base_prediction: dict[str, Any] | None
    target: Target | None
    measurement: float
    base_measurement: float | None
    examples: list[Influential]
    groups: list[dict[str, Any]]
    modules: list[dict[str, Any]]
    modules_residual: float | None
    tier: str
    quality: dict[str, Any]
    timings_ms: dict[str, float]
    changed_parts: list[dict[str, Any]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The explanation as a JSON value."""
        return asdict(self)


@dataclass(frozen=True)
class Changes:
    """The changes that fine-tuning made to the measurements of a batch.

    Attributes:
        predictions: The base model's predictions.
        base: The base model's measurements; ``None`` where there is no base model.
        split: First-order changes of the measurements by module.
    """

    predictions: Sequence[dict[str, Any] | None]
    base: list[float] | None
    split: Mapping[str, list[float]]

    def measurement(self, number: int) -> float | None:
        """The base model's measurement of one query; ``None`` where there is no base model."""
        return None if self.base is None else self.base[number]

    def modules(self, number: int) -> list[dict[str, Any]]:
        """The split of one query, largest change first."""
        changes = [{"module": name, "change": change[number]} for name, change in self.split.items()]
        return sorted(changes, key=lambda change: -abs(change["change"]))

    def residual(self, number: int, measured: float) -> float | None:
        """The part of the change from the base model's measurement to ``measured`` that the split does not explain."""
        if self.base is None:
            return None
        return measured - self.base[number] - sum(change[number] for change in self.split.values())


class Clock:
    """A stopwatch for the stages of an explanation.

    Attributes:
        laps: Milliseconds of each stage, by its name.
    """

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Ends a stage."""
        now = time.perf_counter()
        self.laps[name] = (now - self._last) * 1000
        self._last = now


def ranks(influences: Sequence[float], *, by_sign: bool) -> list[int]:
    """Ranks of influences that are sorted, each sign by itself with ``by_sign``."""
    if not by_sign:
        return list(range(1, len(influences) + 1))
    positive = sum(influence >= 0 for influence in influences)
    return [*range(1, positive + 1), *range(1, len(influences) - positive + 1)]
