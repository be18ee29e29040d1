from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from influence_engine.data.sources.csv_file import read_csv
from influence_engine.errors import DataError


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "reviews.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def problems(path: Path) -> dict[int, str]:
    return {row.line: row.problem for row in read_csv(path, name="reviews").rows if row.problem is not None}


def test_rows_know_their_columns_and_the_line_they_begin_on(tmp_path: Path) -> None:
    path = written(tmp_path, 'text,label\r\n"two\r\nlines",positive\r\n\r\nfine,negative\r\n')

    table = read_csv(path, name="reviews")

    assert table.columns == ["text", "label"]
    assert [(row.line, row.values["text"]) for row in table.rows] == [(2, "two\r\nlines"), (5, "fine")]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    assert read_csv(written(tmp_path, b"\xef\xbb\xbftext,label\nfine,positive\n"), name="x").columns == [
        "text",
        "label",
    ]


def test_another_delimiter_can_be_named(tmp_path: Path) -> None:
    table = read_csv(written(tmp_path, "text\tlabel\na, b\tpositive\n"), name="x", delimiter="\t")

    assert table.rows[0].values == {"text": "a, b", "label": "positive"}


def test_ragged_rows_are_named_by_line(tmp_path: Path) -> None:
    assert problems(written(tmp_path, "text,label\nshort\nfine,positive\nlong,positive,extra\n")) == {
        2: "has 1 cell, the header has 2",
        4: "has 3 cells, the header has 2",
    }


def test_bytes_that_are_not_utf8_spoil_their_row_only(tmp_path: Path) -> None:
    path = written(tmp_path, b"text,label\ncaf\xe9,positive\nfine,negative\n")

    assert problems(path) == {2: "column 'text' is not UTF-8: byte 0xe9 after 3 characters"}


def test_a_quote_that_never_closes_says_where_it_opened(tmp_path: Path) -> None:
    path = written(tmp_path, 'text,label\nfine,positive\n"open,negative\nlost,positive\n')

    assert problems(path) == {3: "a quote opens here and is never closed; lines 3 to 4 are lost to it"}


def test_a_text_longer_than_the_standard_limit_is_read_and_the_limit_put_back(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    path = written(tmp_path, f"text,label\n{'x' * 1_000_000},positive\n")

    assert len(read_csv(path, name="x").rows[0].values["text"]) == 1_000_000
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; its first line must name the columns"),
        (b"text,label,text\n", "columns named more than once: 'text'"),
        (b"text,caf\xe9\n", "the header: column 'caf.*' is not UTF-8"),
        (b'"text,label\n', "line 1: the header cannot be read: a quote opens here"),
    ],
)
def test_a_header_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_csv(written(tmp_path, content), name="x")


def test_a_missing_file_is_named_with_what_lies_beside_it(tmp_path: Path) -> None:
    written(tmp_path, "text\n")

    with pytest.raises(DataError, match=r"csv: there is no file .*review\.csv\. Did you mean 'reviews\.csv'\?"):
        read_csv(tmp_path / "review.csv", name="x")
    with pytest.raises(DataError, match="is a folder; a file is needed"):
        read_csv(tmp_path, name="x")
    with pytest.raises(DataError, match=r"Its folder .*nowhere does not exist either"):
        read_csv(tmp_path / "nowhere" / "a.csv", name="x")


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@given(rows=st.lists(st.tuples(texts, texts), max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
def test_whatever_a_csv_writer_wrote_comes_back(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    file = io.StringIO(newline="")
    csv.writer(file).writerows([("text", "label"), *rows])

    table = read_csv(written(tmp_path, file.getvalue()), name="x")

    assert [(row.values["text"], row.values["label"]) for row in table.rows] == rows
    assert all(row.problem is None for row in table.rows)
