"""Promises: without a record, Adam's preconditioner and the damping are estimated from both ends of the training, close
to what a record says; where they cannot be, the index says that it goes by a rule of thumb."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from influence_engine import Attributor, FinetuneSettings, IndexSettings, InfluenceIndex, Run, finetune
from influence_engine.errors import SettingsError
from influence_engine.index.building.estimated_training import estimate_training
from tests.influence_engine.building import build_context
from tests.influence_engine.vectors import make_network

ONE_STEP = IndexSettings(approximation="final", dtype="float32")


@pytest.fixture
def recorded(vector_run: Run, vector_task: Any, vector_train: Any, tmp_path: Path, fresh_network: nn.Module) -> Any:
    return InfluenceIndex.build_from_run(
        vector_run, vector_task, vector_train, tmp_path / "recorded", ONE_STEP, into=fresh_network
    )


def about(index: InfluenceIndex) -> tuple[str, str]:
    return index.manifest.metric, index.manifest.damping_source


def share(index: InfluenceIndex) -> float:
    """Of the largest eigenvalue: which no unit of the preconditioner changes."""
    return index.manifest.damping / float(index.encoder.eigenvalues.max())


def test_estimates_come_close_to_what_the_record_says(
    recorded: InfluenceIndex,
    base: nn.Module,
    vector_model: nn.Module,
    vector_task: Any,
    vector_train: Any,
    vector_queries: Any,
    index_folder: Path,
) -> None:
    index = InfluenceIndex.build(vector_model, vector_task, vector_train, index_folder, ONE_STEP, base=base)
    assert about(index) == ("adam, estimated", "displacement")
    assert 1 / 3 < share(index) / share(recorded) < 3
    found, expected = (Attributor(vector_model, vector_task, each).scores(vector_queries) for each in (index, recorded))
    assert float(torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0)) > 0.95


def test_without_a_base_model_the_damping_is_a_rule_of_thumb(
    vector_model: nn.Module, vector_task: Any, vector_train: Any, index_folder: Path
) -> None:
    index = InfluenceIndex.build(vector_model, vector_task, vector_train, index_folder)
    assert about(index) == ("adam, estimated", "heuristic")


def test_a_base_model_that_is_the_model_itself_says_nothing(
    vector_model: nn.Module, vector_task: Any, vector_train: Any, index_folder: Path
) -> None:
    index = InfluenceIndex.build(vector_model, vector_task, vector_train, index_folder, base=vector_model)
    assert about(index) == ("adam, estimated", "heuristic")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (IndexSettings(metric="identity"), ("identity", "displacement")),
        (IndexSettings(metric="adam"), ("adam, estimated", "displacement")),
        (IndexSettings(damping=0.3), ("adam, estimated", "settings")),
        (IndexSettings(damping=0.3, metric="identity"), ("identity", "settings")),
    ],
    ids=lambda value: str(value) if isinstance(value, tuple) else "",
)
def test_settings_come_first(
    settings: IndexSettings,
    expected: tuple[str, str],
    base: nn.Module,
    vector_model: nn.Module,
    vector_task: Any,
    vector_train: Any,
    index_folder: Path,
) -> None:
    index = InfluenceIndex.build(vector_model, vector_task, vector_train, index_folder, settings, base=base)
    assert about(index) == expected


def test_adams_preconditioner_is_refused_where_another_optimiser_is_on_record(
    vector_task: Any, vector_train: Any, tmp_path: Path
) -> None:
    settings = FinetuneSettings(trainable="all", epochs=1, batch_size=12, learning_rate=0.02, optimizer="sgd")
    finetune(vector_task, make_network(), vector_train, settings=settings, record_to=tmp_path / "run")
    with pytest.raises(SettingsError, match=r"index\.metric is 'adam', but the recorded optimiser has no second"):
        InfluenceIndex.build_from_run(
            tmp_path / "run",
            vector_task,
            vector_train,
            tmp_path / "index",
            IndexSettings(metric="adam"),
            into=make_network(),
        )


def test_an_interrupted_build_finds_its_estimate_again(
    base: nn.Module, vector_model: nn.Module, vector_task: Any, vector_train: Any, tmp_path: Path
) -> None:
    context = build_context(vector_model, vector_task, vector_train, tmp_path, ONE_STEP)
    base.train()
    first = estimate_training(context, base, adam=True)
    assert base.training  # as it was given
    again = estimate_training(replace(context, examples=[]), None, adam=True)
    assert again.damping == first.damping
    for name, one in first.preconditioner.items():
        assert torch.equal(again.preconditioner[name].row, one.row)
        assert torch.equal(again.preconditioner[name].column, one.column)


def test_padding_of_other_batches_changes_no_estimate(
    task: Any, make_model: Callable[..., nn.Module], make_examples: Callable[..., Any], tmp_path: Path
) -> None:
    model, base, train = make_model(seed=1), make_model(), make_examples(40)
    first, second = (
        estimate_training(
            build_context(model, task, train, tmp_path / str(tokens), IndexSettings(batch_tokens=tokens)),
            base,
            adam=True,
        )
        for tokens in (200, 17)
    )
    for name, one in first.preconditioner.items():
        torch.testing.assert_close(second.preconditioner[name].row, one.row)
        torch.testing.assert_close(second.preconditioner[name].column, one.column)


def test_other_trained_layers_make_another_index(
    vector_model: nn.Module, vector_task: Any, vector_train: Any, index_folder: Path
) -> None:
    whole = InfluenceIndex.build(vector_model, vector_task, vector_train, index_folder)
    vector_model[0].requires_grad_(False)
    fewer = InfluenceIndex.build(vector_model, vector_task, vector_train, index_folder)
    assert fewer.manifest.build_digest != whole.manifest.build_digest
    assert len(fewer.manifest.layers) == len(whole.manifest.layers) - 1
