from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from influence_engine.data.sources.jsonl_file import read_jsonl
from influence_engine.errors import DataError


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "reviews.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_columns_are_the_keys_of_all_lines(tmp_path: Path) -> None:
    table = read_jsonl(written(tmp_path, '{"text": "a"}\n\n{"text": "b", "label": "positive"}\n'), name="x")

    assert table.columns == ["text", "label"]
    assert [(row.line, row.values["text"]) for row in table.rows] == [(1, "a"), (3, "b")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "a"', "is not JSON: Expecting ',' delimiter at character"),
        (b'{"text": "caf\xe9"}', "is not UTF-8: byte 0xe9 after 13 bytes"),
        (b'["a"]', "is not a JSON object but an array"),
        (b"null", "is not a JSON object but null"),
        (b"true", "is not a JSON object but true or false"),
        (b'{"text": "a", "score": NaN}', "is not JSON: NaN is no JSON number"),
        (b'{"text": "\\ud800"}', "column 'text' holds half a surrogate pair, U+D800"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_a_broken_line_says_what_is_wrong_and_leaves_the_others(tmp_path: Path, line: bytes, problem: str) -> None:
    table = read_jsonl(written(tmp_path, b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n'), name="x")

    assert [row.line for row in table.rows if row.problem is None] == [1, 3]
    assert table.rows[1].problem is not None
    assert table.rows[1].problem.startswith(problem)


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    assert read_jsonl(written(tmp_path, b'\xef\xbb\xbf{"text": "a"}\n'), name="x").rows[0].problem is None


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"jsonl: there is no file .*absent\.jsonl"):
        read_jsonl(tmp_path / "absent.jsonl", name="x")


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=8), escaped=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
def test_whatever_json_wrote_comes_back_one_row_a_line(tmp_path: Path, texts: list[str], escaped: bool) -> None:
    content = "".join(json.dumps({"text": text}, ensure_ascii=escaped) + "\n" for text in texts)

    rows = read_jsonl(written(tmp_path, content), name="x").rows

    assert [(row.line, row.values["text"]) for row in rows] == list(enumerate(texts, start=1))
