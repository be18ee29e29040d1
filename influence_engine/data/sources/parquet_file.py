"""Rows of a Parquet file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from influence_engine.data.sources.table import Row, Table, require_file, unicode_problem
from influence_engine.errors import DataError


def read_parquet(path: Path, *, name: str) -> Table:
    """Reads a Parquet file; rows count from 1.

    Raises:
        DataError: there is no such file, or it is not Parquet.
    """
    require_file(path, key="parquet")
    try:
        with pq.ParquetFile(path) as file:
            columns = list(file.schema_arrow.names)
            batches = list(file.iter_batches())
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}", field="parquet") from error
    rows: list[Row] = []
    for batch in batches:
        values = [_values(column) for column in batch.columns]
        for cells in zip(*values, strict=True):
            row = dict(zip(columns, cells, strict=True))
            rows.append(Row(line=len(rows) + 1, values=row, problem=unicode_problem(row)))
    return Table(name=name, location=str(path), unit="row", columns=columns, rows=rows)


def _values(column: Any) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        # Parquet does not check that its strings are UTF-8. Bytes that are not survive as surrogates, as in CSV.
        raw = column.cast(pa.binary() if pa.types.is_string(column.type) else pa.large_binary()).to_pylist()
        values = [None if text is None else text.decode("utf-8", errors="surrogateescape") for text in raw]
    return values
