"""Exports a config's model to ONNX for serving, and registers model, index and export as Bento models."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from audit_service.artifacts.bento_models import Kind, find, keep_bento_model
from audit_service.artifacts.model_files import save_model_folder
from audit_service.monitoring.drift_baseline import BASELINE_FILE
from audit_service.prediction.export import export_onnx
from audit_service.prediction.export_files import is_current, read_export
from audit_service.workspace import Workspace
from influence_engine.digests import file_digest
from influence_engine.index.building.pipeline import CURRENT, VERSIONS
from influence_engine.index.index import BASIS, CALIBRATION
from influence_engine.tasks import Example, ExportableTask

EXAMPLES_CHECKED = 32
"""Training examples, from the shortest to the longest, on which ONNX Runtime is compared with torch."""


def export_and_register(workspace: Workspace) -> dict[str, Any] | None:
    """Exports the model to ONNX and makes the Bento models that ``bentoml build`` copies, unless that is done.

    Returns:
        The export's manifest; None for a task that cannot be exported.

    Raises:
        ModelError: ONNX Runtime and torch disagree.
    """
    manifest = export_if_it_can_be(workspace)
    if manifest is not None:
        register(workspace)
    return manifest


def export_if_it_can_be(workspace: Workspace) -> dict[str, Any] | None:
    """Exports the model to ONNX, unless that export is there already; None for a task that cannot be exported.

    Raises:
        ModelError: ONNX Runtime and torch disagree.
    """
    if not isinstance(workspace.task, ExportableTask):
        return None
    return export_for_serving(workspace, _of_all_sizes(workspace.train))


def export_for_serving(workspace: Workspace, examples: Sequence[Example]) -> dict[str, Any]:
    """Exports the model to ``config.onnx_folder``, unless that export is there already.

    Args:
        workspace: Workspace of the model.
        examples: Real examples on which ONNX Runtime is compared with torch.

    Returns:
        The export's manifest.

    Raises:
        ModelError: it cannot be exported, or ONNX Runtime and torch disagree.
    """
    folder, task = workspace.config.onnx_folder, workspace.task
    digest = workspace.model_digests["model"] or ""
    if is_current(folder, task, digest):
        return read_export(folder)
    served_model = workspace.model
    return export_onnx(
        _on_the_cpu(served_model.model),
        task,
        examples,
        folder,
        model_digest=digest,
        processor=served_model.processor,
        progress=workspace.progress,
    )


def register(workspace: Workspace) -> list[str]:
    """Makes the Bento models that ``bentoml build`` copies; those that are unchanged are left as they are.

    Returns:
        Tags of the three Bento models.

    Raises:
        RecordError: model, index or export are not there yet.
    """
    config = workspace.config
    index, onnx = find(config, "index").folder, find(config, "onnx").folder
    version = (index / CURRENT).read_text(encoding="utf-8").strip()
    steps: list[tuple[Kind, dict[str, Any], Callable[[Path], None]]] = [
        ("model", workspace.model_digests, lambda folder: save_model_folder(workspace.model, folder)),
        ("index", _index_digests(index / VERSIONS / version), lambda folder: _copy_index(index, version, folder)),
        ("onnx", _manifest_digest(onnx), lambda folder: _copy(onnx, folder)),
    ]
    tags = []
    for number, (kind, digests, fill) in enumerate(steps):
        workspace.progress("bento models", number, len(steps), kind)
        tags.append(keep_bento_model(f"{config.name}-{kind}", digests, fill))
    workspace.progress("bento models", len(steps), len(steps), ", ".join(tags))
    return tags


def _on_the_cpu(model: nn.Module) -> nn.Module:
    """The model on the CPU, where ONNX Runtime is compared with torch; a model that explains on a GPU stays there."""
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    return model if on_cpu else copy.deepcopy(model).cpu()


def _of_all_sizes(examples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Some examples from the shortest to the longest: the export frees the dimensions in which they differ."""
    by_size = sorted(examples, key=lambda example: len(str(example)))
    last, count = len(by_size) - 1, min(len(by_size), EXAMPLES_CHECKED)
    return [by_size[round(last * number / max(count - 1, 1))] for number in range(count)]


def _manifest_digest(folder: Path) -> dict[str, Any]:
    return {"manifest_digest": file_digest(folder / "manifest.json")}


def _index_digests(folder: Path) -> dict[str, Any]:
    beside = {
        "basis_digest": folder / BASIS,
        "calibration_digest": folder / CALIBRATION,
        "reference_digest": folder / BASELINE_FILE,
    }
    made_later = {name: file_digest(file) for name, file in beside.items() if file.is_file()}
    return _manifest_digest(folder) | made_later


def _copy_index(index: Path, version: str, folder: Path) -> None:
    _copy(index / VERSIONS / version, folder / VERSIONS / version)
    shutil.copyfile(index / CURRENT, folder / CURRENT)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)
