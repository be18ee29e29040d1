"""What ONNX Runtime predicts is what torch predicts, and a folder that has changed is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audit_service.prediction.export import export_onnx
from audit_service.prediction.export_files import is_current, read_export
from audit_service.prediction.predictor import OnnxPredictor
from audit_service.workflows.export import export_for_serving
from audit_service.workspace import Workspace
from influence_engine.errors import DigestMismatchError, InputError, ModelError, RecordError
from influence_engine.tasks import TextClassification


class Rows:
    """A task whose inputs are rows of numbers: nothing here is text."""

    labels = ("low", "high")

    def collate(self, examples: Any) -> dict[str, Tensor]:
        return {"numbers": torch.tensor([example["numbers"] for example in examples], dtype=torch.float32)}

    def model_inputs(self, batch: Any) -> dict[str, Tensor]:
        return {"numbers": batch["numbers"]}

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        outputs: Tensor = model(batch["numbers"])
        return outputs

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        return outputs.sum(-1)

    def measurement(self, outputs: Tensor, batch: Any) -> Tensor:
        return outputs[:, 0]

    def predictions(self, outputs: Tensor, batch: Any) -> list[dict[str, Any]]:
        return [{"label": self.labels[int(row.argmax())], "confidence": 1.0, "scores": {}} for row in outputs]


class BatchNoise(nn.Module):
    """Answers differently in a batch than alone: an export of it cannot be right."""

    def forward(self, numbers: Tensor) -> Tensor:
        return numbers[:, :2] + numbers.shape[0]


def rows(count: int = 5) -> list[dict[str, Any]]:
    return [{"numbers": [float(n), 1.0, -float(n)]} for n in range(count)]


def test_predictions_are_those_of_torch(small_project: Any) -> None:
    config = small_project.config
    predictor = OnnxPredictor(config.onnx_folder, small_project.task, threads=1)
    served = Workspace(config).model
    batch = small_project.task.collate(small_project.test)
    with torch.no_grad():
        expected = small_project.task.predictions(small_project.task.outputs(served.model, batch), batch)
    for found in (predictor.predict(small_project.test), [predictor.predict([x])[0] for x in small_project.test]):
        assert [one["label"] for one in found] == [one["label"] for one in expected]
        for one, other in zip(found, expected, strict=True):
            assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-5)
    assert predictor.model_digest == small_project.model_digest
    assert read_export(config.onnx_folder)["parity"]["largest_gap"] <= 1e-4


def test_an_export_that_is_there_is_not_made_again(small_project: Any) -> None:
    before = (small_project.config.onnx_folder / "model.onnx").stat().st_mtime_ns
    export_for_serving(Workspace(small_project.config), small_project.test)
    assert (small_project.config.onnx_folder / "model.onnx").stat().st_mtime_ns == before
    assert not is_current(small_project.config.onnx_folder, small_project.task, "another digest")


@pytest.mark.parametrize(
    ("example", "says"),
    [
        ({"text": ""}, "empty"),
        ({"text": float("nan")}, "must be a string"),
        ({"text": None}, "must be a string"),
        ({}, "must be a string"),
        ({"text": "x" * 101}, "101 characters"),
    ],
)
def test_a_bad_example_of_a_batch_is_named(small_project: Any, example: Any, says: str) -> None:
    predictor = OnnxPredictor(small_project.config.onnx_folder, small_project.task, max_chars=100)
    with pytest.raises(InputError, match=says) as caught:
        predictor.predict([{"text": "fine"}, example])
    assert caught.value.field == "1.text"
    assert caught.value.message.startswith("item 1:")
    assert predictor.predict([]) == []


def test_a_changed_or_foreign_export_is_refused(small_project: Any, tmp_path: Path) -> None:
    folder = tmp_path / "onnx"
    shutil.copytree(small_project.config.onnx_folder, folder)
    other = TextClassification(small_project.task.tokenizer, ["positive", "negative"], max_length=64)
    with pytest.raises(DigestMismatchError, match="exported for a task with other labels"):
        OnnxPredictor(folder, other)
    with (folder / "model.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"flip")
    with pytest.raises(DigestMismatchError, match=r"model\.onnx has changed"):
        OnnxPredictor(folder, small_project.task)
    with pytest.raises(RecordError, match="missing"):
        OnnxPredictor(tmp_path, small_project.task)


def test_a_model_of_ones_own_that_is_no_transformer_is_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 2)).eval()
    manifest = export_onnx(model, Rows(), rows(), tmp_path / "onnx", model_digest="digest")
    assert "tokenizer" not in str(manifest["files"])
    found = OnnxPredictor(tmp_path / "onnx", Rows()).predict(rows(7))
    with torch.no_grad():
        expected = model(Rows().collate(rows(7))["numbers"]).argmax(-1)
    assert [one["label"] for one in found] == [Rows.labels[number] for number in expected.tolist()]


def test_an_export_that_disagrees_with_torch_is_not_written(tmp_path: Path) -> None:
    class Drifting(nn.Module):
        """Adds to what it says each time it is asked: the export cannot know."""

        calls = 0

        def forward(self, numbers: Tensor) -> Tensor:
            self.calls += 1
            return numbers[:, :2] + (0.0 if torch.compiler.is_compiling() else 1.0)

    with pytest.raises(ModelError, match="differ by"):
        export_onnx(Drifting().eval(), Rows(), rows(), tmp_path / "onnx", model_digest="digest")
    assert not list(tmp_path.iterdir())


def test_a_task_without_model_inputs_cannot_be_exported(tmp_path: Path) -> None:
    class Bare:
        collate, outputs, loss, measurement = Rows.collate, Rows.outputs, Rows.loss, Rows.measurement

    with pytest.raises(ModelError, match="no method model_inputs"):
        export_onnx(nn.Linear(3, 2), Bare(), rows(), tmp_path / "onnx", model_digest="digest")


def test_texts_that_happen_to_be_equally_long_do_not_fix_the_length(small_project: Any, tmp_path: Path) -> None:
    served = Workspace(small_project.config).model
    equal = [{"text": "a good film"}, {"text": "a poor film"}, {"text": "a long film"}]
    export_onnx(served.model, small_project.task, equal, tmp_path / "onnx", model_digest="digest")
    predictor = OnnxPredictor(tmp_path / "onnx", small_project.task, threads=1)
    (found,) = predictor.predict([{"text": "a film that is neither good nor poor but very long"}])
    batch = small_project.task.collate([{"text": "a film that is neither good nor poor but very long"}])
    with torch.no_grad():
        (expected,) = small_project.task.predictions(small_project.task.outputs(served.model, batch), batch)
    assert found["confidence"] == pytest.approx(expected["confidence"], abs=1e-5)
