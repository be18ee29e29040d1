"""What an index tells of its training examples: their descriptions, and the columns by which they can be grouped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from influence_engine.index.store import RESERVED, ExampleTable
from influence_engine.tasks import Example

GROUPING = ("label", "source", "licence", "consent")
"""Columns of every example by which examples can be grouped."""

DESCRIPTION = ("example_handle", "source", "fields")
"""Columns that describe a training example in an explanation, beside its id and label."""


class ExampleDescriptions:
    """Describes the examples of a table, from the table or from examples that are given later.

    Args:
        table: The examples of an index.
        inline: Whether the table stores texts as they are.

    Attributes:
        labels: The examples' labels, in row order.
        example_ids: The examples' ids, in row order.
        cached_bytes: Bytes of memory that cached descriptions take.
    """

    def __init__(self, table: ExampleTable, *, inline: bool) -> None:
        self._table = table
        self._given: Mapping[str, Example] = {}
        self._rows: dict[str, int] | None = None
        self.labels: list[str | None] = table.column("label")
        self.example_ids: list[str] = table.column("example_id")
        self.cached_bytes = table.cache(DESCRIPTION if inline else ("example_id", *DESCRIPTION))

    def give(self, examples: Sequence[Example]) -> None:
        """Describes the rows by these examples from now on, where the table stores no texts."""
        self._given = {str(example["example_id"]): example for example in examples}

    def describe(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """``example_id``, ``example_handle``, ``label``, ``source`` and ``fields`` of rows, in the given order."""
        found = self._table.take(rows, DESCRIPTION) if rows else []
        return [
            {**one, "example_id": self.example_ids[row], "label": self.labels[row], **self._from_given(row)}
            for row, one in zip(rows, found, strict=True)
        ]

    def row_of(self, handle: str) -> int | None:
        """The row of the example with this handle; ``None`` where there is no such example."""
        if self._rows is None:
            self._rows = {one: row for row, one in enumerate(self._table.column("example_handle"))}
        return self._rows.get(handle)

    def columns(self) -> list[str]:
        """Names by which examples can be grouped: columns of every example, and the keys of their metadata."""
        metadata = {name for one in self._texts("metadata") for name in one or {}}
        return [*GROUPING, *sorted(metadata - set(GROUPING))]

    def values_of(self, column: str) -> list[Any] | None:
        """Every example's value of one of ``columns()``, in row order; ``None`` where there is no such column."""
        if column in GROUPING:
            return self.labels if column == "label" else self._texts(column)
        metadata = [one or {} for one in self._texts("metadata")]
        return [one.get(column) for one in metadata] if any(column in one for one in metadata) else None

    def _from_given(self, row: int) -> dict[str, Any]:
        example = self._given.get(self.example_ids[row])
        if example is None:
            return {}
        return {"source": example.get("source"), "fields": {k: v for k, v in example.items() if k not in RESERVED}}

    def _texts(self, column: str) -> list[Any]:
        if not self._given:
            return self._table.column(column)
        return [self._given.get(example_id, {}).get(column) for example_id in self.example_ids]
