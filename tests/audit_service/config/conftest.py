"""A project folder with a config that works, and a way to change it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audit_service.config import AuditConfig, ConfigError, load_config

GOOD = """\
name: reviews
task:
  labels: [negative, positive]
base_model:
  path: base
data:
  train:
    csv: data/train.csv
finetune:
  epochs: 4
"""


class Project:
    """A folder with ``configs/reviews.yaml``; the environment is empty but for what a test says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "configs" / "reviews.yaml"
        self.file.parent.mkdir()
        self.write(GOOD)

    def write(self, text: str | bytes) -> None:
        self.file.write_bytes(text if isinstance(text, bytes) else text.encode())

    def load(self, environment: dict[str, str] | None = None, **overrides: Any) -> AuditConfig:
        dotted = {key.replace("__", "."): value for key, value in overrides.items()}
        return load_config(self.file, overrides=dotted, environment=environment or {})

    def refusal(self, environment: dict[str, str] | None = None, **overrides: Any) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            self.load(environment, **overrides)
        return caught.value


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


@pytest.fixture
def good() -> str:
    return GOOD


@pytest.fixture
def refusal_of(project: Project) -> Callable[[str], str]:
    """The message about a config of this text."""

    def message(text: str) -> str:
        project.write(text)
        return project.refusal().message

    return message
