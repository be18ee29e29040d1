"""The refined tier is the exact damped Gauss-Newton influence, whatever the index has kept of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from influence_engine import Attributor, IndexSettings, InfluenceIndex, Run
from influence_engine.curvature import Preconditioner, adam_preconditioner, exact_influence
from influence_engine.errors import DigestMismatchError, TierUnavailableError
from influence_engine.gradients import track

FEW = IndexSettings(approximation="final", dimensions=12, coordinates=48, damping=0.5)
"""Of 135 parameters: far too few for an estimate."""


@pytest.fixture
def index(
    vector_run: Run, vector_task: Any, vector_train: Any, index_folder: Path, fresh_network: nn.Module
) -> InfluenceIndex:
    return InfluenceIndex.build_from_run(vector_run, vector_task, vector_train, index_folder, FEW, into=fresh_network)


@pytest.fixture
def attributor(index: InfluenceIndex, vector_model: nn.Module, vector_task: Any, vector_train: Any) -> Attributor:
    attributor = Attributor(vector_model, vector_task, index)
    attributor.refine_with(vector_train)
    return attributor


def dense(preconditioner: Preconditioner) -> dict[str, Tensor]:
    return {name: (one.row.unsqueeze(-1) * one.column).pow(-2) for name, one in preconditioner.items()}


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_it_is_the_exact_influence_where_the_index_is_far_off(
    attributor: Attributor, vector_run: Run, vector_task: Any, vector_train: Any, vector_queries: Any
) -> None:
    model = attributor.model
    moments, epsilon = vector_run.second_moments(), vector_run.epsilon
    assert moments is not None
    assert epsilon is not None
    tracked = track(model)
    preconditioner = dense(adam_preconditioner(tracked, moments, epsilon))
    expected = exact_influence(
        model,
        vector_task,
        tracked,
        vector_train,
        vector_queries,
        damping=FEW.damping or 0.0,
        preconditioner=preconditioner,
    )

    refined = attributor.scores(vector_queries, "refined")

    assert off(refined, expected) < 0.02
    assert off(attributor.scores(vector_queries, "estimated"), expected) > 0.2


def test_of_a_text_model_without_a_record(
    task: Any, make_model: Callable[..., nn.Module], make_examples: Any, index_folder: Path
) -> None:
    model, train, queries = make_model(), make_examples(24), make_examples(3, seed=9)
    settings = IndexSettings(dimensions=8, coordinates=200, damping=0.05)
    attributor = Attributor(model, task, InfluenceIndex.build(model, task, train, index_folder, settings))
    attributor.refine_with(train[::-1])  # in any order
    preconditioner = dense(attributor.index.encoder.coordinates.preconditioner)  # estimated
    expected = exact_influence(model, task, track(model), train, queries, damping=0.05, preconditioner=preconditioner)

    assert off(attributor.scores(queries, "refined"), expected) < 0.02


def test_an_explanation_says_how_it_was_refined(attributor: Attributor, vector_queries: Any) -> None:
    scores = attributor.scores(vector_queries[:2], "refined")

    found = attributor.attribute(vector_queries[:2], tier="refined", top_k=5)

    for row, one in zip(scores, found, strict=True):
        assert one.tier == "refined"
        assert {example.tier for example in one.examples} == {"refined"}
        strongest = row.abs().topk(5).indices.tolist()
        assert [example.row for example in one.examples] == strongest
        assert [example.influence for example in one.examples] == pytest.approx(row[strongest].tolist(), rel=1e-4)
        assert sum(group["influence"] for group in one.groups if group["by"] == "label") == pytest.approx(
            float(row.sum()), rel=1e-3
        )
        said = one.quality["refinement"]
        assert 1 < said["passes"] <= 30
        assert said["last_change"] <= 1e-2
        assert said["agreement_with_estimated"] < 0.99


def test_queries_together_and_alone_give_the_same(attributor: Attributor, vector_queries: Any) -> None:
    together = attributor.scores(vector_queries, "refined")
    alone = torch.cat([attributor.scores([query], "refined") for query in vector_queries])
    assert off(alone, together) < 1e-4


def test_scores_after_an_explanation_of_the_same_queries_are_not_solved_for_again(
    attributor: Attributor, vector_train: Any, vector_queries: Any
) -> None:
    told: list[str] = []
    attributor.refine_with(vector_train, progress=lambda stage, done, total, note="": told.append(stage))
    attributor.attribute(vector_queries[:3], tier="refined")
    solved = len(told)

    again = attributor.scores(vector_queries[:3], "refined")
    assert len(told) == solved > 0

    again.zero_()  # the caller's own
    asked = [dict(query) for query in vector_queries[:3]]
    attributor.scores(asked, "refined")
    assert len(told) == solved
    asked[0]["label"] = (asked[0]["label"] + 1) % 3
    again = attributor.scores(asked, "refined")
    assert len(told) > solved
    assert float(again.abs().max()) > 0
    solved = len(told)

    others = attributor.scores(vector_queries[3:6], "refined")
    assert len(told) > solved
    assert off(others, again) > 0.1


def test_other_training_examples_are_refused(
    index: InfluenceIndex, vector_model: nn.Module, vector_task: Any, vector_train: Any
) -> None:
    with pytest.raises(DigestMismatchError, match="not those of the index"):
        Attributor(vector_model, vector_task, index).refine_with(vector_train[:-1])


def test_an_index_that_follows_the_steps_has_nothing_to_refine(
    vector_run: Run, vector_model: nn.Module, vector_task: Any, vector_train: Any, index_folder: Path
) -> None:
    index = InfluenceIndex.build_from_run(
        vector_run, vector_task, vector_train, index_folder, IndexSettings(), into=vector_model
    )
    with pytest.raises(TierUnavailableError, match="follows the training trajectory"):
        Attributor(vector_model, vector_task, index).refine_with(vector_train)
