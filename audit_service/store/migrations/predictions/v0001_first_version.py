"""The tables as they were before versions were written down; those of that time are taken over as they are."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from audit_service.store.migrations.unversioned import tables_to_take_over

revision = "0001"
down_revision = None

TABLES = {
    "predictions": {
        "prediction_id",
        "time",
        "service",
        "model_digest",
        "label",
        "confidence",
        "scores",
        "input",
        "input_state",
    },
    "reservations": {"prediction_id", "time", "input_mac"},
    "outcomes": {"prediction_id", "time", "label", "groups"},
}


def upgrade() -> None:
    """Makes what is missing: the outcomes of most old files, everything in a new one."""
    there = tables_to_take_over(TABLES)
    if "predictions" not in there:
        op.create_table(
            "predictions",
            sa.Column("prediction_id", sa.Text, primary_key=True),
            sa.Column("time", sa.Double, nullable=False),
            sa.Column("service", sa.Text, nullable=False),
            sa.Column("model_digest", sa.Text, nullable=False),
            sa.Column("label", sa.Text),
            sa.Column("confidence", sa.Double),
            sa.Column("scores", sa.Text),
            sa.Column("input", sa.LargeBinary),
            sa.Column("input_state", sa.Text, nullable=False),
            sa.CheckConstraint("input_state IN ('kept', 'not_kept', 'erased')", name="known_input_state"),
            sqlite_with_rowid=False,
        )
    kept = sa.text("input_state = 'kept'")
    op.create_index(
        "kept_by_time", "predictions", ["time"], sqlite_where=kept, postgresql_where=kept, if_not_exists=True
    )
    if "reservations" not in there:
        op.create_table(
            "reservations",
            sa.Column("prediction_id", sa.Text, primary_key=True),
            sa.Column("time", sa.Double, nullable=False),
            sa.Column("input_mac", sa.LargeBinary, nullable=False),
            sqlite_with_rowid=False,
        )
    if "outcomes" not in there:
        op.create_table(
            "outcomes",
            sa.Column("prediction_id", sa.Text, primary_key=True),
            sa.Column("time", sa.Double, nullable=False),
            sa.Column("label", sa.Text, nullable=False),
            sa.Column("groups", sa.Text, nullable=False),
            sqlite_with_rowid=False,
        )
