"""Turns a row of a source into an example of a task."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from influence_engine.data.settings import ROLES, DataSettings, label_key
from influence_engine.data.sources import Row, Table
from influence_engine.errors import DataError
from influence_engine.names import did_you_mean, listing
from influence_engine.tasks import UNSAID_FIELDS, CheckingTask, fields_of, located, target_name


def task_fields(task: object, settings: DataSettings) -> tuple[list[str], str]:
    """Names of the fields that examples of this task need, and which of them is the target.

    They are the fields that the task says it has and the keys of ``columns`` that are not roles; ``UNSAID_FIELDS``
    where neither says any.
    """
    named = [field.name for field in fields_of(task)]
    mapped = [field for field in settings.columns if field not in ROLES]
    return list(dict.fromkeys([*named, *mapped])) or [field.name for field in UNSAID_FIELDS], target_name(task)


@dataclass(frozen=True)
class Builder:
    """Turns rows of one table into examples.

    Attributes:
        table: The table.
        settings: Say what the table's columns mean.
        task: Checks examples, if it is a ``CheckingTask``.
        fields: Field of the task -> column.
        roles: ``id``, ``source``, ``licence``, ``consent`` -> column, where the table has one.
        target: The field that training teaches.
    """

    table: Table
    settings: DataSettings
    task: object
    fields: dict[str, str]
    roles: dict[str, str]
    target: str

    @classmethod
    def for_table(cls, table: Table, settings: DataSettings, task: object) -> Builder:
        """The builder for a table, whose columns it finds.

        Raises:
            DataError: a column is missing; the message names it, those there are, and the nearest.
        """
        fields, target = task_fields(task, settings)
        roles = [role for role in ROLES if role in settings.columns or role in table.columns]
        columns = {name: settings.columns.get(name, name) for name in [*fields, *roles]}
        for name, column in columns.items():
            if column not in table.columns:
                how = (
                    f"columns.{name} names it"
                    if name in settings.columns
                    else f"map yours with `columns: {{{name}: ...}}`"
                )
                raise DataError(
                    f"{table.location}: there is no column {column!r} ({how}). "
                    f"The columns are {listing(table.columns)}.{did_you_mean(column, table.columns)}",
                    field=f"columns.{name}",
                )
        return cls(
            table=table,
            settings=settings,
            task=task,
            fields={name: columns[name] for name in fields},
            roles={name: columns[name] for name in roles},
            target=target,
        )

    def build(self, row: Row) -> dict[str, Any]:
        """The example of a row.

        Raises:
            DataError: the row cannot be used; the message says why, without the line.
        """
        if row.problem is not None:
            raise DataError(row.problem)
        values = {field: self._field(field, row) for field in self.fields}
        example = {"example_id": self._id(row), **located(fields_of(self.task), values, self._folder)}
        if isinstance(self.task, CheckingTask):
            self.task.check(example, labelled=True)
        for role in ("source", "licence", "consent"):
            example[role] = self._role(role, row)
        used = {*self.fields.values(), *self.roles.values()}
        example["metadata"] = {name: scalar(value) for name, value in row.values.items() if name not in used}
        return example

    @property
    def _folder(self) -> Path:
        """What relative paths in rows are below: the folder of the table's file."""
        return Path(os.path.abspath(self.table.location)).parent

    def part_key(self, row: Row, part_by: str | None) -> str:
        """What a row's part is drawn from: its value of the column ``part_by``, where it has one, else its id.

        Raises:
            DataError: the row cannot be read.
        """
        if row.problem is not None:
            raise DataError(row.problem)
        value = None if part_by is None else row.values.get(part_by)
        return self._id(row) if value is None else f"{part_by}={label_key(value)}"

    def _field(self, field: str, row: Row) -> Any:
        column = self.fields[field]
        called = repr(field) if field == column else f"{field!r} (column {column!r})"
        value = row.values.get(column)
        if value is None:
            raise DataError(f"{called} is missing")
        if isinstance(value, str) and not value.strip():
            raise DataError(f"{called} is empty")
        problem = None if isinstance(value, str) else _json_problem(value)
        if problem is not None:
            raise DataError(f"{called} {problem}")
        return self._translated(value, called) if field == self.target else value

    def _translated(self, value: Any, called: str) -> Any:
        names = self.settings.labels
        if names is None:
            return value
        if isinstance(value, list):
            return [self._translated(item, called) for item in value]
        if label_key(value) not in names:
            raise DataError(f"{called} is {value!r}, which `labels` does not name; it names {listing(names)}")
        return names[label_key(value)]

    def _id(self, row: Row) -> str:
        if "id" not in self.roles:
            return row_id(self.table.name, row.line)
        value = row.values.get(self.roles["id"])
        text = "" if value is None else label_key(value)
        if not text:
            raise DataError(f"the id (column {self.roles['id']!r}) is empty")
        return text

    def _role(self, role: str, row: Row) -> str | None:
        value = row.values.get(self.roles[role]) if role in self.roles else None
        if value is not None and str(value).strip():
            return str(value).strip()
        constant: str | None = getattr(self.settings, role)
        if constant is not None:
            return constant
        return {"source": self.table.name, "licence": self.table.licence}.get(role)


def _json_problem(value: Any) -> str | None:
    """Why a value cannot be a field: fields are JSON, so that digests of them mean the same everywhere."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return "holds NaN or infinity"
    except TypeError:
        return f"is of type {type(value).__name__}; texts, numbers and lists of them can be used"
    return None


def row_id(source: str, line: int) -> str:
    """The id of a row that has none of its own: stable, and independent of what the row holds."""
    return hashlib.sha256(f"{source}|{line}".encode("utf-8", errors="surrogatepass")).hexdigest()[:16]


def scalar(value: Any) -> str | int | float | bool | None:
    """A metadata value as a JSON scalar: lists and objects as JSON text, dates, decimals and NaN as text."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return str(value)
