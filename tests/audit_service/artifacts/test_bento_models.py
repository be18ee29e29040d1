"""Promises: Bento models that commit 3ba35ab made are found, loaded and served, and not made again while they fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import bentoml
import pytest
import torch

from audit_service.artifacts.bento_models import find
from audit_service.config import AuditConfig
from audit_service.workflows.export import export_for_serving, register
from audit_service.workspace import Workspace
from influence_engine import Attributor, InfluenceIndex
from influence_engine.models.loading import model_digest
from tests.audit_service.artifacts.conftest import write_config
from tests.fixtures import make_before_the_move as before

SAID = json.loads((before.FOLDER / "expected.json").read_text())["said"]
DATA = json.loads((before.FOLDER / "data.json").read_text())


def made_then(name: str, kind: str, source: Path) -> str:
    """Puts a folder into the store as that commit did, under the name of its module and with its metadata."""
    metadata: dict[str, Any] = SAID[name]["metadata"][kind]
    with bentoml.models.create(f"old-{name}-{kind}", module="audit_service.bundle", metadata=metadata) as made:
        shutil.copytree(source, made.path, dirs_exist_ok=True)
    return str(made.tag)


@pytest.fixture(params=["texts", "lora"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def config(name: str, tmp_path: Path) -> AuditConfig:
    """Of a folder that has neither run nor index."""
    return write_config(tmp_path, name)


def test_they_are_found_and_explain_as_then(name: str, config: AuditConfig) -> None:
    model = made_then(name, "model", before.FOLDER / name / "served")
    tag = made_then(name, "index", before.FOLDER / name / "index")

    served, found = Workspace(config).model, find(config, "index")

    assert (served.tag, found.tag) == (model, tag)
    assert served.base is not None
    assert (model_digest(served.model), model_digest(served.base)) == (served.digests["model"], served.digests["base"])
    index = InfluenceIndex.open(found.folder, model_digest=served.digests["model"])
    attributor = Attributor(served.model, config.task_object(served.processor), index, base_model=served.base)
    scores, then = attributor.scores(DATA["text_queries"]), torch.tensor(SAID[name]["estimated"])
    assert float((scores - then).abs().max()) <= 5e-3 * float(then.abs().max())


def test_of_an_unchanged_run_and_index_none_is_made_again(name: str, config: AuditConfig) -> None:
    shutil.copytree(before.FOLDER / name / "run", config.run_folder)
    shutil.copytree(before.FOLDER / name / "index", config.index_folder)
    tags = [
        made_then(name, kind, before.FOLDER / name / folder)
        for kind, folder in (("model", "served"), ("index", "index"))
    ]
    workspace = Workspace(config)
    export_for_serving(workspace, DATA["texts"])

    assert register(workspace)[:2] == tags
