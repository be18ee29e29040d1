"""True labels that arrive after the prediction, days later and in bulk; beside the predictions they are about."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from audit_service.errors import ServiceError
from audit_service.store.database import transaction
from audit_service.store.predictions import connect

SCHEMA = """
CREATE TABLE IF NOT EXISTS outcomes (
    prediction_id TEXT PRIMARY KEY,
    time REAL NOT NULL,
    label TEXT NOT NULL,
    groups TEXT NOT NULL
) WITHOUT ROWID;
"""
AT_ONCE = 500
"""Ids of one query."""

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
    """True labels of one service's predictions, in the same file.

    Args:
        folder: The folder of the ``PredictionStore``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, outcomes: Sequence[Outcome]) -> list[Judged]:
        """Keeps each true label; the last one counts.

        Raises:
            ServiceError: the store cannot be written.
        """
        try:
            with contextlib.closing(connect(self.folder, SCHEMA)) as connection, transaction(connection):
                judged = [one for part in _parts(outcomes) for one in _add(connection, part)]
        except (sqlite3.Error, OSError) as error:
            raise ServiceError(f"the true labels could not be kept: {error}") from error
        return judged

    def judged(self, since: float = 0.0) -> list[dict[str, Any]]:
        """Every prediction since a Unix time whose true label is known.

        Returns:
            ``label``, ``predicted``, ``confidence``, ``groups``, ``time`` of each.

        Raises:
            ServiceError: the store cannot be read.
        """
        try:
            with contextlib.closing(connect(self.folder, SCHEMA)) as connection:
                rows = connection.execute(
                    "SELECT outcomes.label, predictions.label, confidence, groups, predictions.time FROM outcomes "
                    "JOIN predictions USING (prediction_id) WHERE predictions.time >= ?",
                    (since,),
                ).fetchall()
        except (sqlite3.Error, OSError) as error:
            raise ServiceError(f"the true labels cannot be read: {error}") from error
        return [
            {"label": label, "predicted": predicted, "confidence": confidence, "groups": json.loads(groups), "time": at}
            for label, predicted, confidence, groups, at in rows
        ]


def _parts(outcomes: Sequence[Outcome]) -> Iterator[Sequence[Outcome]]:
    for start in range(0, len(outcomes), AT_ONCE):
        yield outcomes[start : start + AT_ONCE]


def _add(connection: sqlite3.Connection, outcomes: Sequence[Outcome]) -> Iterator[Judged]:
    ids = json.dumps([one.prediction_id for one in outcomes])
    predicted = {
        row[0]: row[1:]
        for row in connection.execute(
            "SELECT prediction_id, label, confidence FROM predictions "
            "WHERE prediction_id IN (SELECT value FROM json_each(?))",
            (ids,),
        )
    }
    known = dict(
        connection.execute(
            "SELECT prediction_id, label FROM outcomes WHERE prediction_id IN (SELECT value FROM json_each(?))", (ids,)
        )
    )
    for one in outcomes:
        if one.prediction_id not in predicted:
            yield Judged("unknown")
            continue
        before = known.get(one.prediction_id)
        fate: Fate = "recorded" if before is None else "repeated" if before == one.label else "changed"
        known[one.prediction_id] = one.label
        connection.execute(
            "INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?)",
            (one.prediction_id, time.time(), one.label, json.dumps(dict(one.groups), ensure_ascii=False)),
        )
        yield Judged(fate, *predicted[one.prediction_id])
