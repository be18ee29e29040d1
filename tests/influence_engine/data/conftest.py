"""A real task, and a loader of files written on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from influence_engine.data import DataSet, DataSettings, load_examples
from influence_engine.tasks import TextClassification


@pytest.fixture(scope="session")
def task() -> TextClassification:
    """Judges texts and labels; nothing here needs its tokenizer."""
    return TextClassification(None, ["negative", "positive"])


@pytest.fixture
def load(tmp_path: Path, task: TextClassification) -> Callable[..., DataSet]:
    """Writes ``content`` to ``name`` in the project folder and loads it with the settings given."""

    def load_file(name: str, content: str | bytes, **settings: Any) -> DataSet:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
        return load_examples(DataSettings(**{name.rpartition(".")[2]: name}, **settings), task, tmp_path)

    return load_file
