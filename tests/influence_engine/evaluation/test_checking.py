"""Promises: a check says how far influences are from retraining; from then on answers have intervals that hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from influence_engine import Attributor, FinetuneSettings, IndexSettings, InfluenceIndex, Run, finetune
from influence_engine.errors import SettingsError
from influence_engine.evaluation import Removal, Retraining, check_index, membership
from influence_engine.evaluation.checking import RETRAININGS
from tests.influence_engine.vectors import make_network, make_vectors


def checked(run: Run, task: Any, train: Any, folder: Path, queries: Any) -> tuple[Attributor, Retraining]:
    settings = IndexSettings(dtype="float32")
    index = InfluenceIndex.build_from_run(run, task, train, folder / "index", settings, into=make_network())
    attributor = Attributor(run.load_model(make_network()), task, index)
    retraining = Retraining(run, task, train, queries, folder / "cache", into=make_network(), device="cpu")
    check_index(attributor, retraining)
    return attributor, retraining


def test_intervals_hold_for_removals_and_queries_that_the_check_has_not_seen(
    vector_run: Run, vector_task: Any, vector_train: Any, vector_queries: Any, tmp_path: Path
) -> None:
    attributor, retraining = checked(
        vector_run, vector_task, vector_train, tmp_path, make_vectors(40, seed=9, prefix="check-")
    )
    found = attributor.index.calibration
    assert found is not None
    assert found.retrainings == RETRAININGS == len(list(retraining.cache.iterdir()))
    assert found.tiers["estimated"].agreement > 0.9
    assert found.nonlinearity < 0.3

    explained = attributor.attribute(vector_queries, top_k=3)
    asked = Retraining(
        vector_run, vector_task, vector_train, vector_queries, tmp_path / "other", into=make_network(), device="cpu"
    )
    recorded, within = asked.recorded(), []
    for number, answer in enumerate(explained):
        removal = Removal.of([example.example_id for example in answer.examples])
        change = float((recorded - asked.measurements([removal])[0])[number])
        predicted = sum(example.influence for example in answer.examples)
        assert answer.quality["error_90"] > 0
        within.append(abs(change - predicted) <= answer.quality["error_90"])
        assert all(example.error_90 is not None for example in answer.examples)
        assert all(group["error_90"] is not None for group in answer.groups)
    assert sum(within) >= 0.8 * len(within)


def test_a_check_belongs_to_its_index_and_is_found_again(
    vector_run: Run, vector_task: Any, vector_train: Any, tmp_path: Path
) -> None:
    queries = make_vectors(12, seed=9, prefix="check-")
    attributor, _ = checked(vector_run, vector_task, vector_train, tmp_path, queries)
    again = InfluenceIndex.open(tmp_path / "index")
    assert again.calibration == attributor.index.calibration
    assert again.inspect()["calibration"]["queries"] == 12


def test_a_run_that_is_too_rough_is_warned_of(vector_task: Any, vector_train: Any, tmp_path: Path) -> None:
    rough = FinetuneSettings(trainable="all", epochs=20, batch_size=4, learning_rate=0.5, weight_decay=0.0)
    train, queries = vector_train[:32], make_vectors(12, seed=9, prefix="check-")
    finetune(vector_task, make_network(), train, settings=rough, record_to=tmp_path / "run")
    attributor, _ = checked(Run.open(tmp_path / "run"), vector_task, train, tmp_path, queries)
    (answer,) = attributor.attribute(queries[:1])
    (warning,) = (one for one in answer.quality["warnings"] if "responds unevenly" in one)
    assert "fine-tune with warmup_ratio 0.5 instead of 0.1; a learning_rate below 0.5" in warning


def test_too_few_queries_are_refused(vector_run: Run, vector_task: Any, vector_train: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="at least 8 held-out queries, there are 3"):
        checked(vector_run, vector_task, vector_train, tmp_path, make_vectors(3, seed=9, prefix="check-"))


def test_half_a_removal_is_another_retraining_than_a_whole_one(retraining: Retraining, vector_train: Any) -> None:
    ids = [example["example_id"] for example in vector_train[:6]]
    whole, half = retraining.measurements([Removal.of(ids), Removal.of(ids, weight=0.5)])
    recorded = retraining.recorded()
    assert 0 < float((recorded - half).norm()) < float((recorded - whole).norm())
    assert torch.equal(membership([Removal.of(ids)], ids), torch.ones(1, 6, dtype=torch.float64))
