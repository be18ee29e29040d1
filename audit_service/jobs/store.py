"""The queue: one table, shared by a service's workers and the process that does the work.

A job's id is made of its content: the same content submitted again, by whomever and whenever, is the same job. What is
to be done may hold personal texts: it is encrypted like inputs on record, and erased when the job has ended. Every
change of state is one transaction, and none runs beside another; a job that was acknowledged survives a power cut.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BindParameter, and_, bindparam, case, func, or_, select, update

from audit_service.errors import JobNotFoundError, QueueFullError, ServiceError
from audit_service.schemas import JobState
from audit_service.store.database import Database, Insert, storable
from audit_service.store.encryption import InputCipher, plain
from audit_service.store.ids import derived_id
from audit_service.store.location import StateLocation, private_folder
from audit_service.store.tables import JOBS, jobs
from influence_engine.digests import json_digest

MOST_ATTEMPTS = 3
"""A job whose worker ended that often without a result has killed it, and is not begun again."""

ENDED = ("done", "failed", "cancelled")

LOCK = "jobs.lock"
"""The file that is locked by the one process that works; on a server, the name of the lock."""

FAILURE = "the jobs cannot be read or written"

_ID: BindParameter[str] = bindparam("id")
_NOW: BindParameter[float] = bindparam("now")
_THIS = jobs.c.job_id == _ID

READ = select(
    jobs.c.job_id,
    jobs.c.state,
    jobs.c.created,
    jobs.c.started,
    jobs.c.ended,
    jobs.c.attempts,
    jobs.c.cancelling,
    jobs.c.progress,
    jobs.c.result,
    jobs.c.error,
).where(_THIS)
QUEUE = Insert.or_replace(jobs)
STATE = select(jobs.c.state).where(_THIS)
QUEUED = select(func.count()).where(jobs.c.state == "queued")
WAITING_BEFORE = select(func.count()).where(
    or_(
        jobs.c.state == "running",
        and_(
            jobs.c.state == "queued",
            or_(
                jobs.c.created < bindparam("created"),
                and_(jobs.c.created == bindparam("created"), jobs.c.job_id < _ID),
            ),
        ),
    )
)
COUNTS = select(jobs.c.state, func.count()).group_by(jobs.c.state)
NEXT = (
    select(jobs.c.job_id, jobs.c.attempts, jobs.c.cancelling, jobs.c.content)
    .where(jobs.c.state.in_(("queued", "running")))
    .order_by(case((jobs.c.state == "queued", 1), else_=0), jobs.c.created, jobs.c.job_id)
    .limit(1)
)
BEGIN = (
    update(jobs)
    .where(_THIS)
    .values(state="running", started=func.coalesce(jobs.c.started, _NOW), attempts=jobs.c.attempts + 1)
)
CANCEL_QUEUED = update(jobs).where(_THIS, jobs.c.state == "queued").values(state="cancelled", ended=_NOW, content=None)
CANCEL_RUNNING = update(jobs).where(_THIS, jobs.c.state == "running").values(cancelling=1)
KEEP_RUNNING = update(jobs).where(_THIS).values(cancelling=0)
PROGRESS = update(jobs).where(_THIS).values(progress=bindparam("given"))
CANCELLING = select(jobs.c.cancelling).where(_THIS)
_ONE_LESS = case((jobs.c.attempts > 0, jobs.c.attempts - 1), else_=0)
GIVE_BACK = update(jobs).where(jobs.c.state == "running").values(state="queued", attempts=_ONE_LESS)
FORGIVE = update(jobs).where(jobs.c.state == "running").values(attempts=_ONE_LESS)
COUNT_RESULTS = (
    update(jobs).where(jobs.c.state == "done", jobs.c.counted == 0).values(counted=1).returning(jobs.c.result)
)


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
        place: The state folder, with the jobs and their key, or the location that names a server beside it; made if it
            is missing.
        waiting: Jobs that wait at most.
    """

    def __init__(self, place: StateLocation | str | os.PathLike[str], *, waiting: int = 16) -> None:
        location = StateLocation.of(place)
        self.folder = location.folder
        self.waiting = waiting
        self._location = location
        self._database = Database(location, JOBS)
        self._cipher = InputCipher(self.folder / "jobs.key")

    def submit(self, content: Mapping[str, Any]) -> Job:
        """Queues a job, or finds the one that has the same content.

        One that failed or was cancelled is queued again; one that is done stays so.

        Args:
            content: A JSON value that says all of what is to be done.

        Raises:
            QueueFullError: too many wait already.
            ServiceError: the jobs cannot be written.
        """
        given = plain(content)
        job_id = derived_id(self._cipher.mac("job\0" + json_digest(given)))
        encrypted = self._cipher.encrypt(job_id, given)
        with self._database.writing(FAILURE, alone=True) as connection:
            state = connection.scalar(STATE, {"id": job_id})
            if state in (None, "failed", "cancelled"):
                count = connection.scalar(QUEUED) or 0
                if count >= self.waiting:
                    raise QueueFullError(
                        f"{count} jobs wait already, which is as many as may (jobs.waiting); submit it again later",
                        retry_after=60,
                    )
                fresh: dict[str, Any] = {column.name: None for column in jobs.columns}
                fresh |= {"job_id": job_id, "state": "queued", "created": time.time(), "content": encrypted}
                fresh |= {"attempts": 0, "cancelling": 0, "counted": 0}
                QUEUE.into(connection, fresh)
            elif state == "running":  # wanted after all
                connection.execute(KEEP_RUNNING, {"id": job_id})
        return self.get(job_id)

    def get(self, job_id: str) -> Job:
        """The job with this id.

        Raises:
            JobNotFoundError: there is none.
            ServiceError: the jobs cannot be read.
        """
        before = None
        with self._database.reading(FAILURE) as connection:
            row = connection.execute(READ, {"id": job_id}).one_or_none() if storable(job_id) else None
            if row is not None and row.state == "queued":
                before = connection.scalar(WAITING_BEFORE, {"created": row.created, "id": job_id})
        if row is None:
            raise JobNotFoundError(
                f"no job has the id {job_id[:64]!r}; /audit/jobs/submit answers with it", field="job_id"
            )
        job_id, state, created, started, ended, attempts, cancelling, progress, result, error = row
        return Job(
            job_id=job_id,
            state=state,
            created=created,
            started=started,
            ended=ended,
            attempts=attempts,
            cancelling=bool(cancelling),
            progress=_parsed(progress),
            result=_parsed(result),
            error=_parsed(error),
            waiting_before=before,
        )

    def cancel(self, job_id: str) -> Job:
        """Cancels a job that waits, and asks one that runs to stop at its next step; one that has ended stays as it is.

        Raises:
            JobNotFoundError: there is none.
            ServiceError: the jobs cannot be written.
        """
        if storable(job_id):
            with self._database.writing(FAILURE, alone=True) as connection:
                connection.execute(CANCEL_QUEUED, {"id": job_id, "now": time.time()})
                connection.execute(CANCEL_RUNNING, {"id": job_id})
        return self.get(job_id)

    def counts(self) -> dict[str, int]:
        """Number of jobs by state.

        Raises:
            ServiceError: the jobs cannot be read.
        """
        with self._database.reading(FAILURE) as connection:
            return {row[0]: row[1] for row in connection.execute(COUNTS)}

    def begin(self) -> tuple[Job, dict[str, Any]] | None:
        """The next job and its content, for the one process that works; None where there is nothing to do.

        A job that runs already was left by a process that ended: it is gone on with before any other, but not for ever.

        Raises:
            ServiceError: the jobs cannot be written.
        """
        while True:
            with self._database.writing(FAILURE, alone=True) as connection:
                row = connection.execute(NEXT).one_or_none()
                if row is None:
                    return None
                job_id, attempts, cancelling, encrypted = row
                if not cancelling and attempts < MOST_ATTEMPTS:
                    connection.execute(BEGIN, {"id": job_id, "now": time.time()})
            if cancelling:
                self.end(job_id, "cancelled")
            elif attempts >= MOST_ATTEMPTS:
                message = (
                    f"its process ended {attempts} times without a result, as one does that needs more memory than "
                    "there is; the log in the state folder may say more"
                )
                self.end(job_id, "failed", error={"code": "job_process_ended", "message": message})
            else:
                job = self.get(job_id)
                try:
                    return job, self._cipher.decrypt(job_id, encrypted)
                except ServiceError as error:
                    self.end(job_id, "failed", error={"code": error.code, "message": error.message})

    def report_progress(self, job_id: str, progress: Mapping[str, Any]) -> bool:
        """Writes how far a running job is; returns whether it is to stop.

        Raises:
            ServiceError: the jobs cannot be written.
        """
        with self._database.writing(FAILURE, alone=True) as connection:
            connection.execute(PROGRESS, {"id": job_id, "given": json.dumps(progress)})
            return connection.scalar(CANCELLING, {"id": job_id}) != 0

    def end(
        self,
        job_id: str,
        state: JobState,
        *,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> None:
        """A job that waits or runs has ended; what it was about is erased.

        Raises:
            ServiceError: the jobs cannot be written.
        """
        values = {"state": state, "ended": time.time(), "result": _text(result), "error": _text(error)}
        values |= {"content": None, "progress": None, "cancelling": 0}
        with self._database.writing(FAILURE, alone=True) as connection:
            connection.execute(
                update(jobs).where(jobs.c.job_id == job_id, jobs.c.state.in_(("queued", "running"))).values(values)
            )

    def give_back(self) -> None:
        """The process that works ends for no fault of its job, which waits for the next one: that was no attempt.

        Raises:
            ServiceError: the jobs cannot be written.
        """
        with self._database.writing(FAILURE, alone=True) as connection:
            connection.execute(GIVE_BACK)

    def forgive(self) -> None:
        """A server starts and finds a job that ended with an earlier one, before it could be given back: no attempt.

        Raises:
            ServiceError: the jobs cannot be written.
        """
        with self.working() as alone:
            if alone:
                with self._database.writing(FAILURE, alone=True) as connection:
                    connection.execute(FORGIVE)

    def take_uncounted_results(self) -> list[dict[str, Any]]:
        """Results that nobody has been given yet, for metrics: each is returned once, whoever asks.

        Raises:
            ServiceError: the jobs cannot be written.
        """
        with self._database.writing(FAILURE, alone=True) as connection:
            texts = connection.scalars(COUNT_RESULTS).all()
        return [json.loads(text) for text in texts]

    @contextlib.contextmanager
    def working(self) -> Iterator[bool]:
        """Whether this process is the one that may work on the jobs, as long as the context lasts.

        Where the jobs lie in the folder, a file is locked there; where they lie on a server, a lock of the server's is
        taken, so that of several machines one works.

        Raises:
            ServiceError: the server cannot be asked.
        """
        if self._location.url is not None:
            with self._database.holding(LOCK, FAILURE) as held:
                yield held
            return
        with (private_folder(self.folder) / LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def is_worked_on(self) -> bool:
        """Whether some process works on the jobs.

        Raises:
            ServiceError: the server cannot be asked.
        """
        with self.working() as free:
            return not free


def _parsed(text: str | None) -> dict[str, Any] | None:
    return None if text is None else json.loads(text)


def _text(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else json.dumps(plain(value), allow_nan=False)
