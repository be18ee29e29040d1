"""Rows of a CSV file."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from influence_engine.data.sources.table import Row, Table, require_file, unicode_problem
from influence_engine.errors import DataError
from influence_engine.names import listing

LONGEST_CELL = 64 * 2**20
"""Most characters of a cell; the standard library's own limit, 131,072, is less than some documents."""


def read_csv(path: Path, *, name: str, delimiter: str = ",") -> Table:
    """Reads a CSV file whose first line names the columns.

    A row with too few or too many cells, with bytes that are not UTF-8, or with broken quoting becomes a row with a
    problem; its line is the one it begins on. Blank lines are skipped.

    Raises:
        DataError: there is no such file, it is empty, or its header cannot be used.
    """
    require_file(path, key="csv")
    # csv knows only one limit for the whole process; reading does not yield in between, so it is put back unseen.
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        # Bytes that are not UTF-8 survive as surrogates, so that one bad row does not hide the others.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            return _read(file, path, name, delimiter)
    finally:
        csv.field_size_limit(limit)


def _read(file: TextIO, path: Path, name: str, delimiter: str) -> Table:
    records = _records(file, delimiter)
    line, header, problem = next(records, (1, [], None))
    if problem is not None:
        raise DataError(f"{path}, line {line}: the header cannot be read: {problem}", field="csv")
    if not header:
        raise DataError(f"{path} is empty; its first line must name the columns", field="csv")
    columns = [column.strip() for column in header]
    problem = _header_problem(columns)
    if problem is not None:
        raise DataError(f"{path}, line {line}: {problem}", field="csv")
    rows = [_row(line, cells, problem, columns) for line, cells, problem in records]
    return Table(name=name, location=str(path), unit="line", columns=columns, rows=rows)


def _records(file: TextIO, delimiter: str) -> Iterator[tuple[int, list[str], str | None]]:
    """Records of the file: the line that each begins on, its cells, its problem; blank lines are left out."""
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, [], _quoting(str(error), line, reader.line_num)
            continue
        if cells:
            yield line, cells, None


def _quoting(error: str, first: int, last: int) -> str:
    if error == "unexpected end of data":
        return f"a quote opens here and is never closed; lines {first} to {last} are lost to it"
    return f"broken CSV: {error}"


def _header_problem(columns: list[str]) -> str | None:
    problem = unicode_problem({column: column for column in columns})
    if problem is not None:
        return f"the header: {problem}"
    twice = [column for column, count in Counter(columns).items() if count > 1]
    return f"columns named more than once: {listing(twice)}" if twice else None


def _row(line: int, cells: list[str], problem: str | None, columns: list[str]) -> Row:
    if problem is not None:
        return Row(line=line, problem=problem)
    if len(cells) != len(columns):
        return Row(line=line, problem=f"has {_cells(len(cells))}, the header has {len(columns)}")
    values = dict(zip(columns, cells, strict=True))
    return Row(line=line, values=values, problem=unicode_problem(values))


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"
