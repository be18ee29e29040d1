"""Promises, whatever the approximation: other batches give the same scores; a build that stops changes no weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from influence_engine import Attributor, InfluenceIndex, Run
from influence_engine.index.building.stages import LAYERS_ALONG, ROWS_ALONG
from tests.influence_engine.following import SINGLE, StoppedError, recorded, weights_of


@pytest.mark.parametrize("trained", ["all", 1, "lora"])
@pytest.mark.parametrize("approximation", ["final", "segments", "unrolled", "segments without a record"])
def test_other_batches_of_a_transformer_change_nothing(
    approximation: str,
    trained: Any,
    task: Any,
    make_model: Callable[..., nn.Module],
    make_examples: Callable[..., Any],
    tmp_path: Path,
) -> None:
    train, queries = make_examples(40), make_examples(6, seed=1)
    run = recorded(task, make_model(), train, tmp_path / "run", trainable=trained, epochs=2)
    name, alone = approximation.split()[0], approximation.endswith("without a record")
    found = []
    for tokens in (200, 17):
        chosen = SINGLE.model_copy(update={"approximation": name, "batch_tokens": tokens})
        model, folder = run.load_model(), tmp_path / str(tokens)
        if alone:
            index = InfluenceIndex.build(model, task, train, folder, chosen, base=run.load_base())
        else:
            index = InfluenceIndex.build_from_run(run, task, train, folder, chosen)
        assert index.manifest.approximation == name
        found.append(Attributor(model, task, index).scores(queries))
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 1e-5


@pytest.mark.parametrize("approximation", ["segments", "unrolled"])
@pytest.mark.parametrize("stage", [LAYERS_ALONG, ROWS_ALONG])
def test_what_stops_a_build_at_weights_of_the_trajectory_leaves_the_model_as_it_was(
    stage: str,
    approximation: Any,
    vector_run: Run,
    vector_task: Any,
    vector_train: Any,
    tmp_path: Path,
    fresh_network: nn.Module,
) -> None:
    model = vector_run.load_model(fresh_network)
    before = weights_of(model)

    def stop(at: str, done: int, total: int, note: str = "") -> None:
        if at == stage and done:
            raise StoppedError

    chosen = SINGLE.model_copy(update={"approximation": approximation})
    # While the error is looked at, as in a debugger, what it went through is still there.
    with pytest.raises(StoppedError) as seen:
        InfluenceIndex.build_from_run(
            vector_run, vector_task, vector_train, tmp_path, chosen, into=model, progress=stop
        )
    assert seen.tb is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(model).items())
