"""Counts what happens to one model. Every series is made at the start; recording is a look-up and an addition.

Nothing here raises: a metrics store that cannot be written costs metrics, never a prediction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from audit_service.monitoring import metrics
from audit_service.monitoring.finite import number, share
from audit_service.monitoring.values import OTHER, Children, admitted, quietly


class PredictionMetrics:
    """Predictions of one model in one process.

    Args:
        model: The label ``model``.
        labels: Labels that are predicted.
        clusters: Number of embedding clusters; 0 where the model has none.
    """

    def __init__(self, model: str, labels: Iterable[object], clusters: int = 0) -> None:
        self.model = model
        self._labels: Children[Any] | None = quietly(
            lambda: Children(lambda label: metrics.predictions.labels(model, label), admitted(labels))
        )
        self._confidence = quietly(lambda: metrics.confidence.labels(model))
        self._clusters = quietly(lambda: [metrics.clusters.labels(model, str(number)) for number in range(clusters)])

    def predicted(self, label: object, confidence: float | None) -> None:
        """Counts one prediction; a confidence that is no finite number is counted as left out."""
        try:
            if self._labels is not None and label is not None:
                self._labels.get(label).inc()
            if self._confidence is not None and confidence is not None:
                self._confidence.observe(share(confidence))
        except Exception as error:
            quietly(_raises(error))

    def clustered(self, numbers: Iterable[int | None]) -> None:
        """Counts the nearest clusters of some predictions; ``None`` is one whose features are not finite."""
        try:
            for number in numbers:
                if number is None:
                    self._clusters[0].leave_out()
                else:
                    self._clusters[number].inc()
        except Exception as error:
            quietly(_raises(error))


class DropMetrics:
    """What was lost of one model's records, or had to wait."""

    def __init__(self, model: str) -> None:
        self._reasons: Children[Any] | None = quietly(
            lambda: Children(lambda reason: metrics.dropped.labels(model, reason), [*metrics.DROP_REASONS, OTHER])
        )
        self._delays: Any = quietly(lambda: metrics.delayed.labels(model))

    def dropped(self, reason: str, count: int = 1) -> None:
        """Counts what was dropped."""
        quietly(lambda: self._reasons and self._reasons.get(reason).inc(count))

    def delayed(self) -> None:
        """Counts an attempt to write records that failed."""
        quietly(lambda: self._delays and self._delays.inc())


class InfluenceMetrics:
    """Sampled explanations of one model.

    Args:
        model: The label ``model``.
        groups: The groups that are watched, as ``by=group``.
    """

    def __init__(self, model: str, groups: Iterable[str]) -> None:
        self._groups: dict[str, dict[str, Children[Any]]] = quietly(lambda: self._made(model, groups)) or {}
        self._top_share = quietly(lambda: metrics.top_share.labels(model))
        self._outside = quietly(lambda: metrics.outside_index.labels(model))

    @classmethod
    def _made(cls, model: str, groups: Iterable[str]) -> dict[str, dict[str, Children[Any]]]:
        by: dict[str, list[str]] = {}
        for group in groups:
            by.setdefault(group.partition("=")[0], []).append(group)
        return {
            name: {polarity: cls._members(model, name, members, polarity) for polarity in ("proponent", "opponent")}
            for name, members in by.items()
        }

    @staticmethod
    def _members(model: str, by: str, members: Sequence[str], polarity: str) -> Children[Any]:
        def series(group: str) -> Any:
            return metrics.influence_shares.labels(model, other_group(by) if group == OTHER else group, polarity)

        return Children(series, admitted(one for one in members if one != other_group(by)))

    def explained(self, groups: Sequence[Mapping[str, Any]], top_share: float, outside: bool | None) -> None:
        """Adds one explanation.

        Args:
            groups: Its ``groups``, as the API answers them.
            top_share: Share of all influence that its strongest examples carry.
            outside: Whether the query lies outside what the index knows; ``None`` where that is not known.
        """
        try:
            for (by, group, polarity), part in shares_by_group(groups).items():
                if by in self._groups:
                    self._groups[by][polarity].get(f"{by}={group}").inc(part)
            if self._top_share is not None:
                self._top_share.observe(share(top_share))
            if self._outside is not None and outside:
                self._outside.inc()
        except Exception as error:
            quietly(_raises(error))


def other_group(by: str) -> str:
    """The value of the label ``group`` for all groups of a kind that are not watched one by one."""
    return f"{by}={OTHER}"


def shares_by_group(groups: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], float]:
    """``(by, group, polarity)`` -> share; for each ``by`` they sum to one (or all are zero, or NaN where one is not
    finite).

    Args:
        groups: An explanation's ``groups``: ``by``, ``group``, and the ``supporting`` and ``opposing`` parts of its
            share of the sum of all absolute influences.
    """
    found: dict[tuple[str, str, str], float] = {}
    totals: dict[str, float] = {}
    for one in groups:
        for polarity, part in (("proponent", one["supporting"]), ("opponent", one["opposing"])):
            positive = max(number(part), 0.0)
            found[one["by"], one["group"], polarity] = positive
            totals[one["by"]] = totals.get(one["by"], 0.0) + positive
    return {key: _share_of(part, totals[key[0]]) for key, part in found.items()}


def _share_of(part: float, total: float) -> float:
    if not math.isfinite(total):
        return math.nan
    return part / total if total > 0 else 0.0


