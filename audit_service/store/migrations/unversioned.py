"""State from before versions were written down: recognised by its tables and columns."""

from __future__ import annotations

from collections.abc import Mapping, Set

import sqlalchemy as sa
from alembic import op

from audit_service.errors import StateSchemaError


def tables_to_take_over(known: Mapping[str, Set[str]]) -> set[str]:
    """Which of the tables are there already.

    Args:
        known: Names of the columns that each table had.

    Raises:
        StateSchemaError: a table of that name has other columns, and is somebody else's.
    """
    inspector, namespace = sa.inspect(op.get_bind()), op.get_context().version_table_schema
    there = set(known) & set(inspector.get_table_names(schema=namespace))
    for name in sorted(there):
        columns = {column["name"] for column in inspector.get_columns(name, schema=namespace)}
        if columns != known[name]:
            raise StateSchemaError(
                f"there is a table {name!r} without a schema version whose columns are {', '.join(sorted(columns))}; "
                f"bento-audit's were {', '.join(sorted(known[name]))}. Nothing has been changed; "
                "name another place for the state"
            )
    return there
