"""Which config a service class means."""

from __future__ import annotations

from pathlib import Path

import pytest

from audit_service.config import AuditConfig, load_config
from audit_service.config.layers import ENABLED_VARIABLE
from audit_service.config.service_config import ENVIRONMENT, ConfigReference, check_together
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
    with pytest.raises(SettingsError, match="BENTO_AUDIT_CONFIG is not set"):
        ConfigReference(None).read()
    monkeypatch.setenv(ENVIRONMENT, f"{file},{file}")
    with pytest.raises(SettingsError, match="lists 2"):
        ConfigReference(None).read()
    monkeypatch.setenv(ENVIRONMENT, str(file))
    assert ConfigReference(None).read().name == "mood"


def test_a_config_is_enabled_unless_it_or_the_environment_says_otherwise(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = project / "configs" / "mood.yaml"
    reference = ConfigReference("mood", project / "service.py")
    monkeypatch.delenv(ENABLED_VARIABLE, raising=False)
    assert reference.is_enabled()
    file.write_text(YAML + "enabled: false\n")
    assert not reference.is_enabled()
    monkeypatch.setenv(ENABLED_VARIABLE, "1")
    assert reference.is_enabled()
    file.write_text(YAML)
    monkeypatch.setenv(ENABLED_VARIABLE, "0")
    assert not reference.is_enabled()
    assert not ConfigReference("nowhere").is_enabled(), "no config need be there"
    monkeypatch.setenv(ENABLED_VARIABLE, "")
    assert reference.is_enabled()
    monkeypatch.setenv(ENABLED_VARIABLE, "perhaps")
    with pytest.raises(SettingsError, match=r"AUDIT_ENABLED: found 'perhaps'; it should be 1 \(true\) or 0 \(false\)"):
        reference.is_enabled()


def test_configs_of_one_service_have_places_of_their_own_and_one_engine(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(name: str, more: str = "") -> AuditConfig:
        file = project / "configs" / f"{name}.yaml"
        file.write_text(YAML + more)
        return load_config(file)

    check_together({"a": read("a"), "b": read("b")})
    with pytest.raises(SettingsError, match=r"'a' and 'b' would both keep their predictions in .*kept: give each"):
        check_together({"a": read("a", "folders: {state: kept}"), "b": read("b", "folders: {state: kept}")})
    server = "state: {url: 'postgresql://u:p@h/d'}\n"
    check_together({"a": read("a", server), "b": read("b", server)})
    with pytest.raises(SettingsError, match="the schema 'same' of one database"):
        check_together({"a": read("a", server + "name: same"), "b": read("b", server + "name: same")})
    with pytest.raises(SettingsError, match="'a' http://engine:1 and 'b' one beside the service"):
        check_together({"a": read("a", "serve: {engine_url: 'http://engine:1'}"), "b": read("b")})


def test_the_state_folder_of_the_environment_may_hold_the_configs_name(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTO_AUDIT_STATE", "/var/audit/{name}")
    assert load_config(project / "configs" / "mood.yaml").state_folder == Path("/var/audit/mood")
    monkeypatch.setenv("BENTO_AUDIT_STATE", "/var/audit")
    assert load_config(project / "configs" / "mood.yaml").state_folder == Path("/var/audit")


def test_a_value_of_enabled_that_is_neither_true_nor_false_is_refused_with_its_place(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = project / "configs" / "mood.yaml"
    monkeypatch.setenv(ENABLED_VARIABLE, "perhaps")
    with pytest.raises(SettingsError, match=r"variable AUDIT_ENABLED: enabled: found 'perhaps' .* true or false"):
        load_config(file)
    monkeypatch.delenv(ENABLED_VARIABLE)
    file.write_text(YAML + "enabled: perhaps\n")
    with pytest.raises(SettingsError, match=r"mood.yaml, line 4: enabled: found 'perhaps' .* true or false"):
        load_config(file)
