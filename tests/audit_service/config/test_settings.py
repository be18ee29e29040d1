from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from audit_service.config import ConfigError
from influence_engine.errors import SettingsError
from influence_engine.tasks import TextClassification

if TYPE_CHECKING:
    from conftest import Project


def test_results_go_below_the_project_by_name(project: Project) -> None:
    config = project.load()

    assert config.run_folder == project.folder / "runs" / "reviews"
    assert config.index_folder == project.folder / "index" / "reviews"
    assert config.onnx_folder == project.folder / "models" / "reviews"
    assert config.state_folder == project.folder / "state" / "reviews"


def test_folders_can_be_named_and_the_environment_names_the_state(project: Project) -> None:
    named = {"folders__runs": "elsewhere/run", "folders__state": "elsewhere/state", "folders__index": "/srv/index"}

    config = project.load(**named)
    assert config.run_folder == project.folder / "elsewhere" / "run"
    assert config.index_folder == Path("/srv/index")
    assert config.state_folder == project.folder / "elsewhere" / "state"
    assert project.load({"BENTO_AUDIT_STATE": "/srv/state"}, **named).state_folder == Path("/srv/state")


PASSWORD = "p@ss/w%rd"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("postgresql+psycopg://a:b@db/audit", "postgresql+psycopg://a:b@db/audit"),
        ("postgresql://${USER}:${PASS}@db/audit", "postgresql://me:p%40ss%2Fw%25rd@db/audit"),
        ("${WHOLE}", "postgresql://a:b@db/audit?sslmode=require"),
    ],
)
def test_a_database_server_is_named_with_variables_of_the_environment(
    project: Project, good: str, url: str, address: str
) -> None:
    project.write(f"{good}state:\n  url: {url}\n")
    environment = {"USER": "me", "PASS": PASSWORD, "WHOLE": "postgresql://a:b@db/audit?sslmode=require"}

    assert project.load().state.address(environment) == address
    assert (
        project.load({"BENTO_AUDIT_STATE__URL": url, "BENTO_AUDIT_STATE": "/s"}).state.address(environment) == address
    )
    with pytest.raises(SettingsError, match="names the environment variable USER, which is not set"):
        project.load({"BENTO_AUDIT_STATE__URL": "postgresql://${USER}@db/audit"}).state.address({"USER": ""})


def test_no_server_is_named_by_default(project: Project) -> None:
    assert project.load().state.address() is None


@pytest.mark.parametrize("value", ["mysql://a:{}@db/x", "{{password: '{}'}}", "[a, '{}']", "sqlite://{}"])
def test_a_wrong_address_is_refused_without_being_shown(project: Project, good: str, value: str) -> None:
    project.write(f"{good}state:\n  url: {value.format(PASSWORD)}\n")

    found = project.refusal()

    assert found.message.startswith("configs/reviews.yaml, line 12: state.url: ")
    assert PASSWORD not in found.message


def test_a_config_that_is_printed_does_not_show_its_database(project: Project) -> None:
    config = project.load({"BENTO_AUDIT_STATE__URL": f"postgresql://a:{PASSWORD}@db/audit"})

    assert PASSWORD not in f"{config} {config!r}"


def test_the_base_model_is_a_folder_or_a_hub_id(project: Project, good: str) -> None:
    (project.folder / "base").mkdir()
    assert project.load().base_model_location() == str(project.folder / "base")

    project.write(good.replace("path: base", "hub: owner/model"))
    assert project.load().base_model_location() == "owner/model"


def test_a_model_trained_elsewhere_needs_no_base_model(project: Project, good: str) -> None:
    project.write(good.replace("base_model:\n  path: base", "model: {path: tuned}"))
    (project.folder / "tuned").mkdir()

    config = project.load()

    assert config.model_folder() == project.folder / "tuned"
    assert config.base_model_location() is None
    assert config.finetune.epochs == 4


def test_a_missing_folder_is_named_by_key_and_line(project: Project) -> None:
    (project.folder / "bases").mkdir()

    with pytest.raises(ConfigError) as caught:
        project.load().base_model_location()

    assert caught.value.message == (
        f"configs/reviews.yaml, line 5: base_model.path: found 'base', but there is no {project.folder / 'base'}. "
        "Did you mean 'bases'?"
    )
    assert caught.value.field == "base_model.path"


def test_the_task_is_made_from_its_section(project: Project) -> None:
    task = project.load(task__max_length=16, task__text="review").task_object(None)

    assert isinstance(task, TextClassification)
    assert (task.labels, task.max_length, task.text, task.label) == (["negative", "positive"], 16, "review", "label")


OWN_TASK = """
class Lengths:
    def __init__(self, tokenizer, labels, power=1):
        self.labels, self.power = labels, power

    def collate(self, examples): ...
    def outputs(self, model, batch): ...
    def loss(self, outputs, batch): ...
    def measurement(self, outputs, batch): ...


class NoTask:
    def __init__(self, tokenizer, labels): ...
"""


def test_a_task_of_ones_own_is_found_in_the_project_and_given_what_the_config_says(project: Project) -> None:
    (project.folder / "own_task_of_this_test.py").write_text(OWN_TASK)
    overrides = {"task__type": "own_task_of_this_test:Lengths", "task__options": {"power": 3}}

    task = project.load(**overrides).task_object(None)

    assert type(task).__name__ == "Lengths"
    assert vars(task) == {"labels": ["negative", "positive"], "power": 3}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("no_such_module_anywhere:Task", {}, "no_such_module_anywhere cannot be imported"),
        ("own_task_of_that_test:Length", {}, "has no 'Length'. Did you mean 'Lengths'?"),
        ("own_task_of_that_test:Lengths", {"x": 1}, "cannot be called with ['labels', 'x']"),
        ("own_task_of_that_test:NoTask", {}, "is no task: it needs collate, outputs, loss and measurement"),
    ],
)
def test_a_class_that_is_no_task_is_refused(project: Project, name: str, options: dict[str, int], message: str) -> None:
    (project.folder / "own_task_of_that_test.py").write_text(OWN_TASK)

    with pytest.raises(ConfigError) as caught:
        project.load(task__type=name, task__options=options).task_object(None)

    assert message in caught.value.message
    assert caught.value.message.startswith("override: task")
