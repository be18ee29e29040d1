"""The table as it was before versions were written down; one of that time is taken over as it is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from audit_service.store.migrations.unversioned import tables_to_take_over

revision = "0001"
down_revision = None

TABLES = {
    "jobs": {
        "job_id",
        "state",
        "created",
        "started",
        "ended",
        "attempts",
        "cancelling",
        "counted",
        "content",
        "progress",
        "result",
        "error",
    }
}


def upgrade() -> None:
    """Makes what is missing."""
    if "jobs" not in tables_to_take_over(TABLES):
        op.create_table(
            "jobs",
            sa.Column("job_id", sa.Text, primary_key=True),
            sa.Column("state", sa.Text, nullable=False),
            sa.Column("created", sa.Double, nullable=False),
            sa.Column("started", sa.Double),
            sa.Column("ended", sa.Double),
            sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
            sa.Column("cancelling", sa.Integer, nullable=False, server_default=sa.text("0")),
            sa.Column("counted", sa.Integer, nullable=False, server_default=sa.text("0")),
            sa.Column("content", sa.LargeBinary),
            sa.Column("progress", sa.Text),
            sa.Column("result", sa.Text),
            sa.Column("error", sa.Text),
            sa.CheckConstraint("state IN ('queued', 'running', 'done', 'failed', 'cancelled')", name="known_state"),
            sqlite_with_rowid=False,
        )
    to_do, to_count = sa.text("state IN ('queued', 'running')"), sa.text("state = 'done' AND counted = 0")
    op.create_index("jobs_to_do", "jobs", ["created"], sqlite_where=to_do, postgresql_where=to_do, if_not_exists=True)
    op.create_index(
        "jobs_to_count", "jobs", ["job_id"], sqlite_where=to_count, postgresql_where=to_count, if_not_exists=True
    )
