"""Promises: the folder that a bento serves a model from has everything, and what adapters sit on only once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from audit_service.artifacts.model_files import ServedModel, load_model_folder, save_model_folder
from influence_engine import Run
from influence_engine.errors import DigestMismatchError
from influence_engine.models.loading import model_digest
from tests.audit_service.artifacts.conftest import write_config
from tests.fixtures import make_before_the_move as before


@pytest.mark.parametrize(("name", "bases"), [("texts", 2), ("lora", 1)])
def test_a_model_comes_back_with_its_base_from_wherever_the_folder_is_moved(
    name: str, bases: int, tmp_path: Path
) -> None:
    run = Run.open(before.FOLDER / name / "run")
    served = ServedModel(run.load_model(), run.load_base(), run.load_processor(), run.digests, name)
    save_model_folder(served, tmp_path / "made" / "served")
    shutil.move(tmp_path / "made", tmp_path / "moved")

    found = load_model_folder(write_config(tmp_path, name), tmp_path / "moved" / "served", name)

    assert found.base is not None
    assert (model_digest(found.model), model_digest(found.base)) == (run.digests["model"], run.digests["base"])
    assert [n for n, p in found.model.named_parameters() if p.requires_grad] == run.trainable
    assert found.processor("good film")["input_ids"] == served.processor("good film")["input_ids"]
    assert len(list((tmp_path / "moved").rglob("model.safetensors"))) == bases


def test_a_base_that_is_another_model_is_refused(tmp_path: Path) -> None:
    run = Run.open(before.FOLDER / "lora" / "run")
    served = ServedModel(run.load_model(), run.load_base(), run.load_processor(), run.digests, "lora")
    save_model_folder(served, tmp_path)
    shutil.copy(before.FOLDER / "texts" / "run" / "model" / "model.safetensors", tmp_path / "fine_tuned" / "base")

    config = write_config(tmp_path / "project", "lora")
    with pytest.raises(DigestMismatchError, match="has weights with digest"):
        load_model_folder(config, tmp_path, "lora")
