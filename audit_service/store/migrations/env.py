"""What Alembic executes for every migration; ``schema_version.upgrade`` gives it an open transaction."""

from __future__ import annotations

from alembic import context

given = context.config.attributes
context.configure(
    connection=given["connection"],
    version_table=given["version_table"],
    version_table_schema=given["namespace"],
    transactional_ddl=True,  # SQLite's, too: its transactions are begun by ours, not by the driver
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
