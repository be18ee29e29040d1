"""What the doctor says of a database server: that it answers, what is in it, or why it cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from audit_service.artifacts.state_places import state_location
from audit_service.config import AuditConfig, load_config
from audit_service.store.predictions import PredictionStore
from audit_service.workflows.diagnosis.finding import Finding
from audit_service.workflows.diagnosis.project import state
from audit_service.workspace import Workspace
from tests.postgres import PASSWORD, PostgresServer, new_namespace

CONFIG = """\
name: {name}
task: {{labels: [negative, positive]}}
base_model: {{path: base}}
data: {{train: {{csv: train.csv}}}}
state: {{url: "{url}"}}
"""


def config_of(folder: Path, url: str) -> AuditConfig:
    file = folder / "audit.yaml"
    file.write_text(CONFIG.format(name=new_namespace(), url=url))
    return load_config(file, environment={})


def test_a_server_that_answers_is_in_order_before_and_after_its_tables_are_made(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_DB_PASSWORD", PASSWORD)
    config = config_of(tmp_path, postgres.url().replace("p%40ss%3aw%2frd%25", "${TEST_DB_PASSWORD}"))
    where = f"127.0.0.1/postgres ({config.name})"

    made_later = "the first server that starts makes its tables"
    assert state(Workspace(config)) == Finding("state", "ok", f"{where} answers; {made_later}")
    assert state(Workspace(config)).found.endswith(made_later), "looking makes nothing"
    PredictionStore(state_location(config)).start()
    assert state(Workspace(config)) == Finding("state", "ok", f"{where} answers, with tables of version 0001")


def test_a_server_that_cannot_be_used_is_broken(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = state(Workspace(config_of(tmp_path, postgres.url("wrong"))))
    assert (refused.state, "does not answer as it should" in refused.found) == ("broken", True)

    monkeypatch.delenv("TEST_DB_PASSWORD", raising=False)
    unset = state(Workspace(config_of(tmp_path, postgres.url("x").replace(":x@", ":${TEST_DB_PASSWORD}@"))))
    assert (unset.state, unset.found) == (
        "broken",
        "state.url names the environment variable TEST_DB_PASSWORD, which is not set",
    )
