from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from influence_engine.data import DataSet, DataSettings, load_examples, rows_digest
from influence_engine.data.selection import part_of
from influence_engine.errors import DataError
from influence_engine.tasks import TextClassification

Load = Callable[..., DataSet]
property_test = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)


def json_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# What an example is


def test_an_example_keeps_all_that_the_source_says_of_it(load: Load) -> None:
    content = "key,review,stars,source,rights,consent,year\nr1,fine,5,blog,CC0,given,1999\nr2,poor,1,,,,\n"
    columns = {"id": "key", "text": "review", "label": "stars", "licence": "rights"}
    stars = {1: "negative", 5: "positive"}

    loaded = load("reviews.csv", content, columns=columns, labels=stars, licence="MIT", source="archive")

    assert loaded.examples == [
        {
            "example_id": "r1",
            "text": "fine",
            "label": "positive",
            "source": "blog",
            "licence": "CC0",
            "consent": "given",
            "metadata": {"year": "1999"},
        },
        {
            "example_id": "r2",
            "text": "poor",
            "label": "negative",
            "source": "archive",
            "licence": "MIT",
            "consent": None,
            "metadata": {"year": ""},
        },
    ]


def test_the_file_is_the_source_where_nothing_else_is_known(load: Load) -> None:
    assert load("reviews.csv", "text,label\nfine,positive\n").examples[0]["source"] == "reviews.csv"


def test_metadata_are_json_scalars_whatever_the_file_holds(tmp_path: Path, task: TextClassification) -> None:
    table = {
        "text": ["fine"],
        "label": ["positive"],
        "when": pa.array([0], pa.timestamp("s")),
        "score": [float("nan")],
        "tags": [["a", "b"]],
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")

    loaded = load_examples(DataSettings(parquet="a.parquet"), task, tmp_path)

    assert loaded.examples[0]["metadata"] == {"when": "1970-01-01 00:00:00", "score": "nan", "tags": '["a", "b"]'}


def test_a_task_without_names_and_checks_has_the_fields_of_columns(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json_lines([{"words": ["in", "Rome"], "tags": [0, 1]}]))
    settings = DataSettings(jsonl="a.jsonl", columns={"tokens": "words", "tags": "tags"})

    example = load_examples(settings, object(), tmp_path).examples[0]

    assert (example["tokens"], example["tags"], example["metadata"]) == (["in", "Rome"], [0, 1], {})


# Ids


def test_rows_without_an_id_get_one_that_tells_nothing_and_never_changes(load: Load) -> None:
    before = load("a.csv", "text,label\nfine,positive\npoor,negative\n")
    edited = load("a.csv", "text,label\nfiner,negative\npoor,negative\nnew,positive\n")

    ids = [example["example_id"] for example in before.examples]
    assert ids == [example["example_id"] for example in edited.examples][:2]
    assert all(len(example_id) == 16 and set(example_id) <= set("0123456789abcdef") for example_id in ids)


def test_ids_differ_between_files_and_not_between_folders(tmp_path: Path, task: TextClassification) -> None:
    found = {}
    for project in ("here", "there"):
        for name in ("a.csv", "b.csv"):
            path = tmp_path / project / "inputs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("text,label\nfine,positive\n")
            loaded = load_examples(DataSettings(csv=f"inputs/{name}"), task, tmp_path / project)
            found[project, name] = loaded.examples[0]["example_id"]

    assert found["here", "a.csv"] == found["there", "a.csv"] != found["here", "b.csv"]


@property_test
@given(dropped=st.sets(st.integers(0, 9)))
def test_dropping_bad_rows_leaves_the_ids_of_the_others(load: Load, dropped: set[int]) -> None:
    texts = ["" if number in dropped else f"text {number}" for number in range(10)]
    good = load("a.csv", "text,label\n" + "".join(f"text {number},positive\n" for number in range(10)))
    if len(dropped) == 10:
        return

    some = load("a.csv", "text,label\n" + "".join(f"{text},positive\n" for text in texts), on_bad_rows="drop")

    by_text = {example["text"]: example["example_id"] for example in good.examples}
    assert {example["text"]: example["example_id"] for example in some.examples}.items() <= by_text.items()


# Bad rows


BAD_CSV = b"""id,text,label
a,fine,positive
b, ,positive
c,caf\xe9,positive
d,good,postive
a,again,negative
,nameless,negative
e,short
f,poor,negative
"""


def test_bad_rows_stop_the_run_and_are_listed_by_line(load: Load) -> None:
    with pytest.raises(DataError) as caught:
        load("reviews.csv", BAD_CSV)

    lines = caught.value.message.splitlines()
    assert lines[0].endswith("reviews.csv: 6 of 8 rows cannot be used:")
    assert lines[1:7] == [
        "  line 3: 'text' is empty",
        "  line 4: column 'text' is not UTF-8: byte 0xe9 after 3 characters",
        "  line 5: unknown label 'postive'; the labels are 'negative', 'positive'. Did you mean 'positive'?",
        "  line 6: the id 'a' is that of line 2 already",
        "  line 7: the id (column 'id') is empty",
        "  line 8: has 2 cells, the header has 3",
    ]
    assert "on_bad_rows: drop" in lines[7]
    assert "labels: {theirs: ours}" in lines[8]
    assert "under data.train" in lines[8]
    assert caught.value.code == "bad_data"


def test_bad_rows_can_be_dropped_and_are_reported_all_the_same(load: Load) -> None:
    loaded = load("reviews.csv", BAD_CSV, on_bad_rows="drop")

    assert [example["example_id"] for example in loaded.examples] == ["a", "f"]
    assert loaded.examples[0]["text"] == "fine"
    assert (loaded.report.rows, loaded.report.kept, loaded.report.bad_count) == (8, 2, 6)
    assert "  line 3: 'text' is empty" in loaded.report.summary()


def test_only_the_first_bad_rows_are_listed_and_the_rest_counted(load: Load) -> None:
    with pytest.raises(DataError) as caught:
        load("a.csv", "text,label\n" + "".join(f"fine,unknown{number}\n" for number in range(50)))

    assert caught.value.message.count("  line ") == 20
    assert "... and 30 more" in caught.value.message


def test_one_mistake_of_many_rows_is_one_line_with_their_number(load: Load) -> None:
    with pytest.raises(DataError) as caught:
        load("a.csv", "text,label\n" + "fine,postive\nfine,neg\n" * 30)

    lines = caught.value.message.splitlines()
    assert lines[1].startswith("  30 lines (2, 4, 6 ...): unknown label 'postive'; the labels are")
    assert lines[1].endswith("Did you mean 'positive'?")
    assert lines[2].startswith("  30 lines (3, 5, 7 ...): unknown label 'neg'")
    assert "on_bad_rows" in lines[3]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": 7, "label": "positive"}, "'text' must be a string, got int"),
        ({"text": None, "label": "positive"}, "'text' is missing"),
        ({"label": "positive"}, "'text' is missing"),
        ({"text": "fine"}, "'label' is missing"),
        ({"text": "fine", "label": 1}, "unknown label 1; the labels are"),
        ({"text": "fine", "label": ""}, "'label' is empty"),
    ],
)
def test_a_bad_value_of_a_json_line_is_a_bad_row(load: Load, row: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=f"line 2: {problem}"):
        load("a.jsonl", json_lines([{"text": "fine", "label": "positive"}, row]))


