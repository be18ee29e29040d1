"""Promises: normalisation by running statistics keeps them in every training, and its weights where they are frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from influence_engine.replay import replay
from influence_engine.training import FinetuneSettings, Run, finetune, reexecute
from tests.influence_engine.convolutional import ConvolutionalNetwork, ImageClassification, make_images

TASK, TRAIN = ImageClassification(), make_images(12)


def settings_of(trainable: Any, dropout: float) -> FinetuneSettings:
    return FinetuneSettings(trainable=trainable, dropout=dropout, epochs=2, batch_size=4, learning_rate=1e-2)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("trainable", ["all", 1, ["blocks.2", "head"]])
def test_running_statistics_are_those_of_the_base_model_after_any_training(trainable: Any, dropout: float) -> None:
    base = ConvolutionalNetwork(dropout)
    before = {name: value.clone() for name, value in base.state_dict().items()}

    result = finetune(TASK, base, TRAIN, settings=settings_of(trainable, dropout))

    assert changed(before, result.load_model().state_dict()) == set(result.trainable)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("trainable", ["all", 2])
def test_normalisation_that_the_base_model_has_frozen_is_not_trained(trainable: Any, dropout: float) -> None:
    base = ConvolutionalNetwork(dropout)
    base.freeze_normalisation()
    before = {name: value.clone() for name, value in base.state_dict().items()}

    result = finetune(TASK, base, TRAIN, settings=settings_of(trainable, dropout))

    found = changed(before, result.load_model().state_dict())
    assert found == set(result.trainable)
    assert not any("norm" in name for name in found)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_recorded_training_of_it_comes_out_again_and_can_be_replayed(tmp_path: Path, dropout: float) -> None:
    base = ConvolutionalNetwork(dropout)
    base.freeze_normalisation()
    # Adam's first updates are little more than signs, which finite differences do not measure.
    settings = settings_of("all", dropout).model_copy(update={"optimizer": "sgd"})
    run = finetune(TASK, base, TRAIN, settings=settings, record_to=tmp_path)

    again = reexecute(run, TASK, TRAIN, into=ConvolutionalNetwork(dropout))
    saved = run.checkpoint(run.checkpoints[-1])[0]
    assert all(torch.equal(again[name], saved[name]) for name in run.trainable)

    directions = {name: torch.ones(1, *tensor.shape) for name, tensor in saved.items()}
    (row,) = replay(run, TASK, TRAIN, directions, into=ConvolutionalNetwork(dropout))
    ends = [
        sum(
            float(tensor.double().sum())
            for tensor in reexecute(
                run, TASK, TRAIN, weights={"image-3": weight}, into=ConvolutionalNetwork(dropout)
            ).values()
        )
        for weight in (0.99, 1.01)
    ]
    assert float(row[3]) == pytest.approx((ends[1] - ends[0]) / 0.02, rel=0.05, abs=1e-3)


def test_freezing_it_makes_another_run(tmp_path: Path) -> None:
    base, settings = ConvolutionalNetwork(), settings_of("all", 0.0)
    finetune(TASK, base, TRAIN, settings=settings, record_to=tmp_path / "free")
    base.freeze_normalisation()
    finetune(TASK, base, TRAIN, settings=settings, record_to=tmp_path / "frozen")

    free, frozen = (Run.open(tmp_path / name).manifest["identity"] for name in ("free", "frozen"))
    assert "frozen_normalisation" not in free
    assert set(frozen["frozen_normalisation"]) == {name for name, _ in base.named_parameters() if "norm" in name}
    with pytest.raises(Exception, match="frozen_normalisation: None in the run"):
        finetune(TASK, base, TRAIN, settings=settings, record_to=tmp_path / "free", reuse=True)
