"""``Table``, which every reader returns: named columns, and rows with their line in the source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from influence_engine.errors import DataError
from influence_engine.names import did_you_mean


@dataclass(frozen=True)
class Row:
    """One row: its values by column, or why it could not be read."""

    line: int
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class Table:
    """All rows of a source.

    Attributes:
        name: What the source is called in messages and, where nothing else is known, as the examples' ``source``.
        location: The file, for messages.
        unit: What ``Row.line`` counts from 1: ``line`` of a text file, ``row`` of a table.
        columns: Names of all columns.
        rows: The rows, unreadable ones included.
        licence: The licence that the source itself states, if any.
        part_by: The column whose equal values belong into one part, where settings name none.
    """

    name: str
    location: str
    unit: str
    columns: list[str]
    rows: list[Row]
    licence: str | None = None
    part_by: str | None = None


def require_file(path: Path, *, key: str) -> None:
    """Refuses a path where there is no file.

    Raises:
        DataError: the message names the path and, where there is one, a similar name beside it.
    """
    if path.is_file():
        return
    if path.is_dir():
        raise DataError(f"{key}: {path} is a folder; a file is needed", field=key)
    raise DataError(f"{key}: there is no file {path}.{similar_path(path)}", field=key)


def similar_path(path: Path) -> str:
    """A hint for a path that does not exist, such as a similar name beside it, with a space before it; or nothing."""
    if not path.parent.is_dir():
        return f" Its folder {path.parent} does not exist either."
    return did_you_mean(path.name, (beside.name for beside in path.parent.iterdir()))


def unicode_problem(values: Mapping[str, Any]) -> str | None:
    """Why a row's texts cannot be stored as UTF-8, of the first such column; None where they all can."""
    for column, value in values.items():
        for text in _texts(value):
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                code = ord(text[error.start])
                # surrogateescape puts the bytes 0x80 to 0xff at U+DC80 to U+DCFF.
                if 0xDC80 <= code <= 0xDCFF:
                    return f"column {column!r} is not UTF-8: byte 0x{code - 0xDC00:02x} after {error.start} characters"
                return f"column {column!r} holds half a surrogate pair, U+{code:04X}, after {error.start} characters"
    return None


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)
