"""Promise: steps whose rows are projected all together are those whose rows are projected one by one."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from influence_engine import FinetuneSettings, Run, finetune
from influence_engine.curvature import identity_preconditioner
from influence_engine.index.building.stages import IndexBuilder
from influence_engine.index.unrolling import row_projection
from influence_engine.index.unrolling.linearization import LinearisedStep, StepLineariser, read_steps
from influence_engine.index.unrolling.row_projection import RowProjection
from influence_engine.progress import silent
from tests.influence_engine.building import build_context
from tests.influence_engine.following import SINGLE
from tests.influence_engine.six_classes import Classes, convolutional, examples


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_rows_are_the_same_together_as_one_by_one(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, train, model = Classes(), examples(24), convolutional()
    settings = FinetuneSettings.model_validate(
        {"trainable": "all", "optimizer": optimizer, "learning_rate": 0.05, "epochs": 2, "batch_size": 10}
    )
    finetune(task, model, train, settings=settings, record_to=tmp_path / "run")
    # Fewer coordinates than parameters, so that the projections are not of whole layers.
    context = build_context(model, task, train, tmp_path, SINGLE.model_copy(update={"coordinates": 120}))
    preconditioner = identity_preconditioner(context.passes.tracked)
    coordinates = IndexBuilder(context, preconditioner).layers()
    basis = torch.linalg.qr(torch.randn(coordinates.size, 40, generator=torch.Generator().manual_seed(0)))[0]

    def steps(name: str) -> list[LinearisedStep]:
        folder = tmp_path / name
        folder.mkdir()
        lineariser = StepLineariser(Run.open(tmp_path / "run"), context.passes, train, folder, silent)
        return [
            step for path in lineariser.linearise(coordinates, basis, torch.eye(40)[:, :2]) for step in read_steps(path)
        ]

    assert RowProjection(coordinates, basis).shares(next(context.passes.rows(train[:2])))
    together = steps("together")
    monkeypatch.setattr(row_projection, "FEWEST_ROWS", 99)
    one_by_one = steps("one-by-one")

    for step, expected in zip(together, one_by_one, strict=True):
        for field in fields(LinearisedStep):
            torch.testing.assert_close(getattr(step, field.name), getattr(expected, field.name), rtol=1e-4, atol=1e-5)
