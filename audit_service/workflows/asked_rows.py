"""Rows of a file as inputs of a task: which columns hold its fields, and what each row asks about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audit_service.workflows.input_files import column_of, input_columns, input_table, no_column
from audit_service.workflows.task_inputs import target_of
from audit_service.workspace import Workspace
from influence_engine.data.report import BadRow, bad_row_lines, plural
from influence_engine.data.row_parsing import scalar
from influence_engine.data.settings import label_key
from influence_engine.data.sources import Row, Table
from influence_engine.errors import DataError
from influence_engine.tasks import Target, embedded, target_field

TARGET = "target"
"""A column of this name says what to explain: a label's name, or a JSON object that the task understands."""


@dataclass(frozen=True)
class Asked:
    """One row of the file: the fields of its input, and the target that is explained instead of the prediction."""

    line: int
    id: str | int | float | bool | None
    input: dict[str, Any]
    target: Target | None


def read_rows(path: Path) -> Table:
    """The rows of a file of inputs.

    Raises:
        SettingsError: it is a file of an unknown format.
        DataError: it has no rows, or none that can be read.
    """
    table = input_table(path, "input")
    if not table.rows:
        raise DataError(f"{path} has no rows", field="input")
    unreadable = [BadRow(row.line, row.problem) for row in table.rows if row.problem is not None]
    if len(unreadable) == len(table.rows):
        # First, since a file of which nothing can be read has no columns to miss.
        raise _refusal(table, unreadable)
    return table


class RowReader:
    """Turns the rows of a table into inputs and targets.

    Args:
        workspace: Workspace of the task and its training data, by whose column names columns may be called.
        table: The rows.
        target: The target that is explained, whatever the rows say.
        only_wrong: Whether the rows' labels are what predictions are compared with.

    Raises:
        DataError: a column is missing.
    """

    def __init__(self, workspace: Workspace, table: Table, *, target: Target | None, only_wrong: bool) -> None:
        config, field = workspace.config, target_field(workspace.fields)
        self._table, self._target, self._only_wrong = table, target, only_wrong
        self._fields, self._folder = workspace.fields, Path(table.location).absolute().parent
        self._inputs = input_columns(workspace, table, "{kind} to explain")
        # Of other kinds than one label a row, the true target is no name for what is to be explained.
        labelled = field if field is not None and field.kind == "label" else None
        self._label = None if labelled is None else column_of(config, table, labelled.name)
        self._named = column_of(config, table, TARGET)
        self._id = column_of(config, table, "id")
        self._names = () if labelled is None else labelled.names or ()
        self._spelt = config.data.train.labels or {}
        if only_wrong and self._label is None and self._named is None:
            name = "label" if labelled is None else labelled.name
            what = f"--only-wrong compares predictions with the rows' labels, and there is no column {name!r} with them"
            raise no_column(table, name, what)

    def rows(self, check: Callable[[Asked], object]) -> list[Asked]:
        """All rows as inputs and targets.

        Args:
            check: Refuses a row that cannot be explained, by a ``DataError``.

        Raises:
            DataError: some cannot be used; they are listed with their lines.
        """
        rows, bad_rows = [], []
        for row in self._table.rows:
            try:
                asked = self._asked(row)
                check(asked)
                rows.append(asked)
            except DataError as error:
                bad_rows.append(BadRow(row.line, error.message))
        if bad_rows:
            raise _refusal(self._table, bad_rows)
        return rows

    def _asked(self, row: Row) -> Asked:
        if row.problem is not None:
            raise DataError(row.problem)
        for column in self._inputs.values():
            if row.values.get(column) is None:
                raise DataError(f"{column!r} is missing")
        label, target = (self._named_target(row, column) for column in (self._label, self._named))
        if self._only_wrong and label is None and target is None:
            raise DataError(f"{self._label or TARGET!r} is missing, and --only-wrong compares it")
        given = {name: row.values.get(column) for name, column in self._inputs.items()}
        return Asked(
            line=row.line,
            id=scalar(row.values.get(self._id)) if self._id is not None else None,
            input=dict(embedded(self._fields, given, self._folder)),
            target=label or target if self._only_wrong else self._target or target or label,
        )

    def _named_target(self, row: Row, column: str | None) -> Target | None:
        """The target that a cell names: a label as in the training data or by the task, or JSON; None for none."""
        value = None if column is None else row.values.get(column)
        if value is None:
            return None
        if isinstance(value, dict):
            return target_of(value)
        key = label_key(value)
        if not key:
            return None
        return key if key in self._names else target_of(self._spelt.get(key, key))


def _refusal(table: Table, bad_rows: Sequence[BadRow]) -> DataError:
    lines = [
        f"{table.location}: {len(bad_rows):,} of {plural(len(table.rows), 'row')} cannot be used:",
        *bad_row_lines(bad_rows, len(bad_rows), table.unit),
        "Correct them or leave them out of the file.",
    ]
    return DataError("\n".join(lines), field="input")
