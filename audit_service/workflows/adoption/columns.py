"""Reads a data file and guesses which of its columns hold text, label and id."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from influence_engine.data.settings import DataSettings, label_key
from influence_engine.data.sources import open_table
from influence_engine.errors import DataError, SettingsError
from influence_engine.names import listing
from influence_engine.progress import silent

TEXT_NAMES = ("text", "sentence", "content", "review", "body", "message", "comment", "tweet", "document", "input")
LABEL_NAMES = ("label", "labels", "class", "category", "sentiment", "target", "intent", "topic", "gold")
OTHER_NAMES = {
    "id": ("example_id", "id", "uid", "uuid", "guid"),
    "source": ("source", "origin"),
    "licence": ("licence", "license"),
    "consent": ("consent",),
}
KINDS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}

Values = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Columns:
    """The columns of a data file.

    Attributes:
        kind: The key of ``DataSettings`` that names the file.
        names: The file's column for each field: ``text`` and ``label`` always, ``id``, ``source``, ``licence`` and
            ``consent`` where there are such columns.
        labels: Label value of the file -> label name of the model; empty where all are the same.
        rows: Number of rows.
        unreadable: Number of rows that cannot be read.
    """

    kind: str
    names: Mapping[str, str]
    labels: Mapping[str, str]
    rows: int
    unreadable: int


def inspect_columns(
    path: Path, labels: Sequence[str], *, text: str | None = None, label: str | None = None, id: str | None = None
) -> Columns:
    """Guesses the columns of a CSV, JSONL or Parquet file or a folder of ``save_to_disk``.

    Args:
        path: The file.
        labels: The model's label names.
        text: Column of the text; guessed if None.
        label: Column of the label; guessed if None.
        id: Column of a unique id; guessed if None, and None again where there is none.

    Raises:
        DataError: the file is missing, empty or of another format.
        SettingsError: a column is not there, cannot be guessed, or holds labels that the model does not have.
    """
    kind = "dataset" if path.is_dir() else KINDS.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"{path} must end with {', '.join(KINDS)}, or be a folder of save_to_disk", field="data")
    table = open_table(DataSettings.model_validate({kind: path.resolve()}), path.parent, silent)
    rows: Values = [row.values for row in table.rows if row.problem is None]
    if not rows:
        raise DataError(f"{path} holds no row that can be read", field="data")
    asked = {"text": text, "label": label, "id": id}
    for field, column in asked.items():
        if column is not None and column not in table.columns:
            raise SettingsError(f"{path} has no column {column!r}; it has {listing(table.columns)}", field=field)
    names = {
        "text": text or _named(table.columns, TEXT_NAMES) or _column_of_texts(rows, table.columns),
        "label": label or _named(table.columns, LABEL_NAMES) or _column_of_labels(rows, table.columns, labels),
    }
    for field, column in names.items():
        if column is None:
            raise SettingsError(
                f"which column of {path} is the {field}? It has {listing(table.columns)}; say so with --{field} COLUMN",
                field=field,
            )
    found = {field: column for field, column in names.items() if column is not None}
    for field, known in OTHER_NAMES.items():
        column = asked.get(field) or _named(table.columns, known)
        # A guessed id that is not unique is no id; one that was asked for is kept, and its rows are reported later.
        if column is not None and (field != "id" or id is not None or _is_unique(rows, column)):
            found[field] = column
    values = [row[found["label"]] for row in rows if row.get(found["label"]) not in (None, "")]
    mapping = map_labels(list(dict.fromkeys(label_key(value) for value in values)), labels)
    return Columns(kind, found, mapping, rows=len(table.rows), unreadable=len(table.rows) - len(rows))


def map_labels(values: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    """The model's label name for each label value of a file; empty where every value is a name already.

    A value is a name itself, a name in other letters' case, or the number of an output.

    Raises:
        SettingsError: a value is none of these.
    """
    known = {
        **{str(number): name for number, name in enumerate(labels)},
        **{name.casefold(): name for name in labels},
    }
    mapping = {value: known.get(value.casefold()) for value in values}
    unknown = [value for value, name in mapping.items() if name is None]
    if unknown:
        raise SettingsError(
            f"the data say {listing(unknown)} where the model knows {listing(labels)}; if these are the same labels, "
            "name them in the order of the model's outputs: --labels NAME,NAME",
            field="labels",
        )
    found = {value: name for value, name in mapping.items() if name is not None}
    return {} if all(value == name for value, name in found.items()) else found


def _named(columns: Sequence[str], names: Sequence[str]) -> str | None:
    by_name = {column.casefold(): column for column in reversed(columns)}
    return next((by_name[name] for name in names if name in by_name), None)


def _column_of_texts(rows: Values, columns: Sequence[str]) -> str | None:
    """The one column whose values are mostly of several words; None where there are none or several."""
    return _only(columns, lambda column: _share(rows, column, lambda value: " " in str(value).strip()) > 0.8)


def _column_of_labels(rows: Values, columns: Sequence[str], labels: Sequence[str]) -> str | None:
    """The one column whose values are the model's label names or numbers; None where there are none or several."""
    known = {name.casefold() for name in labels} | {str(number) for number in range(len(labels))}
    return _only(columns, lambda column: _share(rows, column, lambda value: label_key(value).casefold() in known) == 1)


def _only(columns: Sequence[str], fits: Callable[[str], bool]) -> str | None:
    fitting = [column for column in columns if fits(column)]
    return fitting[0] if len(fitting) == 1 else None


def _share(rows: Values, column: str, fits: Callable[[Any], bool]) -> float:
    return sum(fits(row.get(column, "")) for row in rows) / len(rows)


def _is_unique(rows: Values, column: str) -> bool:
    return len({str(row.get(column)) for row in rows}) == len(rows)