def test_a_broken_json_line_is_listed_beside_other_bad_rows(load: Load) -> None:
    with pytest.raises(DataError, match=r"2 of 3 rows(.|\n)*line 2: is not JSON(.|\n)*line 3: 'text' is empty"):
        load("a.jsonl", '{"text": "fine", "label": "positive"}\n{"text": \n{"text": "", "label": "positive"}\n')


def test_a_label_that_the_mapping_does_not_name_is_a_bad_row(load: Load) -> None:
    with pytest.raises(DataError, match="line 3: 'label' is '3', which `labels` does not name; it names '1', '5'"):
        load("a.csv", "text,label\nfine,5\nso so,3\n", labels={1: "negative", 5: "positive"})


def test_a_source_with_bad_rows_only_is_refused_even_where_they_are_dropped(load: Load) -> None:
    with pytest.raises(DataError, match=r"none of its 1 row can be used:\n  line 2: 'text' is empty"):
        load("a.csv", "text,label\n ,positive\n", on_bad_rows="drop")


@pytest.mark.parametrize(("name", "content"), [("a.csv", "text,label\n"), ("a.jsonl", "\n")])
def test_a_source_without_rows_is_refused(load: Load, name: str, content: str) -> None:
    with pytest.raises(DataError, match=f"{name} has no rows"):
        load(name, content)


def test_a_file_of_which_nothing_can_be_read_says_why(load: Load) -> None:
    with pytest.raises(DataError, match=r"none of its 2 rows can be used:\n  2 lines \(1, 2\): is not JSON"):
        load("a.jsonl", "text,label\nfine,positive\n")


def test_nan_is_no_field(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["fine"], "label": [float("nan")]}), tmp_path / "a.parquet")

    with pytest.raises(DataError, match="row 1: 'label' holds NaN or infinity"):
        load_examples(DataSettings(parquet="a.parquet"), object(), tmp_path)


def test_bytes_are_no_field(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [b"\x00"], "label": ["x"]}), tmp_path / "a.parquet")

    with pytest.raises(DataError, match="row 1: 'text' is of type bytes"):
        load_examples(DataSettings(parquet="a.parquet"), object(), tmp_path)


# Columns


def test_a_missing_column_names_those_there_are_and_the_nearest(load: Load) -> None:
    with pytest.raises(DataError) as caught:
        load("a.csv", "review,lable\nfine,positive\n", columns={"text": "review"})

    assert "there is no column 'label' (map yours with `columns: {label: ...}`)" in caught.value.message
    assert "The columns are 'review', 'lable'. Did you mean 'lable'?" in caught.value.message
    assert caught.value.field == "columns.label"


def test_a_column_that_the_settings_name_must_exist(load: Load) -> None:
    with pytest.raises(DataError, match=r"there is no column 'licens' \(columns\.licence names it\)"):
        load("a.csv", "text,label\nfine,positive\n", columns={"licence": "licens"})


