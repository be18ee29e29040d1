"""A model that cannot be opened is a reason in every answer, and opened when it is mended."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from audit_service.artifacts import onnx_models
from audit_service.artifacts.bento_models import find
from audit_service.artifacts.onnx_models import ReopenedPredictor, open_predictor
from audit_service.config import load_config
from audit_service.errors import ModelUnavailableError
from audit_service.prediction.predictor import OnnxPredictor
from influence_engine.errors import RecordError

QUESTION = [{"text": "a warm, funny and wise film"}]


@pytest.fixture
def project(small_project: Any, tmp_path: Path) -> Any:
    """The small project's config and export, in a folder of its own."""
    for name in ("configs", "models", "index"):
        shutil.copytree(small_project.root / name, tmp_path / name)
    return load_config(tmp_path / "configs" / "sentiment.yaml")


def test_a_damaged_export_is_named_in_every_answer_until_it_is_mended(
    project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_models, "RETRY_S", 0.0)
    model = project.onnx_folder / "model.onnx"
    whole = model.read_bytes()
    opened: list[OnnxPredictor] = []
    model.write_bytes(whole[:-100])
    predictor = ReopenedPredictor(lambda: open_predictor(project), opened.append)
    for _ in range(2):
        with pytest.raises(ModelUnavailableError, match=r"model\.onnx has changed") as refused:
            predictor.predict(QUESTION)
        assert refused.value.status == 503
    model.write_bytes(whole)
    assert predictor.predict(QUESTION) == open_predictor(project).predict(QUESTION)
    assert [one.model_digest for one in opened] == [open_predictor(project).model_digest]


def test_what_cannot_be_opened_is_not_tried_with_every_request() -> None:
    tried: list[int] = []

    def fail() -> OnnxPredictor:
        tried.append(1)
        raise RuntimeError("no such opset")

    predictor = ReopenedPredictor(fail, lambda predictor: None)
    for _ in range(3):
        with pytest.raises(ModelUnavailableError, match="RuntimeError: no such opset"):
            predictor.predict(QUESTION)
    assert len(tried) == 1


def test_an_index_without_a_current_version_is_not_replaced_by_another(project: Any) -> None:
    assert find(project, "index").folder == project.index_folder
    (project.index_folder / "CURRENT").unlink()
    with pytest.raises(RecordError, match="has versions, and no file CURRENT that says which is current"):
        find(project, "index")
