"""Promises: as many labels are wrong as asked, all of them really; a ranking finds more of them than chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from influence_engine import FinetuneSettings, IndexSettings
from influence_engine.errors import DataError
from influence_engine.evaluation import find_planted_errors
from influence_engine.evaluation.planted import with_wrong_labels
from tests.influence_engine.vectors import make_network, make_vectors


@given(st.lists(st.integers(0, 3), min_size=4, max_size=60), st.floats(0.05, 0.9), st.integers(0, 99))
def test_the_share_asked_for_is_wrong_and_nothing_else_changes(labels: list[int], share: float, seed: int) -> None:
    train = [{"example_id": f"{row}", "label": label, "x": row} for row, label in enumerate(labels)]
    if len(set(labels)) < 2 or not round(share * len(train)):
        with pytest.raises(DataError, match="no label errors can be planted"):
            with_wrong_labels(train, "label", share, seed=seed)
        return
    changed, planted = with_wrong_labels(train, "label", share, seed=seed)
    assert len(planted) == round(share * len(train))
    for before, after in zip(train, changed, strict=True):
        assert (before["label"] != after["label"]) == (before["example_id"] in planted)
        assert after["label"] in labels
        assert {**after, "label": None} == {**before, "label": None}


@pytest.mark.parametrize("folds", [0, 3])
def test_most_planted_errors_are_among_the_first_suspects(labelling_task: Any, tmp_path: Path, folds: int) -> None:
    train, held_out = make_vectors(120, seed=3, prefix="t-"), make_vectors(80, seed=4, prefix="h-")

    def found() -> Any:
        return find_planted_errors(
            labelling_task,
            make_network(),
            train,
            held_out,
            tmp_path,
            finetuning=FinetuneSettings(trainable="all", epochs=8, batch_size=12, learning_rate=0.02),
            indexing=IndexSettings(dtype="float32"),
            into=make_network(),
            folds=folds,
        )

    first = found()
    assert (first.examples, first.planted) == (120, 12)
    crossed = {"out_of_sample_confidence"} if folds else set()
    assert set(first.recall) == set(first.figures) == {"harm", "self_influence", "loss"} | crossed
    for measure, recall in first.recall.items():
        assert list(recall.values()) == sorted(recall.values()), measure
        assert recall[0.3] > 0.6, measure
        figures = first.figures[measure]
        assert [figures[f"recall {share:.0%}"].value for share in recall] == list(recall.values())
        assert figures["area under curve"].value > 0.7
        assert figures["average precision"].value > 0.2
    assert found() == first  # from what is kept
