"""Promises: what an index says it keeps of the influence on held-out examples is what it keeps; little is warned of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from influence_engine import Attributor, IndexSettings, InfluenceIndex, Run
from influence_engine.gradients import tracing, track
from influence_engine.index.building.provenance import Provenance
from tests.influence_engine.vectors import make_vectors


def built(run: Run, task: Any, network: nn.Module, folder: Path, **settings: Any) -> InfluenceIndex:
    train, held_out = make_vectors(60, seed=1, prefix="train-"), make_vectors(24, seed=2, prefix="query-")
    chosen = IndexSettings(dtype="float32", hessian_directions=0, **settings)
    return InfluenceIndex.build_from_run(run, task, train, folder, chosen, into=network, held_out=held_out)


def gradients(model: nn.Module, task: Any, index: InfluenceIndex, examples: Any) -> Tensor:
    """Preconditioned gradients of the losses, one example at a time, ``[N, P]``."""
    tracked, preconditioner = track(model), index.encoder.coordinates.preconditioner
    rows = []
    for example in examples:
        batch = task.collate([example])
        model.zero_grad()
        task.loss(task.outputs(model, batch), batch).sum().backward()
        by_layer = tracked.matrices({name: one.grad for name, one in model.named_parameters()})
        parts = [one * preconditioner[name].matrix() for name, one in by_layer.items()]
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


def encoded(attributor: Attributor, examples: Any) -> Tensor:
    """The index's coordinates of the losses' gradients, ``[N, k]``."""
    batch = attributor.task.collate(examples)
    with tracing(attributor.model, attributor.task, attributor.tracked.layers, batch) as trace:
        found = trace.layer_gradients(attributor.task.loss(trace.outputs, trace.batch))
    return attributor.index.encoder.encode(found)


@pytest.mark.parametrize("settings", [{"dimensions": 3}, {"dimensions": 12}, {"coordinates": 30}])
def test_the_share_that_is_kept_is_that_of_all_pairs_of_gradients(
    settings: Any, vector_run: Run, vector_task: Any, vector_model: nn.Module, fresh_network: nn.Module, tmp_path: Path
) -> None:
    index = built(vector_run, vector_task, fresh_network, tmp_path, **settings)
    train, held_out = make_vectors(60, seed=1, prefix="train-"), make_vectors(24, seed=2, prefix="query-")
    attributor = Attributor(vector_model, vector_task, index)
    eigenvalues, damping = index.encoder.eigenvalues, Provenance.of(vector_run).damping
    assert damping is not None
    query, example = (encoded(attributor, each) for each in (held_out, train))
    pairs = gradients(vector_model, vector_task, index, held_out) @ gradients(vector_model, vector_task, index, train).T
    beside = (pairs - query @ example.T) / damping
    missed = float(beside.square().sum() / (beside + query / (eigenvalues + damping) @ example.T).square().sum())
    assert missed > 0.005
    assert index.manifest.influence_kept == pytest.approx(1 - missed, abs=0.4 * missed)


def test_an_index_that_cuts_nothing_keeps_all_and_one_that_keeps_little_warns(
    vector_run: Run,
    vector_task: Any,
    vector_model: nn.Module,
    vector_queries: Any,
    fresh_network: nn.Module,
    tmp_path: Path,
) -> None:
    whole = built(vector_run, vector_task, fresh_network, tmp_path / "whole")
    assert whole.manifest.influence_kept == pytest.approx(1, abs=1e-6)
    little = built(vector_run, vector_task, fresh_network, tmp_path / "little", dimensions=1)
    assert (little.manifest.influence_kept or 0.0) < 0.7
    (well,), (poorly,) = (
        Attributor(vector_model, vector_task, index).attribute(vector_queries[:1]) for index in (whole, little)
    )
    assert not any("of the influence" in warning for warning in well.quality["warnings"])
    assert any("of the influence on held-out examples" in warning for warning in poorly.quality["warnings"])


def test_without_held_out_examples_it_is_said_that_nothing_is_known_of_them(
    vector_task: Any, vector_model: nn.Module, vector_train: Any, vector_queries: Any, tmp_path: Path
) -> None:
    index = InfluenceIndex.build(vector_model, vector_task, vector_train, tmp_path)
    assert index.manifest.influence_kept is None
    assert index.manifest.retained == {}
    (answer,) = Attributor(vector_model, vector_task, index).attribute(vector_queries[:1])
    assert answer.quality["outside_index"] is None
    (said,) = answer.quality["warnings"]
    assert said.startswith("not known whether the input is like the training examples")
    assert "data.validation" in said
