"""Predictions on record: what was answered, by which model, to which input.

One database shared by all workers: a SQLite file in the state folder, or a PostgreSQL server. Inputs are encrypted
with AES-GCM; the key lies in the state folder, readable by its owner only. A record is written behind: ``record`` only
appends to a queue, and one thread writes at once when it is idle and groups what arrives meanwhile. A store that cannot
be written never fails a prediction: records wait while there is room for them, then they are dropped, counted and
logged.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import math
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from sqlalchemy import BindParameter, bindparam, delete, exists, select, update

from audit_service.errors import (
    IdempotencyConflictError,
    InputErasedError,
    InputNotKeptError,
    ModelChangedError,
    PredictionNotFoundError,
    ServiceError,
    StoreUnavailableError,
)
from audit_service.monitoring.finite import finite, finite_json
from audit_service.outside import said, without_folders
from audit_service.store.database import Database, Insert, storable
from audit_service.store.encryption import InputCipher, plain
from audit_service.store.ids import derived_id, id_age_s
from audit_service.store.location import StateLocation
from audit_service.store.tables import PREDICTIONS, predictions, reservations
from audit_service.store.write_behind import WriteBehind
from influence_engine.digests import json_digest

logger = logging.getLogger(__name__)

PURGE_EVERY_S = 3600.0

AT_ONCE = 500
"""Ids of one query."""

_ID: BindParameter[str] = bindparam("id")
_IDS: BindParameter[str] = bindparam("ids", expanding=True)
_BEFORE: BindParameter[float] = bindparam("before")

# Made once: SQLAlchemy then need not work out each time that it knows the statement.
RECORD = Insert.or_keep(predictions)
RESERVE = Insert.or_keep(reservations)
READ = select(
    predictions.c.service,
    predictions.c.model_digest,
    predictions.c.label,
    predictions.c.confidence,
    predictions.c.scores,
    predictions.c.input,
    predictions.c.time,
    predictions.c.input_state,
).where(predictions.c.prediction_id == _ID)
THERE = select(predictions.c.prediction_id).where(predictions.c.prediction_id.in_(_IDS))
IDS_SINCE = select(predictions.c.prediction_id).where(predictions.c.time >= _BEFORE).order_by(predictions.c.time)
RESERVED = select(reservations.c.input_mac, exists().where(predictions.c.prediction_id == _ID).label("recorded")).where(
    reservations.c.prediction_id == _ID
)
_ERASED: dict[str, Any] = {"input": None, "input_state": "erased"}
ERASE = update(predictions).where(predictions.c.prediction_id == _ID).values(_ERASED)
ERASE_OLD = update(predictions).where(predictions.c.input_state == "kept", predictions.c.time < _BEFORE).values(_ERASED)
FORGET_OLD = delete(reservations).where(reservations.c.time < _BEFORE)


class Reservation(NamedTuple):
    """What an ``Idempotency-Key`` stands for.

    Attributes:
        prediction_id: The same for every retry.
        repeated: The request was answered before, and its prediction is on record.
    """

    prediction_id: str
    repeated: bool


@dataclass(frozen=True, slots=True)
class PredictionRecord:
    """One prediction.

    Attributes:
        prediction_id: Its id.
        service: Name of the service that answered.
        model_digest: Digest of the model that answered.
        label: What was predicted; ``None`` where a stream broke before it said so.
        confidence: Probability of the label; ``None`` also where it was no finite number.
        scores: Probability of every label, where the service tells it; ``None`` for one that was not finite.
        input: The task's fields of the example, or ``None`` where it is not kept.
        time: Unix time in seconds.
        input_state: ``kept``, ``not_kept`` or ``erased``.
    """

    prediction_id: str
    service: str
    model_digest: str
    label: str | None
    confidence: float | None
    scores: Mapping[str, float | None] | None
    input: Mapping[str, Any] | None
    time: float = field(default_factory=time.time)
    input_state: Literal["kept", "not_kept", "erased"] = "kept"

    def kept_input(self) -> dict[str, Any]:
        """The input.

        Raises:
            InputNotKeptError: it was never kept.
            InputErasedError: it has been erased, or its retention time is over.
        """
        if self.input_state == "not_kept":
            raise InputNotKeptError(
                f"the input of prediction {self.prediction_id} was not kept (keep_inputs: none); send it as input",
                field="prediction_id",
            )
        if self.input is None or self.input_state == "erased":
            raise InputErasedError(
                f"the input of prediction {self.prediction_id} has been erased; send it as input",
                field="prediction_id",
            )
        return dict(self.input)

    def check_model(self, digest: str | None) -> None:
        """Refuses what would be said of this prediction by another model than the one that made it.

        Args:
            digest: Of the model that would be asked; nothing is known to be wrong where it, or the record's, is empty.

        Raises:
            ModelChangedError: it is another one.
        """
        if digest and self.model_digest and digest != self.model_digest:
            raise ModelChangedError(
                f"prediction {self.prediction_id} was made by the model {self.model_digest[:12]}, and {digest[:12]} is "
                "served now; send its input to ask the present model",
                field="prediction_id",
            )


class PredictionStore:
    """The store of one service, opened by every worker.

    Args:
        place: The state folder, with the store and its key, or the location that names a server beside it; made if it
            is missing.
        keep_inputs_s: Seconds for which inputs are kept; 0 keeps none.
        dropped: Told why records were dropped, and how many.
        delayed: Called with every attempt to write records that failed, and is made again.
    """

    def __init__(
        self,
        place: StateLocation | str | os.PathLike[str],
        *,
        keep_inputs_s: float = 30 * 86400.0,
        dropped: Callable[[str, int], None] = lambda reason, count: None,
        delayed: Callable[[], None] = lambda: None,
    ) -> None:
        location = StateLocation.of(place)
        self.keep_inputs_s = keep_inputs_s
        self._dropped = dropped
        self._database = Database(location, PREDICTIONS)
        self._cipher = InputCipher(location.folder / "predictions.key")
        self._behind = WriteBehind("predictions", self._write, dropped, self.purge, PURGE_EVERY_S, delayed)

    def start(self) -> None:
        """Opens the store and starts the writer; call it once the process is the one that serves.

        A store that cannot be opened is logged; the writer goes on trying.

        Raises:
            StateSchemaError: the store is of a newer version of this program, which waiting does not change.
            SettingsError: its address is none.
        """
        with contextlib.suppress(StoreUnavailableError):  # the log says why
            self._database.open()
        self._behind.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """Writes what waits, stops the writer and gives the connections back."""
        self._behind.close(timeout_s)
        self._database.close()

    def record(self, record: PredictionRecord) -> None:
        """Queues one record; takes microseconds and never raises."""
        if self.keep_inputs_s <= 0:  # not even while it waits
            record = replace(record, input=None, input_state="not_kept")
        self._behind.add(record.prediction_id, record)

    def state(self) -> dict[str, Any]:
        """How many records wait to be written by this worker, and why the last attempt failed, if it did."""
        reason = self._behind.reason
        return {"waiting": len(self._behind), "reason": None if reason is None else said(without_folders(reason))}

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Waits until everything recorded so far is on disk; false if the time was not enough."""
        return self._behind.flush(timeout_s)

    def get(self, prediction_id: str) -> PredictionRecord:
        """The prediction with this id, if it is on record by now.

        Raises:
            PredictionNotFoundError: it is not.
            ServiceError: the store cannot be read.
        """
        waiting = self._behind.waiting(prediction_id)
        if waiting is not None:  # as it will be read when it has been written
            return replace(waiting, confidence=finite(waiting.confidence), scores=_finite_scores(waiting.scores))
        found = self._read(prediction_id)
        if found is None:
            raise not_found(prediction_id)
        return found

    def known(self, prediction_ids: Iterable[str]) -> set[str]:
        """Those of some predictions that are on record by now.

        Raises:
            ServiceError: the store cannot be read.
        """
        ids = [one for one in prediction_ids if storable(one)]
        waiting = {one for one in ids if self._behind.waiting(one) is not None}
        written: set[str] = set()
        with self._database.reading("the predictions on record cannot be read") as connection:
            for start in range(0, len(ids), AT_ONCE):
                written.update(connection.scalars(THERE, {"ids": ids[start : start + AT_ONCE]}))
        return waiting | written

    def since(self, at: float) -> Iterator[PredictionRecord]:
        """Every prediction on record since a Unix time, oldest first.

        Raises:
            ServiceError: the store cannot be read.
        """
        with self._database.reading("the predictions on record cannot be read") as connection:
            found = connection.scalars(IDS_SINCE, {"before": at}).all()
        yield from filter(None, map(self._read, found))

    def reserve(self, idempotency_key: str, scope: str, example: Mapping[str, Any]) -> Reservation:
        """The prediction id that belongs to a key, the same for every retry on every worker, and whether it is a retry.

        A retry that overtakes the first answer, or reaches another worker before that answer is on disk (a tenth of
        a second), is not known for one.

        Args:
            idempotency_key: The request's ``Idempotency-Key``.
            scope: What the key is unique in: service, method and model.
            example: The input; the same key with another one is a mistake.

        Raises:
            IdempotencyConflictError: the key came with another input before.
        """
        try:
            mac = self._cipher.mac(json_digest(plain(example)))
            prediction_id = derived_id(self._cipher.mac(f"{scope}\0{idempotency_key}"))
            # Before the store is asked: what waits now may be there then, and nothing falls between.
            waiting = self._behind.waiting(prediction_id) is not None
            with self._database.writing("an Idempotency-Key could not be reserved") as connection:
                row = {"prediction_id": prediction_id, "time": time.time(), "input_mac": mac}
                RESERVE.into(connection, row)
                before, recorded = connection.execute(RESERVED, {"id": prediction_id}).one()
        except (ServiceError, OSError):
            logger.exception("an Idempotency-Key could not be reserved; its retries become predictions of their own")
            return Reservation(derived_id(secrets.token_bytes(16)), repeated=False)
        if not hmac.compare_digest(before, mac):
            raise IdempotencyConflictError(
                "this Idempotency-Key came with another input before; use a new key for a new input",
                field="Idempotency-Key",
            )
        return Reservation(prediction_id, repeated=waiting or bool(recorded))

    def purge(self, *, now: float | None = None) -> int:
        """Erases inputs whose time is over; returns how many.

        Raises:
            ServiceError: the store cannot be written.
        """
        before = {"before": (time.time() if now is None else now) - self.keep_inputs_s}
        with self._database.writing("outdated inputs could not be erased", alone=True) as connection:
            erased = connection.execute(ERASE_OLD, before).rowcount
            connection.execute(FORGET_OLD, before)
        return erased

    def erase(self, prediction_id: str) -> None:
        """Erases the input of one prediction; what was answered stays.

        Raises:
            PredictionNotFoundError: there is no such prediction.
            ServiceError: the store cannot be written.
        """
        self.flush()
        changed = 0
        if storable(prediction_id):
            with self._database.writing("the input could not be erased") as connection:
                changed = connection.execute(ERASE, {"id": prediction_id}).rowcount
        if not changed:
            raise PredictionNotFoundError(f"no prediction has the id {prediction_id[:64]!r}", field="prediction_id")

    def _write(self, group: Sequence[PredictionRecord]) -> None:
        rows = []
        for record in group:
            try:
                rows.append(self._row(record))
            except (TypeError, ValueError):  # one record that cannot be encoded must not hold up the others
                logger.exception("prediction %s could not be recorded", record.prediction_id)
                self._dropped("not_encodable", 1)
        rows.sort(key=lambda row: row["prediction_id"])  # two workers with the same ids then do not lock each other
        if rows:
            with self._database.writing("predictions could not be recorded") as connection:
                RECORD.into(connection, rows)

    def _row(self, record: PredictionRecord) -> dict[str, Any]:
        kept = record.input is not None
        label = None if record.label is None else str(record.label)
        confidence = None if record.confidence is None else float(record.confidence)
        if not (storable(record.prediction_id) and (label is None or storable(label))):
            raise ValueError("an id or a label with a NUL or half of a surrogate pair cannot be kept")
        return {
            "prediction_id": record.prediction_id,
            "time": record.time,
            "service": record.service,
            "model_digest": record.model_digest,
            "label": label,
            "confidence": confidence if confidence is not None and math.isfinite(confidence) else None,
            "scores": None if record.scores is None else json.dumps(_finite_scores(record.scores), default=float),
            "input": self._cipher.encrypt(record.prediction_id, record.input or {}) if kept else None,
            "input_state": "kept" if kept else "not_kept",
        }

    def _read(self, prediction_id: str) -> PredictionRecord | None:
        if not storable(prediction_id):
            return None
        with self._database.reading("the predictions on record cannot be read") as connection:
            row = connection.execute(READ, {"id": prediction_id}).one_or_none()
        if row is None:
            return None
        service, model_digest, label, confidence, scores, encrypted, at, state = row
        return PredictionRecord(
            prediction_id=prediction_id,
            service=service,
            model_digest=model_digest,
            label=label,
            confidence=confidence,
            scores=None if scores is None else json.loads(scores),
            input=None if encrypted is None else self._cipher.decrypt(prediction_id, encrypted),
            time=at,
            input_state=state,
        )


def not_found(prediction_id: str) -> PredictionNotFoundError:
    """The error that says where ids come from."""
    return PredictionNotFoundError(
        f"no prediction has the id {prediction_id[:64]!r}; it is in the header X-Prediction-Id", field="prediction_id"
    )


def _finite_scores(scores: Any) -> Any:
    """Scores as JSON can say them: ``None`` for one that is not finite."""
    if isinstance(scores, Mapping):
        return {name: finite(score) for name, score in scores.items()}
    return finite_json(scores)


def is_fresh(prediction_id: str) -> bool:
    """Whether an id was made so lately that another worker may not have written its prediction yet."""
    age = id_age_s(prediction_id)
    return age is not None and abs(age) < 10
