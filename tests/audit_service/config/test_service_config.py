"""Which config a service class means."""

from __future__ import annotations

from pathlib import Path

import pytest

from audit_service.config.service_config import ENVIRONMENT, ConfigReference
from influence_engine.errors import SettingsError

YAML = "task: {labels: [a, b]}\nmodel: {path: model}\ndata: {train: {csv: x.csv}}\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a config beside its code; the current folder is another one."""
    (tmp_path / "code" / "configs").mkdir(parents=True)
    (tmp_path / "code" / "configs" / "mood.yaml").write_text(YAML)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    return tmp_path / "code"


def test_a_config_is_found_beside_the_code_wherever_it_is_served_from(project: Path) -> None:
    reference = ConfigReference("mood", project / "bentos" / "mood" / "service.py")
    assert reference.read().root == project
    assert reference.key == "mood"


def test_the_environment_puts_another_file_in_its_place(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "operator" / "mood.yaml"
    other.parent.mkdir()
    other.write_text(YAML + "serve: {threads: 3}\n")
    monkeypatch.setenv(ENVIRONMENT, f"/nowhere/else.yaml, {other}")
    reference = ConfigReference("mood", project / "service.py")
    assert reference.read().serve.threads == 3
    assert reference.key == "mood"


def test_a_class_without_a_name_needs_exactly_one_in_the_environment(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = project / "configs" / "mood.yaml"
    with pytest.raises(SettingsError, match="lists 0"):
        ConfigReference(None).read()
    monkeypatch.setenv(ENVIRONMENT, f"{file},{file}")
    with pytest.raises(SettingsError, match="lists 2"):
        ConfigReference(None).read()
    monkeypatch.setenv(ENVIRONMENT, str(file))
    assert ConfigReference(None).read().name == "mood"
