"""The queue: one SQLite file in the state folder, shared by a service's workers and the process that does the work.

A job's id is made of its content: the same content submitted again, by whomever and whenever, is the same job. What is
to be done may hold personal texts: it is encrypted like inputs on record, and erased when the job has ended. Written
with a rollback journal, like the predictions (a write-ahead log can corrupt under several connections before SQLite
3.51.3); every change of state is one transaction.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audit_service.errors import JobNotFoundError, QueueFullError, ServiceError
from audit_service.schemas import JobState
from audit_service.store.database import open_database, transaction
from audit_service.store.encryption import InputCipher, plain
from audit_service.store.ids import derived_id
from influence_engine.digests import json_digest

MOST_ATTEMPTS = 3
"""A job whose worker ended that often without a result has killed it, and is not begun again."""

ENDED = ("done", "failed", "cancelled")

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    job_id TEXT PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    cancelling INTEGER NOT NULL DEFAULT 0,
    counted INTEGER NOT NULL DEFAULT 0,
    content BLOB,
    progress TEXT,
    result TEXT,
    error TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS jobs_to_do ON jobs (created) WHERE state IN ('queued', 'running');
CREATE INDEX IF NOT EXISTS jobs_to_count ON jobs (job_id) WHERE state = 'done' AND counted = 0;
"""

_COLUMNS = "job_id, state, created, started, ended, attempts, cancelling, progress, result, error"


@dataclass(frozen=True, slots=True)
class Job:
    """One job as it stands; times are Unix times in seconds."""

    job_id: str
    state: JobState
    created: float
    started: float | None
    ended: float | None
    attempts: int
    cancelling: bool
    progress: dict[str, Any] | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    waiting_before: int | None = None


