"""Predictions on record: what was answered, by which model, to which input.

One SQLite file shared by all workers, with a rollback journal (a write-ahead log can corrupt under several
connections before SQLite 3.51.3). Inputs are encrypted with AES-GCM; the key lies beside the file, readable by its
owner only. A record is written behind: ``record`` only appends to a queue, and one thread writes at once when it is
idle and groups what arrives meanwhile. A store that cannot be written never fails a prediction: records wait while
there is room for them, then they are dropped, counted and logged.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import os
import secrets
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from audit_service.errors import (
    IdempotencyConflictError,
    InputErasedError,
    InputNotKeptError,
    PredictionNotFoundError,
    ServiceError,
)
from audit_service.store.database import open_database, transaction
from audit_service.store.encryption import InputCipher, plain
from audit_service.store.ids import derived_id, id_age_s
from influence_engine.digests import json_digest

logger = logging.getLogger(__name__)

GROUPING_S = 0.1
"""Least time between two commits: what arrives within it goes together."""

SETTLE_S = 0.005
"""How long a record waits before it is written: until then its response has gone out undisturbed."""

RETRY_S = 1.0
"""Time between two attempts while the store cannot be written."""

MAX_PENDING = 10_000
"""Records that wait at most; further ones are dropped and counted."""

OTHER_WORKER_S = 0.5
"""How long a fresh id is looked for, as another worker may be about to write it."""

PURGE_EVERY_S = 3600.0

SCHEMA = """
CREATE TABLE IF NOT EXISTS predictions (
    prediction_id TEXT PRIMARY KEY,
    time REAL NOT NULL,
    service TEXT NOT NULL,
    model_digest TEXT NOT NULL,
    label TEXT,
    confidence REAL,
    scores TEXT,
    input BLOB,
    input_state TEXT NOT NULL CHECK (input_state IN ('kept', 'not_kept', 'erased'))
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS kept_by_time ON predictions (time) WHERE input_state = 'kept';
CREATE TABLE IF NOT EXISTS reservations (
    prediction_id TEXT PRIMARY KEY,
    time REAL NOT NULL,
    input_mac BLOB NOT NULL
) WITHOUT ROWID;
"""


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
        confidence: Probability of the label.
        scores: Probability of every label, where the service tells it.
        input: The task's fields of the example, or ``None`` where it is not kept.
        time: Unix time in seconds.
        input_state: ``kept``, ``not_kept`` or ``erased``.
    """

    prediction_id: str
    service: str
    model_digest: str
    label: str | None
    confidence: float | None
    scores: Mapping[str, float] | None
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


class PredictionStore:
    """The store of one service, opened by every worker.

    Args:
        folder: Where the store and its key lie; made if it is missing.
        keep_inputs_s: Seconds for which inputs are kept; 0 keeps none.
        dropped: Told why records were dropped, and how many.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep_inputs_s: float = 30 * 86400.0,
        dropped: Callable[[str, int], None] = lambda reason, count: None,
    ) -> None:
        self.folder = Path(folder)
        self.keep_inputs_s = keep_inputs_s
        self._dropped = dropped
        self._pending: OrderedDict[str, PredictionRecord] = OrderedDict()
        self._wake = threading.Condition()
        self._idle = True
        self._closed = False
        self._cipher = InputCipher(self.folder / "predictions.key")
        self._next_purge = 0.0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Opens the store and starts the writer; call it once the process is the one that serves.

        A store that cannot be opened is logged; the writer goes on trying.
        """
        self._thread = threading.Thread(target=self._write_behind, name="predictions", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """Writes what waits and stops the writer."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def record(self, record: PredictionRecord) -> None:
        """Queues one record; takes microseconds and never raises."""
        if self.keep_inputs_s <= 0:  # not even while it waits
            record = replace(record, input=None, input_state="not_kept")
        with self._wake:
            if len(self._pending) >= MAX_PENDING:
                self._dropped("store_unavailable", 1)
                return
            self._pending.setdefault(record.prediction_id, record)
            if self._idle:
                self._idle = False
                self._wake.notify()

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Waits until everything recorded so far is on disk; false if the time was not enough."""
        with self._wake:
            return self._wake.wait_for(lambda: not self._pending, timeout_s)

    def get(self, prediction_id: str) -> PredictionRecord:
        """The prediction with this id, whichever worker made it.

        Raises:
            PredictionNotFoundError: there is none.
            ServiceError: the store cannot be read.
        """
        give_up = time.monotonic() + (OTHER_WORKER_S if is_fresh(prediction_id) else 0)
        while True:
            with self._wake:
                pending = self._pending.get(prediction_id)
            found = pending or self._read(prediction_id)
            if found is not None:
                return found
            if time.monotonic() >= give_up:
                raise PredictionNotFoundError(
                    f"no prediction has the id {prediction_id[:64]!r}; it is in the header X-Prediction-Id",
                    field="prediction_id",
                )
            time.sleep(0.01)

    def since(self, at: float) -> Iterator[PredictionRecord]:
        """Every prediction on record since a Unix time, oldest first."""
        with contextlib.closing(self._connect()) as connection:
            ids = connection.execute("SELECT prediction_id FROM predictions WHERE time >= ? ORDER BY time", (at,))
            found = [row[0] for row in ids.fetchall()]
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
            with self._wake:  # before the store is asked: what waits now may be there then, and nothing falls between
                waiting = prediction_id in self._pending
            with contextlib.closing(self._connect()) as connection, transaction(connection):
                connection.execute(
                    "INSERT OR IGNORE INTO reservations VALUES (?, ?, ?)", (prediction_id, time.time(), mac)
                )
                before, recorded = connection.execute(
                    "SELECT input_mac, EXISTS (SELECT 1 FROM predictions WHERE prediction_id = ?1) "
                    "FROM reservations WHERE prediction_id = ?1",
                    (prediction_id,),
                ).fetchone()
        except (sqlite3.Error, OSError):
            logger.exception("an Idempotency-Key could not be reserved; its retries become predictions of their own")
            return Reservation(derived_id(secrets.token_bytes(16)), repeated=False)
        if not hmac.compare_digest(before, mac):
            raise IdempotencyConflictError(
                "this Idempotency-Key came with another input before; use a new key for a new input",
                field="Idempotency-Key",
            )
        return Reservation(prediction_id, repeated=waiting or bool(recorded))

    def purge(self, *, now: float | None = None) -> int:
        """Erases inputs whose time is over; returns how many."""
        before = (time.time() if now is None else now) - self.keep_inputs_s
        with contextlib.closing(self._connect()) as connection, transaction(connection):
            erased = connection.execute(
                "UPDATE predictions SET input = NULL, input_state = 'erased' WHERE input_state = 'kept' AND time < ?",
                (before,),
            ).rowcount
            connection.execute("DELETE FROM reservations WHERE time < ?", (before,))
        return erased

    def erase(self, prediction_id: str) -> None:
        """Erases the input of one prediction; what was answered stays.

        Raises:
            PredictionNotFoundError: there is no such prediction.
        """
        self.flush()
        with contextlib.closing(self._connect()) as connection, transaction(connection):
            changed = connection.execute(
                "UPDATE predictions SET input = NULL, input_state = 'erased' WHERE prediction_id = ?", (prediction_id,)
            ).rowcount
        if not changed:
            raise PredictionNotFoundError(f"no prediction has the id {prediction_id[:64]!r}", field="prediction_id")

    def _write_behind(self) -> None:
        connection: sqlite3.Connection | None = None
        while True:
            with self._wake:
                self._idle = not self._pending
                woken = not self._pending
                while not self._pending and not self._closed and time.time() < self._next_purge:
                    self._wake.wait(max(0.0, self._next_purge - time.time()))
                self._idle = False
            if woken:
                time.sleep(SETTLE_S)
            with self._wake:
                group = list(self._pending.values())
                closing = self._closed
            try:
                connection = connection or self._connect()
                if group:
                    self._write(connection, group)
                if time.time() >= self._next_purge:
                    self._next_purge = time.time() + PURGE_EVERY_S
                    self.purge()
            except (sqlite3.Error, OSError):
                logger.exception("%d predictions wait: the store in %s cannot be written", len(group), self.folder)
                connection = None
                self._next_purge = time.time() + PURGE_EVERY_S
                if closing:
                    self._dropped("store_unavailable", len(group))
                    return
                time.sleep(RETRY_S)
                continue
            with self._wake:
                for record in group:
                    self._pending.pop(record.prediction_id, None)
                self._wake.notify_all()
                if self._closed and not self._pending:
                    connection.close()
                    return
            time.sleep(GROUPING_S)

    def _write(self, connection: sqlite3.Connection, group: list[PredictionRecord]) -> None:
        rows = []
        for record in group:
            try:
                rows.append(self._row(record))
            except (TypeError, ValueError):  # one record that cannot be encoded must not hold up the others
                logger.exception("prediction %s could not be recorded", record.prediction_id)
                self._dropped("not_encodable", 1)
        with transaction(connection):
            connection.executemany("INSERT OR IGNORE INTO predictions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def _row(self, record: PredictionRecord) -> tuple[Any, ...]:
        kept = record.input is not None
        return (
            record.prediction_id,
            record.time,
            record.service,
            record.model_digest,
            None if record.label is None else str(record.label),
            None if record.confidence is None else float(record.confidence),
            None if record.scores is None else json.dumps(record.scores, default=float),
            self._cipher.encrypt(record.prediction_id, record.input or {}) if kept else None,
            "kept" if kept else "not_kept",
        )

    def _read(self, prediction_id: str) -> PredictionRecord | None:
        try:
            with contextlib.closing(self._connect()) as connection:
                row = connection.execute(
                    "SELECT service, model_digest, label, confidence, scores, input, time, input_state "
                    "FROM predictions WHERE prediction_id = ?",
                    (prediction_id,),
                ).fetchone()
        except (sqlite3.Error, OSError) as error:
            raise ServiceError(f"the predictions on record cannot be read: {error}") from error
        if row is None:
            return None
        service, model_digest, label, confidence, scores, sealed, at, state = row
        return PredictionRecord(
            prediction_id=prediction_id,
            service=service,
            model_digest=model_digest,
            label=label,
            confidence=confidence,
            scores=None if scores is None else json.loads(scores),
            input=None if sealed is None else self._cipher.decrypt(prediction_id, sealed),
            time=at,
            input_state=state,
        )

    def _connect(self) -> sqlite3.Connection:
        return connect(self.folder)


def is_fresh(prediction_id: str) -> bool:
    """Whether an id was made so lately that another worker may not have written its prediction yet."""
    age = id_age_s(prediction_id)
    return age is not None and abs(age) < 10


def connect(folder: Path, schema: str = "") -> sqlite3.Connection:
    """A connection to the store in ``folder``, which is made if it is missing, with further tables of ``schema``."""
    return open_database(
        folder / "predictions.sqlite", SCHEMA + schema, synchronous="NORMAL", timeout_s=5.0, one_thread=False
    )
