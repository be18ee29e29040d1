"""One thread, since so little work is only slowed down by a second one; and the Trainer of transformers, recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from influence_engine.tasks import TextClassification
from tests.influence_engine.training.trainer.trainer_runs import COUNT, Recorded


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def recorded(task: TextClassification, make_examples: Callable[..., Any], tmp_path: Path) -> Recorded:
    return Recorded(task, tmp_path, make_examples(COUNT))
