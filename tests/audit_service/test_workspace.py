"""A workspace opens everything once, shares it among the steps of a call, and never hides what has changed since."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from audit_service.config import load_config
from audit_service.engine.loading import load
from audit_service.workflows.export import export_and_register
from audit_service.workflows.finetuning import run_finetuning
from audit_service.workflows.index_building import build_index, plan_index
from audit_service.workspace import LOADING, Workspace
from influence_engine.errors import DataError, DigestMismatchError, RecordError, SettingsError
from influence_engine.models.loading import model_digest
from influence_engine.training import Run

SOURCES = ("train.csv", "held_out.csv", "test.csv")
READ_AS = "columns: {id: key, text: sentence, label: sentiment}, labels: {0: bad, 1: good}"
CONFIG = f"""
task: {{type: text_classification, labels: [bad, good]}}
base_model: {{path: base}}
data:
  train: {{csv: train.csv, {READ_AS}}}
  validation: {{csv: held_out.csv, {READ_AS}}}
  test: {{csv: test.csv, {READ_AS}}}
finetune: {{epochs: 2, batch_size: 16, learning_rate: 3e-3, warmup_ratio: 0}}
"""

COUNTING = """
import collections, json, os, sys

opened = collections.Counter()

def count(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        opened[os.path.basename(os.fsdecode(arguments[0]))] += 1

sys.addaudithook(count)
"""

ONE_READING = """
from audit_service.config import load_config
from influence_engine.data import load_examples

config = load_config("films")
for part in ("train", "validation", "test"):
    load_examples(getattr(config.data, part), config.task_object(None), config.root)
"""

THE_WHOLE_SEQUENCE = """
from audit_service.config import load_config
from audit_service.workflows import drift_baseline
from audit_service.workflows.finetuning import run_finetuning
from audit_service.workflows.index_building import BuildOrder, build_for_serving
from audit_service.workflows.index_check import check_against_retraining
from audit_service.workspace import Workspace

workspace = Workspace(load_config("films"))
run_finetuning(workspace)
build_for_serving(workspace, BuildOrder(directions=8), lambda message: None)
check_against_retraining(workspace)
drift_baseline.build(workspace)
assert drift_baseline.is_there(workspace.config)
"""


def opened_by(program: str, folder: Path) -> dict[str, int]:
    """How often a program, run in a process of its own, opened a file of each name."""
    finished = subprocess.run(
        [sys.executable, "-c", f"{COUNTING}\n{program}\nprint(json.dumps(opened))"],
        cwd=folder,
        env={**os.environ, "BENTOML_HOME": str(folder / "bentoml"), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    found: dict[str, int] = json.loads(finished.stdout.splitlines()[-1])
    return found


@pytest.fixture
def plays(adopted: Path, tmp_path: Path) -> Path:
    """A project before anything is made from it: 144 training examples, as many held out, as many for a test."""
    shutil.copytree(adopted / "base", tmp_path / "base")
    lines = (adopted / "train.csv").read_text().splitlines()
    for name in SOURCES:
        renamed = [lines[0], *(f"{name}-{line}" for line in lines[1:])]
        (tmp_path / name).write_text("\n".join(renamed) + "\n")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "films.yaml").write_text(CONFIG)
    return tmp_path


@pytest.mark.slow
def test_a_whole_sequence_of_stages_reads_every_source_of_examples_once(plays: Path) -> None:
    once = opened_by(ONE_READING, plays)
    sequence = opened_by(THE_WHOLE_SEQUENCE, plays)

    assert all(once[name] for name in SOURCES)
    assert {name: sequence[name] for name in SOURCES} == {name: once[name] for name in SOURCES}


def test_all_steps_of_a_call_share_what_was_opened(films: Path) -> None:
    reported: list[str] = []
    workspace = Workspace(load_config("films"), lambda stage, done, total, note="": reported.append(stage))

    first, again = load(workspace), load(workspace)

    assert first.attributor is again.attributor
    assert first.attributor.index is workspace.index
    assert first.attributor.model is workspace.model.model
    assert first.task is workspace.task
    assert workspace.train is workspace.training_data.examples
    assert workspace.replayable.run is workspace.run
    assert reported.count(LOADING) == 2  # begun and ended, once


@pytest.mark.parametrize(
    ("damaged", "opened", "error"),
    [
        ("train.csv", "train", DataError),
        ("runs/films/steps.safetensors", "run", DigestMismatchError),
        ("runs/films/steps.safetensors", "model", DigestMismatchError),
    ],
)
def test_the_next_workspace_sees_what_has_changed_on_disk(
    films: Path, damaged: str, opened: str, error: type[Exception]
) -> None:
    before = Workspace(load_config("films"))
    held = getattr(before, opened)

    (films / damaged).write_bytes(b"damaged")

    assert getattr(before, opened) is held
    with pytest.raises(error):
        getattr(Workspace(load_config("films")), opened)


def test_what_could_not_be_opened_is_tried_again(films: Path) -> None:
    (films / "runs").rename(films / "elsewhere")
    workspace = Workspace(load_config("films"))
    with pytest.raises(RecordError, match="has not been fine-tuned yet"):
        workspace.run  # noqa: B018

    (films / "elsewhere").rename(films / "runs")

    assert workspace.run.replayable


def test_a_run_and_an_index_that_a_call_makes_replace_what_it_had_opened(
    films: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTO_AUDIT_FINETUNE__EPOCHS", "1")
    workspace = Workspace(load_config("films"))
    before = load(workspace).model["digest"]

    run = run_finetuning(workspace, restart=True)
    index = build_index(workspace)

    assert workspace.run is run
    assert workspace.index is index
    assert load(workspace).model["digest"] == run.digests["model"] != before
    assert load(workspace).attributor.index is index


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "adopted"])
def test_the_shared_model_is_after_every_step_what_it_was(
    films: Path, adopted: Path, recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not recorded:
        shutil.copytree(adopted / "support", films / "support")
        file = films / "configs" / "films.yaml"
        file.write_text(f"{file.read_text()}\nmodel: {{path: support}}\n")
        shutil.rmtree(films / "index")
    monkeypatch.setenv("BENTO_AUDIT_INDEX__SEED", "1")
    workspace = Workspace(load_config("films"))
    trained = [name for name, one in workspace.model.model.named_parameters() if one.requires_grad]

    plan_index(workspace)
    build_index(workspace)
    load(workspace).attributor.attribute([{"text": "the film is dull"}])
    manifest: Any = export_and_register(workspace)

    model, base = workspace.model.model, workspace.model.base
    assert base is not None
    assert manifest["model_digest"] == model_digest(model) == workspace.model_digests["model"]
    assert model_digest(base) == model_digest(Workspace(load_config("films")).model.base or model)
    assert [name for name, one in model.named_parameters() if one.requires_grad] == trained
    assert not model.training


def test_data_are_read_with_the_base_model_alone_before_anything_is_trained(plays: Path) -> None:
    workspace = Workspace(load_config(plays / "configs" / "films.yaml"))

    assert len(workspace.train) == len(workspace.held_out) == len(workspace.test) == 144
    assert workspace.task is workspace.base_task


def test_parts_that_the_config_does_not_name_are_empty(films: Path) -> None:
    workspace = Workspace(load_config("films"))

    assert workspace.test == []
    assert len(workspace.labelled_held_out) == len(workspace.held_out) > 0


def test_a_config_without_a_base_model_says_so_when_one_is_asked_for(films: Path, adopted: Path) -> None:
    shutil.copytree(adopted / "support", films / "support")
    file = films / "configs" / "films.yaml"
    file.write_text(file.read_text().replace("base_model: {path: base}", "model: {path: support}"))
    workspace = Workspace(load_config("films"))

    with pytest.raises(SettingsError, match="names no base_model to fine-tune"):
        workspace.base_location  # noqa: B018
    assert workspace.model.base is None
    assert workspace.model_digests == workspace.model.digests


def test_digests_of_a_recorded_model_are_known_without_loading_it(films: Path) -> None:
    workspace = Workspace(load_config("films"))

    assert workspace.model_digests == Run.open(films / "runs" / "films").digests
    assert "model" not in vars(workspace)
