"""Retrainings of the small network, kept in a folder of the test's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from influence_engine import Run
from influence_engine.evaluation import Retraining


@pytest.fixture
def retraining(
    vector_run: Run, vector_task: Any, vector_train: Any, vector_queries: Any, tmp_path: Path, fresh_network: nn.Module
) -> Retraining:
    return Retraining(
        vector_run, vector_task, vector_train, vector_queries, tmp_path / "cache", into=fresh_network, device="cpu"
    )