@pytest.mark.parametrize("missing", ["text", "label"])
def test_parquet_without_the_column_is_refused(tmp_path: Path, task: TextClassification, missing: str) -> None:
    table = {"text": ["fine"], "label": ["positive"], "other": [1]}
    del table[missing]
    pq.write_table(pa.table(table), tmp_path / "a.parquet")

    with pytest.raises(DataError, match=f"there is no column '{missing}'"):
        load_examples(DataSettings(parquet="a.parquet"), task, tmp_path)


def test_a_missing_file_is_refused(tmp_path: Path, task: TextClassification) -> None:
    with pytest.raises(DataError, match=r"there is no file .*absent\.csv"):
        load_examples(DataSettings(csv="absent.csv"), task, tmp_path)


# Selection, report and digest


def many(count: int) -> str:
    labels = ("negative", "positive")
    return "id,text,label\n" + "".join(f"{number},text {number},{labels[number % 2]}\n" for number in range(count))


def test_parts_of_one_source_are_disjoint_and_cover_it(load: Load) -> None:
    parts = [load("a.csv", many(300), part=part) for part in ("train", "validation", "test")]

    ids = [example["example_id"] for part in parts for example in part.examples]
    assert sorted(ids, key=int) == [str(number) for number in range(300)]


def test_a_limit_takes_a_sample_in_the_order_of_the_file(load: Load) -> None:
    ids = [int(example["example_id"]) for example in load("a.csv", many(300), limit=50).examples]

    assert len(ids) == 50
    assert ids == sorted(ids) != list(range(50))


def test_an_empty_part_is_refused(load: Load) -> None:
    part = "test" if part_of("0") != "test" else "train"

    with pytest.raises(DataError, match=f"none of its 1 row is in the part '{part}'"):
        load("a.csv", many(1), part=part)


def test_duplicates_and_conflicts_are_reported_and_no_errors(load: Load) -> None:
    content = "text,label\nfine,positive\npoor,negative\nfine,positive\npoor,positive\nfine,positive\nonce,positive\n"

    report = load("a.csv", content).report

    assert (report.duplicates.count, report.duplicates.rows, report.duplicates.lines) == (1, 3, [[2, 4, 6]])
    assert (report.conflicts.count, report.conflicts.rows, report.conflicts.lines) == (1, 2, [[3, 5]])
    assert report.targets == {"positive": 5, "negative": 1}
    assert report.summary().splitlines() == [
        "a.csv: 6 of 6 rows kept (5 positive, 1 negative)",
        "exact duplicates: 1 input in 3 rows (lines 2, 4, 6)",
        "conflicting targets: 1 input in 2 rows (lines 3, 5)",
    ]
    json.dumps(report.to_dict())


rows = st.lists(
    st.fixed_dictionaries(
        {
            "text": st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip),
            "label": st.sampled_from(["negative", "positive"]),
            "note": st.none() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False, allow_infinity=False),
        }
    ),
    min_size=1,
    max_size=12,
)


@property_test
@given(rows=rows, chance=st.randoms(use_true_random=False))
def test_the_digest_does_not_depend_on_the_order_of_rows(
    load: Load, rows: list[dict[str, Any]], chance: random.Random
) -> None:
    named = [{"id": f"r{number}", **row} for number, row in enumerate(rows)]
    shuffled = list(named)
    chance.shuffle(shuffled)

    assert load("a.jsonl", json_lines(named)).digest == load("a.jsonl", json_lines(shuffled)).digest


@property_test
@given(rows=rows, change=st.sampled_from(["text", "label", "note", "id"]), place=st.integers(0, 11))
def test_the_digest_changes_with_any_value(load: Load, rows: list[dict[str, Any]], change: str, place: int) -> None:
    named = [{"id": f"r{number}", **row} for number, row in enumerate(rows)]
    before = load("a.jsonl", json_lines(named)).digest
    row = named[place % len(named)]
    other = {"negative": "positive", "positive": "negative"}
    row[change] = other[row["label"]] if change == "label" else f"{row[change]} changed"

    assert load("a.jsonl", json_lines(named)).digest != before


@property_test
@given(rows=rows)
def test_the_same_rows_give_the_same_digest_from_every_kind_of_file(
    tmp_path: Path, task: TextClassification, rows: list[dict[str, Any]]
) -> None:
    named = [{"id": f"r{number}", "text": row["text"], "label": row["label"]} for number, row in enumerate(rows)]
    (tmp_path / "a.jsonl").write_text(json_lines(named))
    pq.write_table(pa.Table.from_pylist(named), tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["id", "text", "label"])
        writer.writeheader()
        writer.writerows(named)

    digests = {
        load_examples(DataSettings(**{kind: f"a.{kind}"}, source="same"), task, tmp_path).digest
        for kind in ("csv", "jsonl", "parquet")
    }

    assert len(digests) == 1


def test_the_digest_of_a_data_set_is_that_of_its_rows(load: Load) -> None:
    loaded = load("a.csv", many(10))

    assert loaded.digest == rows_digest(reversed(loaded.examples))
    assert len(loaded) == 10
