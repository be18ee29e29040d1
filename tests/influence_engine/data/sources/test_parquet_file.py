from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_engine.data.sources.parquet_file import read_parquet
from influence_engine.errors import DataError


def test_rows_count_from_one_and_keep_their_types(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None], "label": [0, 1], "tags": [["x"], []]}), tmp_path / "a.parquet")

    table = read_parquet(tmp_path / "a.parquet", name="x")

    assert table.columns == ["text", "label", "tags"]
    assert [(row.line, dict(row.values)) for row in table.rows] == [
        (1, {"text": "a", "label": 0, "tags": ["x"]}),
        (2, {"text": None, "label": 1, "tags": []}),
    ]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_a_string_that_is_not_utf8_spoils_its_row_only(tmp_path: Path, kind: pa.DataType) -> None:
    offsets = pa.array([0, 4, 8], pa.int32() if kind == pa.string() else pa.int64()).buffers()[1]
    column = pa.Array.from_buffers(kind, 2, [None, offsets, pa.py_buffer(b"fineca\xe9.")])
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")

    rows = read_parquet(tmp_path / "a.parquet", name="x").rows

    assert [row.problem for row in rows] == [None, "column 'text' is not UTF-8: byte 0xe9 after 2 characters"]


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("text,label\n")

    with pytest.raises(DataError, match=r"a\.parquet cannot be read as Parquet"):
        read_parquet(tmp_path / "a.parquet", name="x")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="parquet: there is no file"):
        read_parquet(tmp_path / "absent.parquet", name="x")
