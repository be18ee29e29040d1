"""``init`` finds the columns of a data file, and asks where it cannot know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from audit_service.workflows.adoption.columns import inspect_columns, map_labels
from influence_engine.errors import DataError, SettingsError

LABELS = ("negative", "positive")


def write(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def test_usual_names_are_found_whatever_their_case(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "ID,Text,Label,License\n1,so good,positive,MIT\n2,so bad,negative,MIT\n")

    columns = inspect_columns(path, LABELS)

    assert columns.kind == "csv"
    assert columns.names == {"text": "Text", "label": "Label", "id": "ID", "licence": "License"}
    assert columns.labels == {}


def test_unusual_names_are_found_by_what_the_columns_hold(tmp_path: Path) -> None:
    rows = [{"key": "a", "what": "a fine film", "verdict": 1}, {"key": "b", "what": "a dull film", "verdict": 0}]
    path = write(tmp_path, "a.jsonl", "\n".join(json.dumps(row) for row in rows))

    columns = inspect_columns(path, LABELS)

    assert columns.names == {"text": "what", "label": "verdict"}
    assert columns.labels == {"1": "positive", "0": "negative"}


def test_what_is_asked_for_is_taken(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,body,label,gold\nold words,new words,x,positive\n")

    columns = inspect_columns(path, LABELS, text="body", label="gold")

    assert columns.names == {"text": "body", "label": "gold"}


def test_an_id_column_with_repeated_values_is_no_id(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "id,text,label\n1,so good,positive\n1,so bad,negative\n")

    assert "id" not in inspect_columns(path, LABELS).names


def test_rows_that_cannot_be_read_are_counted_not_fatal(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "so good", "label": "positive"}\nnot json\n')

    columns = inspect_columns(path, LABELS)

    assert (columns.rows, columns.unreadable) == (2, 1)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.csv", "one,two,verdict\na b,c d,positive\n", {}, "which column of .* is the text.*--text COLUMN"),
        ("a.csv", "text,stars\nso good,five\n", {}, "which column of .* is the label.*--label COLUMN"),
        ("a.csv", "text,label\nso good,positive\n", {"text": "words"}, "no column 'words'; it has 'text', 'label'"),
        ("a.csv", "text,label\nso good,great\n", {}, "'great' where the model knows 'negative', 'positive'.*--labels"),
    ],
)
def test_what_cannot_be_known_is_asked_for_by_the_options_name(
    tmp_path: Path, name: str, content: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        inspect_columns(write(tmp_path, name, content), LABELS, **options)


@pytest.mark.parametrize(("name", "content"), [("a.txt", "so good"), ("a.csv", "text,label\n"), ("a.csv", "")])
def test_a_file_of_another_kind_or_without_rows_is_refused(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(DataError, match=name):
        inspect_columns(write(tmp_path, name, content), LABELS)


def test_labels_are_mapped_by_name_by_case_and_by_number() -> None:
    assert map_labels(["negative", "positive"], LABELS) == {}
    assert map_labels(["Negative", "POSITIVE"], LABELS) == {"Negative": "negative", "POSITIVE": "positive"}
    assert map_labels(["1", "0"], LABELS) == {"1": "positive", "0": "negative"}
