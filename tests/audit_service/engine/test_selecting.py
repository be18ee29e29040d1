"""Training examples are selected by what may be known of them, and a refusal tells nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from audit_service.engine.selecting import rows_of_group, rows_of_handles
from influence_engine import InfluenceIndex
from influence_engine.errors import InputError


@pytest.fixture(scope="module")
def index(small_project: Any) -> InfluenceIndex:
    return InfluenceIndex.open(small_project.config.index_folder)


def test_groups_and_handles_are_found(index: InfluenceIndex) -> None:
    labels = index.values_of("label")
    assert labels is not None
    assert rows_of_group(index, "label", "positive") == [n for n, label in enumerate(labels) if label == "positive"]
    handles = index.table.column("example_handle")
    assert rows_of_handles(index, [handles[7], handles[3]]) == [7, 3]


@pytest.mark.parametrize("column", ["text", "example_id", "fields", "vector", "x" * 1_000])
def test_what_examples_cannot_be_grouped_by_is_refused_without_what_is_in_it(
    index: InfluenceIndex, column: str
) -> None:
    with pytest.raises(InputError, match="cannot be grouped by") as refused:
        rows_of_group(index, column, "a film")
    assert_tells_nothing(index, refused.value.message)
    assert "label, source" in refused.value.message


def test_unknown_groups_and_handles_are_refused_without_those_there_are(index: InfluenceIndex) -> None:
    for select in (
        lambda: rows_of_group(index, "source", "nowhere"),
        lambda: rows_of_handles(index, ["nobody"]),
        lambda: rows_of_handles(index, [index.example_ids[0]]),
    ):
        with pytest.raises(InputError) as refused:
            select()
        assert_tells_nothing(index, refused.value.message.replace(index.example_ids[0], "what was asked"))


def assert_tells_nothing(index: InfluenceIndex, message: str) -> None:
    assert len(message) < 400
    texts = [one["fields"]["text"] for one in index.describe(range(len(index)))]
    assert not [text for text in texts if text in message]
    assert not [one for one in index.example_ids if one in message]
