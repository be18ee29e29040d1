"""Selects training examples by group or by handle; messages name columns, and never what is in them."""

from __future__ import annotations

from collections.abc import Sequence

from influence_engine.errors import InputError
from influence_engine.index import InfluenceIndex


def rows_of_group(index: InfluenceIndex, column: str, value: str) -> list[int]:
    """Rows of the examples with a value in a column.

    Args:
        index: The index.
        column: What examples are grouped by: ``label``, ``source``, ``licence``, ``consent``, or one of the metadata.
        value: The group.

    Raises:
        InputError: examples cannot be grouped by that, or none is in the group.
    """
    values = index.values_of(column)
    if values is None:
        raise InputError(
            f"training examples cannot be grouped by {column[:80]!r}; they have {', '.join(index.columns())}",
            field="group",
        )
    rows = [row for row, found in enumerate(values) if found is not None and str(found) == value]
    if not rows:
        raise InputError(f"no training example has the {column[:80]} {value[:80]!r}", field="group")
    return rows


def rows_of_handles(index: InfluenceIndex, handles: Sequence[str]) -> list[int]:
    """Rows of the examples with these handles.

    Raises:
        InputError: there is none with one of them.
    """
    rows = []
    for handle in handles:
        row = index.row_of(handle)
        if row is None:
            raise InputError(
                f"this index has no example {handle[:80]!r}; explanations name them as example_handle",
                field="examples",
            )
        rows.append(row)
    return rows
