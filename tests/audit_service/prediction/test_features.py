"""The features that an export gives beside its outputs: those that go into the last layer, where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from audit_service.prediction.export import export_onnx, find_head
from audit_service.prediction.export_files import read_export
from audit_service.prediction.predictor import OnnxPredictor
from audit_service.workspace import Workspace


class Rows:
    """A task whose inputs are rows of numbers."""

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
        return [{"label": str(int(row.argmax())), "confidence": 1.0, "scores": {}} for row in outputs]


ROWS = [{"numbers": [float(n), 1.0, -float(n)]} for n in range(5)]
WITH_HEAD = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).eval()
WITHOUT = nn.Sequential(nn.Linear(3, 2), nn.Softmax(-1)).eval()


@pytest.mark.parametrize(("model", "head"), [(WITH_HEAD, "2"), (WITHOUT, None), (nn.Identity(), None)])
def test_the_head_is_the_linear_layer_that_makes_the_outputs(model: nn.Module, head: str | None) -> None:
    assert find_head(model, Rows(), ROWS) == head


def test_features_are_what_torch_feeds_into_the_last_layer(tmp_path: Path) -> None:
    export_onnx(WITH_HEAD, Rows(), ROWS, tmp_path / "onnx", model_digest="d")
    seen: list[np.ndarray] = []
    OnnxPredictor(tmp_path / "onnx", Rows(), observe=lambda found: seen.append(found.copy())).predict(ROWS)

    (features,) = seen
    with torch.no_grad():
        expected = WITH_HEAD[:2](Rows().collate(ROWS)["numbers"]).numpy()
    assert features == pytest.approx(expected, abs=1e-5)
    assert read_export(tmp_path / "onnx")["features"] is True


def test_a_model_without_such_a_layer_is_exported_without_features(tmp_path: Path) -> None:
    manifest = export_onnx(WITHOUT, Rows(), ROWS, tmp_path / "onnx", model_digest="d")
    seen: list[Any] = []

    OnnxPredictor(tmp_path / "onnx", Rows(), observe=seen.append).predict(ROWS)

    assert manifest["features"] is False
    assert seen == []


def test_a_text_classifiers_features_are_its_pooled_ones(small_project: Any) -> None:
    config = small_project.config
    seen: list[np.ndarray] = []
    predictor = OnnxPredictor(config.onnx_folder, small_project.task, observe=lambda found: seen.append(found.copy()))
    predictor.predict(small_project.test[:4])
    model = Workspace(config).model.model

    with torch.no_grad():
        inputs = small_project.task.model_inputs(small_project.task.collate(small_project.test[:4]))
        pooled = model.bert(**inputs).pooler_output.numpy()
    assert np.concatenate(seen) == pytest.approx(pooled, abs=1e-4)
