"""Retrainings of the small network, kept in a folder of the test's own; its task, predicting labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from influence_engine import Run
from influence_engine.evaluation import Retraining


@pytest.fixture
def retraining(
    vector_run: Run, vector_task: Any, vector_train: Any, vector_queries: Any, tmp_path: Path, fresh_network: nn.Module
) -> Retraining:
    return Retraining(
        vector_run, vector_task, vector_train, vector_queries, tmp_path / "cache", into=fresh_network, device="cpu"
    )


@pytest.fixture(scope="session")
def labelling_task(vector_task: Any) -> Any:
    """The vectors' task with what a task that predicts labels has."""

    class Labelling(type(vector_task)):  # type: ignore[misc]
        label = "label"

        def predictions(self, outputs: Tensor, batch: Any) -> list[dict[str, Any]]:
            rows = outputs.softmax(-1).tolist()
            return [
                {"label": row.index(max(row)), "confidence": max(row), "scores": dict(enumerate(row))} for row in rows
            ]

    return Labelling()
