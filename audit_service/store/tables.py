"""Every table that the service keeps, as it is today; how older ones become so is in ``migrations``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import (
    CheckConstraint,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)

MIGRATIONS = Path(__file__).parent / "migrations"


@dataclass(frozen=True, slots=True)
class StoreSchema:
    """Tables that are opened together: one SQLite file of the state folder, or their share of a server's database.

    Attributes:
        name: Names the file and the table with the version.
        metadata: The tables.
        migrations: The folder of the files that make them.
        versions: Every version that this program can read, oldest first; the last one is what it writes.
        synchronous: For SQLite: ``FULL`` survives a power cut with what was acknowledged, ``NORMAL`` a crash of the
            process. A PostgreSQL server acknowledges as it is configured to.
        timeout_s: How long a transaction waits for another process.
    """

    name: str
    metadata: MetaData
    migrations: Path
    versions: tuple[str, ...]
    synchronous: Literal["NORMAL", "FULL"]
    timeout_s: float

    @property
    def version(self) -> str:
        """The version of today's tables."""
        return self.versions[-1]


_predictions = MetaData()
_jobs = MetaData()

PREDICTIONS = StoreSchema(
    "predictions", _predictions, MIGRATIONS / "predictions", ("0001",), synchronous="NORMAL", timeout_s=5.0
)
JOBS = StoreSchema("jobs", _jobs, MIGRATIONS / "jobs", ("0001",), synchronous="FULL", timeout_s=10.0)

predictions = Table(
    "predictions",
    _predictions,
    Column("prediction_id", Text, primary_key=True),
    Column("time", Double, nullable=False),
    Column("service", Text, nullable=False),
    Column("model_digest", Text, nullable=False),
    Column("label", Text),
    Column("confidence", Double),
    Column("scores", Text),
    Column("input", LargeBinary),
    Column(
        "input_state",
        Text,
        CheckConstraint("input_state IN ('kept', 'not_kept', 'erased')", name="known_input_state"),
        nullable=False,
    ),
    sqlite_with_rowid=False,
)
_kept = text("input_state = 'kept'")
Index("kept_by_time", predictions.c.time, sqlite_where=_kept, postgresql_where=_kept)

reservations = Table(
    "reservations",
    _predictions,
    Column("prediction_id", Text, primary_key=True),
    Column("time", Double, nullable=False),
    Column("input_mac", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

outcomes = Table(
    "outcomes",
    _predictions,
    Column("prediction_id", Text, primary_key=True),
    Column("time", Double, nullable=False),
    Column("label", Text, nullable=False),
    Column("groups", Text, nullable=False),
    sqlite_with_rowid=False,
)

jobs = Table(
    "jobs",
    _jobs,
    Column("job_id", Text, primary_key=True),
    Column(
        "state",
        Text,
        CheckConstraint("state IN ('queued', 'running', 'done', 'failed', 'cancelled')", name="known_state"),
        nullable=False,
    ),
    Column("created", Double, nullable=False),
    Column("started", Double),
    Column("ended", Double),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("cancelling", Integer, nullable=False, server_default=text("0")),
    Column("counted", Integer, nullable=False, server_default=text("0")),
    Column("content", LargeBinary),
    Column("progress", Text),
    Column("result", Text),
    Column("error", Text),
    sqlite_with_rowid=False,
)
_to_do = text("state IN ('queued', 'running')")
Index("jobs_to_do", jobs.c.created, sqlite_where=_to_do, postgresql_where=_to_do)
_to_count = text("state = 'done' AND counted = 0")
Index("jobs_to_count", jobs.c.job_id, sqlite_where=_to_count, postgresql_where=_to_count)
