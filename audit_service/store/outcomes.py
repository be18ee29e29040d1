"""True labels that arrive after the prediction, days later and in bulk; beside the predictions they are about."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from sqlalchemy import BindParameter, Connection, bindparam, select

from audit_service.store.database import Database, Insert, storable
from audit_service.store.location import StateLocation
from audit_service.store.predictions import AT_ONCE
from audit_service.store.tables import PREDICTIONS, outcomes, predictions

_IDS: BindParameter[str] = bindparam("ids", expanding=True)
KEEP = Insert.or_replace(outcomes)
PREDICTED = select(predictions.c.prediction_id, predictions.c.label, predictions.c.confidence).where(
    predictions.c.prediction_id.in_(_IDS)
)
KNOWN = select(outcomes.c.prediction_id, outcomes.c.label).where(outcomes.c.prediction_id.in_(_IDS))
JUDGED = (
    select(outcomes.c.label, predictions.c.label, predictions.c.confidence, outcomes.c.groups, predictions.c.time)
    .join_from(outcomes, predictions, outcomes.c.prediction_id == predictions.c.prediction_id)
    .where(predictions.c.time >= bindparam("since"))
)

Item = TypeVar("Item")
Fate = Literal["recorded", "repeated", "changed", "unknown"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The true label of one prediction.

    Attributes:
        prediction_id: The prediction.
        label: What was right.
        groups: Groups that it belongs to, such as ``{"region": "north"}``.
    """

    prediction_id: str
    label: str
    groups: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of one outcome.

    Attributes:
        fate: ``recorded``; ``repeated``: the same was known; ``changed``: another label was known, and is replaced;
            ``unknown``: no prediction has the id.
        predicted: What had been predicted.
        confidence: Its probability.
    """

    fate: Fate
    predicted: str | None = None
    confidence: float | None = None


class OutcomeStore:
    """True labels of one service's predictions, in the same database.

    Args:
        place: Where the ``PredictionStore`` is.
    """

    def __init__(self, place: StateLocation | str | os.PathLike[str]) -> None:
        self._database = Database(StateLocation.of(place), PREDICTIONS)

    def add(self, given: Sequence[Outcome]) -> list[Judged]:
        """Keeps each true label; the last one counts.

        Raises:
            ServiceError: the store cannot be written.
        """
        with self._database.writing("the true labels could not be kept", alone=True) as connection:
            return [one for part in _parts(given) for one in _add(connection, part)]

    def judged(self, since: float = 0.0) -> list[dict[str, Any]]:
        """Every prediction since a Unix time whose true label is known.

        Returns:
            ``label``, ``predicted``, ``confidence``, ``groups``, ``time`` of each.

        Raises:
            ServiceError: the store cannot be read.
        """
        with self._database.reading("the true labels cannot be read") as connection:
            rows = connection.execute(JUDGED, {"since": since}).all()
        return [
            {"label": label, "predicted": predicted, "confidence": confidence, "groups": json.loads(groups), "time": at}
            for label, predicted, confidence, groups, at in rows
        ]


def _parts(given: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(given), AT_ONCE):
        yield given[start : start + AT_ONCE]


def _add(connection: Connection, given: Sequence[Outcome]) -> Iterator[Judged]:
    ids = {"ids": [one.prediction_id for one in given if storable(one.prediction_id)]}
    predicted = {row[0]: (row[1], row[2]) for row in connection.execute(PREDICTED, ids)}
    known = {row[0]: row[1] for row in connection.execute(KNOWN, ids)}
    rows: dict[str, dict[str, Any]] = {}
    for one in given:
        if one.prediction_id not in predicted:
            yield Judged("unknown")
            continue
        before = known.get(one.prediction_id)
        fate: Fate = "recorded" if before is None else "repeated" if before == one.label else "changed"
        known[one.prediction_id] = one.label
        rows[one.prediction_id] = {
            "prediction_id": one.prediction_id,
            "time": time.time(),
            "label": one.label,
            "groups": json.dumps(dict(one.groups)),
        }
        yield Judged(fate, *predicted[one.prediction_id])
    if rows:
        KEEP.into(connection, list(rows.values()))