class JobStore:
    """The jobs of one service.

    Args:
        folder: Where they lie; made if it is missing.
        waiting: Jobs that wait at most.
    """

    def __init__(self, folder: str | os.PathLike[str], *, waiting: int = 16) -> None:
        self.folder = Path(folder)
        self.waiting = waiting
        self._cipher = InputCipher(self.folder / "jobs.key")

    def submit(self, content: Mapping[str, Any]) -> Job:
        """Queues a job, or finds the one that has the same content.

        One that failed or was cancelled is queued again; one that is done stays so.

        Args:
            content: A JSON value that says all of what is to be done.

        Raises:
            QueueFullError: too many wait already.
        """
        given = plain(content)
        job_id = derived_id(self._cipher.mac("job\0" + json_digest(given)))
        sealed = self._cipher.encrypt(job_id, given)
        with self._transaction() as connection:
            row = connection.execute("SELECT state FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
            if row is None or row[0] in ("failed", "cancelled"):
                (count,) = connection.execute("SELECT count(*) FROM jobs WHERE state = 'queued'").fetchone()
                if count >= self.waiting:
                    raise QueueFullError(
                        f"{count} jobs wait already, which is as many as may (jobs.waiting); submit it again later",
                        retry_after=60,
                    )
                connection.execute(
                    "INSERT OR REPLACE INTO jobs (job_id, state, created, content) VALUES (?, 'queued', ?, ?)",
                    (job_id, time.time(), sealed),
                )
            elif row[0] == "running":  # wanted after all
                connection.execute("UPDATE jobs SET cancelling = 0 WHERE job_id = ?", (job_id,))
        return self.get(job_id)

    def get(self, job_id: str) -> Job:
        """The job with this id.

        Raises:
            JobNotFoundError: there is none.
        """
        with self._connected() as connection:
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM jobs WHERE job_id = ?",  # noqa: S608 (a constant)
                (job_id,),
            ).fetchone()
            if row is None:
                raise JobNotFoundError(
                    f"no job has the id {job_id[:64]!r}; /audit/jobs/submit answers with it", field="job_id"
                )
            before = None
            if row[1] == "queued":
                (before,) = connection.execute(
                    "SELECT count(*) FROM jobs WHERE state = 'running' OR (state = 'queued' AND "
                    "(created < ? OR (created = ? AND job_id < ?)))",
                    (row[2], row[2], job_id),
                ).fetchone()
        return _job(row, before)

    def cancel(self, job_id: str) -> Job:
        """Cancels a job that waits, and asks one that runs to stop at its next step; one that has ended stays as it is.

        Raises:
            JobNotFoundError: there is none.
        """
        with self._transaction() as connection:
            connection.execute(
                "UPDATE jobs SET state = 'cancelled', ended = ?, content = NULL WHERE job_id = ? AND state = 'queued'",
                (time.time(), job_id),
            )
            connection.execute("UPDATE jobs SET cancelling = 1 WHERE job_id = ? AND state = 'running'", (job_id,))
        return self.get(job_id)

    def counts(self) -> dict[str, int]:
        """Number of jobs by state."""
        with self._connected() as connection:
            return dict(connection.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())

    def begin(self) -> tuple[Job, dict[str, Any]] | None:
        """The next job and its content, for the one process that works; None where there is nothing to do.

        A job that runs already was left by a process that ended: it is gone on with before any other, but not for ever.
        """
        while True:
            with self._transaction() as connection:
                row = connection.execute(
                    "SELECT job_id, attempts, cancelling, content FROM jobs WHERE state IN ('queued', 'running') "
                    "ORDER BY state = 'queued', created, job_id LIMIT 1"
                ).fetchone()
                if row is None:
                    return None
                job_id, attempts, cancelling, sealed = row
                if not cancelling and attempts < MOST_ATTEMPTS:
                    connection.execute(
                        "UPDATE jobs SET state = 'running', started = coalesce(started, ?), attempts = attempts + 1 "
                        "WHERE job_id = ?",
                        (time.time(), job_id),
                    )
            if cancelling:
                self.end(job_id, "cancelled")
            elif attempts >= MOST_ATTEMPTS:
                message = (
                    f"its process ended {attempts} times without a result, as one does that needs more memory than "
                    "there is; the log in the state folder may say more"
                )
                self.end(job_id, "failed", error={"code": "job_process_ended", "message": message})
            else:
                try:
                    return self.get(job_id), self._cipher.decrypt(job_id, sealed)
                except ServiceError as error:
                    self.end(job_id, "failed", error={"code": error.code, "message": error.message})

    def told(self, job_id: str, progress: Mapping[str, Any]) -> bool:
        """Writes how far a running job is; returns whether it is to stop."""
        with self._transaction() as connection:
            connection.execute("UPDATE jobs SET progress = ? WHERE job_id = ?", (json.dumps(progress), job_id))
            row = connection.execute("SELECT cancelling FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
        return row is None or bool(row[0])

    def end(
        self,
        job_id: str,
        state: JobState,
        *,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> None:
        """A running job has ended; what it was about is erased."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE jobs SET state = ?, ended = ?, result = ?, error = ?, content = NULL, progress = NULL, "
                "cancelling = 0 WHERE job_id = ? AND state = 'running' OR job_id = ? AND state = 'queued'",
                (state, time.time(), _text(result), _text(error), job_id, job_id),
            )

    def forgive(self) -> None:
        """The process that works ends for no fault of its job: that is not counted as an attempt."""
        with self._transaction() as connection:
            connection.execute("UPDATE jobs SET attempts = attempts - 1 WHERE state = 'running' AND attempts > 0")

    def uncounted(self) -> list[dict[str, Any]]:
        """Results that nobody has been given yet, for metrics: each is returned once, whoever asks."""
        with self._transaction() as connection:
            rows = connection.execute(
                "UPDATE jobs SET counted = 1 WHERE state = 'done' AND counted = 0 RETURNING result"
            ).fetchall()
        return [json.loads(row[0]) for row in rows]

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            # A job that was acknowledged survives a power cut.
            opened = open_database(self.folder / "jobs.sqlite", SCHEMA, synchronous="FULL", timeout_s=10.0)
            with contextlib.closing(opened) as connection:
                yield connection
        except (sqlite3.Error, OSError) as error:
            raise ServiceError(f"the jobs in {self.folder} cannot be read or written: {error}") from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connected() as connection, transaction(connection):
            yield connection


def _job(row: tuple[Any, ...], before: int | None) -> Job:
    job_id, state, created, started, ended, attempts, cancelling, progress, result, error = row
    return Job(
        job_id=job_id,
        state=state,
        created=created,
        started=started,
        ended=ended,
        attempts=attempts,
        cancelling=bool(cancelling),
        progress=None if progress is None else json.loads(progress),
        result=None if result is None else json.loads(result),
        error=None if error is None else json.loads(error),
        waiting_before=before,
    )


def _text(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else json.dumps(plain(value), allow_nan=False)
