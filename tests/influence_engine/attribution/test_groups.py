"""Promises: every example is in one group of each column; groups add up; many values and odd ones do no harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from influence_engine import Attributor, IndexSettings, InfluenceIndex
from influence_engine.attribution.groups import MOST_GROUPS, OTHER, Grouping
from influence_engine.errors import InputError

CPU = torch.device("cpu")


def nothing_known(examples: int, influence: float) -> None:
    """Of an index that was not checked."""


@given(
    st.lists(
        st.tuples(st.one_of(st.none(), st.text(max_size=3), st.integers(0, 99)), st.floats(-5, 5, width=32)),
        min_size=1,
        max_size=80,
    )
)
def test_groups_add_up_whatever_their_values(rows: list[tuple[Any, float]]) -> None:
    values, influences = zip(*rows, strict=True)
    scores = torch.tensor(influences)
    groups = Grouping.of("column", values, CPU).influences(scores, nothing_known)
    assert sum(group["examples"] for group in groups) == len(rows)
    assert sum(group["influence"] for group in groups) == pytest.approx(float(scores.sum()), abs=1e-3)
    if float(scores.abs().sum()) > 1e-3:
        assert sum(group["share"] for group in groups) == pytest.approx(1, abs=1e-5)
    for group in groups:
        assert group["share"] == pytest.approx(group["supporting"] + group["opposing"])
        assert group["by"] == "column"


def test_values_beyond_the_limit_share_a_group_the_rarest_first() -> None:
    values = [f"common {number}" for number in range(MOST_GROUPS - 1) for _ in range(2)]
    values += [f"rare {number}" for number in range(1000)]
    grouping = Grouping.of("tag", values, CPU)
    assert len(grouping.names) == MOST_GROUPS
    assert dict(zip(grouping.names, grouping.sizes, strict=True))[OTHER] == 1000


def test_influence_is_summed_by_any_column_of_the_metadata(
    vector_train: Any, vector_queries: Any, vector_task: Any, vector_model: Any, tmp_path: Path
) -> None:
    annotated = [
        {**one, "metadata": {"annotator": "ann" if row < 20 else "bob", "batch": row}}
        for row, one in enumerate(vector_train)
    ]
    index = InfluenceIndex.build(vector_model, vector_task, annotated, tmp_path, IndexSettings(dtype="float32"))
    attributor = Attributor(vector_model, vector_task, index)
    (answer,) = attributor.attribute(vector_queries[:1], group_by=["annotator", "licence"])
    scores = attributor.scores(vector_queries[:1])[0]
    ann, bob, unlicensed = answer.groups
    assert (ann["by"], ann["group"], ann["examples"]) == ("annotator", "ann", 20)
    assert ann["influence"] == pytest.approx(float(scores[:20].sum()), rel=1e-4, abs=1e-6)
    assert bob["influence"] == pytest.approx(float(scores[20:].sum()), rel=1e-4, abs=1e-6)
    assert (unlicensed["by"], unlicensed["group"]) == ("licence", "")
    with pytest.raises(InputError, match="'colour'; they have label, source, licence, consent, annotator, batch"):
        attributor.attribute(vector_queries[:1], group_by=["colour"])