class ExplanationMetrics:
    """Explanations that somebody asked for, as the asking service sees them."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._cells: dict[tuple[str, str, str], Any] = quietly(self._made) or {}
        self._seconds = quietly(lambda: metrics.explanation_seconds.labels(model, "total"))

    def _made(self) -> dict[tuple[str, str, str], Any]:
        tiers = [(tier, "ok") for tier in metrics.TIERS if tier != "none"]
        failures = [("none", outcome) for outcome in metrics.OUTCOMES if outcome != "ok"]
        return {
            (tier, outcome, cache): metrics.explanations.labels(self._model, tier, outcome, cache)
            for tier, outcome in [*tiers, *failures]
            for cache in (("hit", "miss") if outcome == "ok" else ("miss",))
        }

    def explained(self, tier: str | None, status: int, *, cached: bool = False) -> None:
        """Counts one answer: its tier, or the status of its error."""
        outcome = outcome_of(status)
        key = (tier if outcome == "ok" and tier else "none", outcome, "hit" if cached else "miss")
        quietly(lambda: (self._cells.get(key) or metrics.explanations.labels(self._model, *key)).inc())

    def took(self, seconds: float) -> None:
        """Observes how long the answer to one request took."""
        quietly(lambda: self._seconds and self._seconds.observe(seconds))


def outcome_of(status: int) -> str:
    """``ok``, ``refused`` (the request was wrong), ``unavailable`` (ask again) or ``failed``."""
    if status < 400:
        return "ok"
    if status in (503, 504, 429):
        return "unavailable"
    return "refused" if status < 500 else "failed"


class EngineMetrics:
    """What the engine has loaded and how long its stages take, for one model."""

    def __init__(self, model: str) -> None:
        self.model = model
        self._stages: dict[str, Any] = (
            quietly(
                lambda: {
                    stage: metrics.explanation_seconds.labels(model, stage)
                    for stage in metrics.STAGES
                    if stage != "total"
                }
            )
            or {}
        )
        self._shown: tuple[str, str] | None = None

    def loaded(self, index: str, dataset_digest: str, rows: int, created_s: float) -> None:
        """Shows which index is in use; the one before it gets the value 0.

        Args:
            index: Digest of the index's build.
            dataset_digest: Digest of its training data.
            rows: Its examples.
            created_s: Unix time of its build.
        """
        shown = (index[:12], dataset_digest[:12])

        def show() -> None:
            if self._shown not in (None, shown):
                metrics.index_info.labels(self.model, *self._shown).set(0)
            metrics.index_info.labels(self.model, *shown).set(1)
            metrics.index_rows.labels(self.model).set(rows)
            metrics.index_created.labels(self.model).set(created_s)
            self._shown = shown

        quietly(show)

    def retired(self) -> None:
        """Another model is in use now."""

        def show() -> None:
            if self._shown is not None:
                metrics.index_info.labels(self.model, *self._shown).set(0)
            metrics.index_rows.labels(self.model).set(0)
            metrics.index_created.labels(self.model).set(0)

        quietly(show)

    def timed(self, timings_ms: Mapping[str, float]) -> None:
        """Observes the stages of one batch."""
        for stage, spent in timings_ms.items():
            if stage in self._stages:
                quietly(partial(self._stages[stage].observe, number(spent) / 1000))


class JobMetrics:
    """Background jobs of one model, counted where the service runs: the process that works on them comes and goes."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._fidelity: dict[tuple[str, str], Any] = (
            quietly(
                lambda: {
                    (tier, kind): metrics.fidelity.labels(model, tier, kind)
                    for tier in metrics.PREDICTING_TIERS
                    for kind in metrics.CHANGES
                }
            )
            or {}
        )
        self.show({})

    def show(self, states: Mapping[str, int]) -> None:
        """How many jobs there are in each state."""

        def set_all() -> None:
            for state in metrics.JOB_STATES:
                metrics.jobs.labels(self._model, state).set(states.get(state, 0))

        quietly(set_all)

    def measured(self, result: Mapping[str, Any]) -> None:
        """One finished job: its measured change over what each tier predicted, where it predicted any."""
        for tier, ratio in result["change"]["ratio"].items():
            cell = self._fidelity.get((tier, result["kind"]))
            if ratio is not None and cell is not None:
                quietly(partial(cell.observe, number(ratio)))


class OutcomeMetrics:
    """True labels that arrived for one model's predictions.

    Args:
        model: The label ``model``.
        labels: The labels.
        groups: Groups that are counted one by one, as ``column=value``.
    """

    def __init__(self, model: str, labels: Iterable[object], groups: Iterable[str]) -> None:
        values, members = admitted(labels), admitted(groups)

        def cells(outcome: str) -> tuple[Children[Any], Children[Any], Any]:
            return (
                Children(lambda label: metrics.outcomes.labels(model, label, outcome), values),
                Children(lambda group: metrics.outcomes_by_group.labels(model, group, outcome), members),
                metrics.outcome_confidence.labels(model, outcome),
            )

        self._cells: dict[str, tuple[Children[Any], Children[Any], Any]] = (
            quietly(lambda: {outcome: cells(outcome) for outcome in ("right", "wrong")}) or {}
        )

    def arrived(self, label: str, *, right: bool, confidence: float | None, groups: Iterable[str]) -> None:
        """Counts one true label."""

        def count() -> None:
            if not self._cells:
                return
            labels, by_group, confidences = self._cells["right" if right else "wrong"]
            labels.get(label).inc()
            for group in groups:
                by_group.get(group).inc()
            if confidence is not None:
                confidences.observe(share(confidence))

        quietly(count)


def _raises(error: Exception) -> Any:
    def again() -> None:
        raise error

    return again
