"""Enquiries about flights: lines of words and tags become texts and entities."""

from __future__ import annotations

from pathlib import Path

import pytest

from influence_engine.data.sources.atis import FILES, TYPES, read_enquiries, type_of

LINES = [
    "from:O san:B-fromloc.city_name jose:I-fromloc.city_name california:B-fromloc.state_name or:B-or "
    "reno:B-toloc.city_name <=> atis_flight",
    "before:B-depart_time.time_relative 7:B-depart_time.time pm:I-depart_time.time <=> atis_flight",
    "fly:O 7:30:B-flight_time <=> atis_flight",
]


def written(folder: Path, *files: list[str]) -> Path:
    for name, lines in zip(FILES, files, strict=True):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_words_of_one_type_side_by_side_are_one_mention(tmp_path: Path) -> None:
    first, second, third = read_enquiries(written(tmp_path, LINES, [])).rows
    assert first.values["text"] == "from san jose california or reno"
    found = [(e["label"], first.values["text"][e["start"] : e["end"]]) for e in first.values["entities"]]
    assert found == [("origin", "san jose california"), ("destination", "reno")]
    assert [e["label"] for e in second.values["entities"]] == ["time"]
    assert third.values["entities"] == [{"start": 4, "end": 8, "label": "time"}]
    assert first.values["intent"] == "flight"


def test_an_enquiry_that_repeats_another_is_read_once(tmp_path: Path) -> None:
    rows = read_enquiries(written(tmp_path, LINES[:2], [LINES[2], LINES[1], LINES[0]])).rows
    assert [row.values["id"] for row in rows] == ["atis-train_dev-1", "atis-train_dev-2", "atis-test-1"]


@pytest.mark.parametrize("line", ["no tags here <=> atis_flight", "word:O without an intent", ":O <=> atis_flight"])
def test_a_line_of_another_form_is_a_bad_row(tmp_path: Path, line: str) -> None:
    bad = read_enquiries(written(tmp_path, [LINES[0], line], [])).rows[1]
    assert bad.problem is not None


def test_slots_are_folded_into_few_types() -> None:
    slots = ["fromloc.city_name", "stoploc.state_code", "return_date.day_name", "airline_code", "meal", "connect", "or"]
    assert [type_of(slot) for slot in slots] == ["origin", "stopover", "date", "airline", "other", "flight", None]
    assert {type_of(slot) for slot in slots} - {None} <= set(TYPES)
