"""Files of inputs for the command line: their format, and the columns that the task's fields are in."""

from __future__ import annotations

from pathlib import Path

from audit_service.config import AuditConfig
from audit_service.workflows.adoption.columns import KINDS
from audit_service.workspace import Workspace
from influence_engine.data import DataSettings
from influence_engine.data.sources import Table, open_table
from influence_engine.errors import DataError, SettingsError
from influence_engine.names import did_you_mean, listing
from influence_engine.progress import silent
from influence_engine.tasks import input_fields


def input_table(path: Path, field: str) -> Table:
    """The rows of a .jsonl, .csv or .parquet file.

    Raises:
        SettingsError: ``path`` is of another format; ``field`` is the option that named it.
        DataError: it cannot be read.
    """
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise SettingsError(f"{path}: the file's name must end with {', '.join(KINDS)}", field=field)
    return open_table(DataSettings.model_validate({kind: path.resolve()}), path.parent, silent)


def column_of(config: AuditConfig, table: Table, key: str) -> str | None:
    """The column of a table that holds a field of the task, by the training data's name for it or its own."""
    return next((name for name in (config.data.train.columns.get(key), key) if name in table.columns), None)


def input_columns(workspace: Workspace, table: Table, what: str) -> dict[str, str]:
    """The column of every field of an input, by the field's name.

    Args:
        workspace: Workspace of the task.
        table: The rows.
        what: What a column holds, for messages; ``{kind}`` stands for the kind of its field.

    Raises:
        DataError: a column is missing.
    """
    found = {}
    for field in input_fields(workspace.fields):
        column = column_of(workspace.config, table, field.name)
        if column is None:
            holds = what.format(kind="text" if field.readable else "input")
            raise no_column(table, field.name, f"there is no column {field.name!r} with the {holds}")
        found[field.name] = column
    return found


def no_column(table: Table, key: str, what: str) -> DataError:
    """The error that a needed column is not there, with the columns that are."""
    return DataError(
        f"{table.location}: {what}. The columns are {listing(table.columns)}.{did_you_mean(key, table.columns)}",
        field=key,
    )
