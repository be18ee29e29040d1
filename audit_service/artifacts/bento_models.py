"""What a bento carries: model, index and ONNX export as Bento models, and where to find each when serving.

``bentoml build`` copies code and small files; what a model needs travels as Bento models named ``NAME-model``,
``NAME-index`` and ``NAME-onnx``, listed in ``bentofile.yaml`` under an alias of the same name, which pins the version
a bento was built with. Serving takes the folder that the config names, where it exists, and the Bento model otherwise.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import bentoml
from bentoml.exceptions import NotFound

from audit_service.artifacts.model_files import (
    ServedModel,
    load_model_folder,
    load_trained_model,
    model_digests,
    save_model_folder,
)
from audit_service.config import AuditConfig
from audit_service.monitoring.reference import REFERENCE
from audit_service.prediction.export import MANIFEST as ONNX_MANIFEST
from audit_service.prediction.export import TOKENIZER, export_onnx, is_current, read_export
from audit_service.prediction.predictor import OnnxPredictor
from audit_service.store.location import StateLocation
from influence_engine.digests import file_digest
from influence_engine.errors import RecordError
from influence_engine.index import current_version
from influence_engine.index.building.pipeline import CURRENT, VERSIONS
from influence_engine.index.index import BASIS, CALIBRATION
from influence_engine.models.loading import load_tokenizer
from influence_engine.progress import Progress, silent
from influence_engine.tasks import Example
from influence_engine.tasks.base import Array

Kind = Literal["model", "index", "onnx"]


@dataclass(frozen=True, slots=True)
class Found:
    """A folder to serve from, and the tag under which answers name it."""

    folder: Path
    tag: str


def find(config: AuditConfig, kind: Literal["index", "onnx"]) -> Found:
    """The index or the ONNX export: the config's folder where there is one, else the Bento model.

    Raises:
        RecordError: there is neither; the message says which command makes it.
    """
    local = config.index_folder if kind == "index" else config.onnx_folder
    if (local / (CURRENT if kind == "index" else ONNX_MANIFEST)).is_file():
        return Found(local, config.name)
    return _find_bento_model(config, kind, local)


def index_version_folder(config: AuditConfig) -> Path:
    """The folder of the index's current version, of the config's own index or of the Bento model.

    Raises:
        RecordError: there is no index; the message says which command makes it.
    """
    folder = find(config, "index").folder
    return folder / VERSIONS / current_version(folder)


def open_predictor(config: AuditConfig, observe: Callable[[Array], None] | None = None) -> OnnxPredictor:
    """The config's model in ONNX Runtime, as it is served.

    Args:
        config: The config.
        observe: Given the model's features of every batch.

    Raises:
        RecordError: it has not been exported yet.
        DigestMismatchError: a file has changed, or the task has.
    """
    folder = find(config, "onnx").folder
    tokenizer = load_tokenizer(folder / TOKENIZER) if (folder / TOKENIZER).is_dir() else None
    return OnnxPredictor(
        folder,
        config.task_object(tokenizer),
        threads=config.serve.threads,
        max_chars=config.serve.max_text_chars,
        observe=observe,
    )


def load_served(config: AuditConfig) -> ServedModel:
    """Model, base and tokenizer: of the recorded run or the adopted checkpoint, else of the Bento model.

    Raises:
        RecordError: there is none; the message says which command makes it.
    """
    if config.model is not None or (config.run_folder / "manifest.json").is_file():
        return load_trained_model(config)
    found = _find_bento_model(config, "model", config.run_folder)
    return load_model_folder(found.folder, found.tag)


def state_folder(config: AuditConfig) -> Path:
    """Where predictions lie: the config's folder, but never inside a bento, which is read-only and replaced."""
    inside = config.state_folder.is_relative_to(config.root) and (config.root.parent / "bento.yaml").is_file()
    if not inside:
        return config.state_folder
    from bentoml._internal.configuration.containers import BentoMLContainer  # there is no public name for it

    return Path(BentoMLContainer.bentoml_home.get()) / "audit" / config.name


def state_location(config: AuditConfig) -> StateLocation:
    """Where predictions and jobs lie: in the folder of the state, or on the server that the config names."""
    return StateLocation(state_folder(config), url=config.state.address(), namespace=config.name)


def export_for_serving(
    config: AuditConfig, examples: Sequence[Example], *, progress: Progress = silent
) -> dict[str, Any]:
    """Exports the config's model to ``config.onnx_folder``, unless that export is there already.

    Args:
        config: The config.
        examples: Real examples on which ONNX Runtime is held against torch.
        progress: Told when export and check are done.

    Returns:
        The export's manifest.
    """
    served = load_served(config)
    task = config.task_object(served.tokenizer)
    if is_current(config.onnx_folder, task, served.digests["model"] or ""):
        return read_export(config.onnx_folder)
    return export_onnx(
        served.model,
        task,
        examples,
        config.onnx_folder,
        model_digest=served.digests["model"] or "",
        tokenizer=served.tokenizer,
        progress=progress,
    )


def register(config: AuditConfig, *, progress: Progress = silent) -> list[str]:
    """Makes the Bento models that ``bentoml build`` copies; those that are unchanged are left as they are.

    Returns:
        Their tags.

    Raises:
        RecordError: model, index or export are not there yet.
    """
    index, onnx = find(config, "index").folder, find(config, "onnx").folder
    version = (index / CURRENT).read_text(encoding="utf-8").strip()
    steps: list[tuple[Kind, dict[str, Any], Callable[[Path], None]]] = [
        ("model", model_digests(config), lambda folder: save_model_folder(load_trained_model(config), folder)),
        ("index", _index_digests(index / VERSIONS / version), lambda folder: _copy_index(index, version, folder)),
        ("onnx", _manifest_digest(onnx), lambda folder: _copy(onnx, folder)),
    ]
    tags = []
    for number, (kind, digests, fill) in enumerate(steps):
        progress("bento models", number, len(steps), kind)
        tags.append(_register(f"{config.name}-{kind}", digests, fill))
    progress("bento models", len(steps), len(steps), ", ".join(tags))
    return tags


def _register(name: str, digests: dict[str, Any], fill: Callable[[Path], None]) -> str:
    try:
        known = bentoml.models.get(f"{name}:latest")
        if known.info.metadata == digests:
            return str(known.tag)
    except NotFound:
        pass
    with bentoml.models.create(name, module="audit_service.artifacts.bento_models", metadata=digests) as made:
        fill(Path(made.path))
    return str(made.tag)


def _find_bento_model(config: AuditConfig, kind: Kind, local: Path) -> Found:
    name = f"{config.name}-{kind}"
    try:
        model = bentoml.models.get(name)  # an alias gives the version that the bento was built with
    except NotFound:
        command = {"model": "finetune", "index": "index build", "onnx": "index build"}[kind]
        raise RecordError(
            f"there is no {kind} for {config.name!r}: neither the folder {local} nor a Bento model {name}. "
            f"Run: bento-audit {command} {config.spelled if config.file else config.name}",
            field=str(local),
        ) from None
    return Found(Path(model.path), str(model.tag))


def _manifest_digest(folder: Path) -> dict[str, Any]:
    return {"manifest_digest": file_digest(folder / "manifest.json")}


def _index_digests(folder: Path) -> dict[str, Any]:
    beside = {
        "basis_digest": folder / BASIS,
        "calibration_digest": folder / CALIBRATION,
        "reference_digest": folder / REFERENCE,
    }
    made_later = {name: file_digest(file) for name, file in beside.items() if file.is_file()}
    return _manifest_digest(folder) | made_later


def _copy_index(index: Path, version: str, folder: Path) -> None:
    _copy(index / VERSIONS / version, folder / VERSIONS / version)
    shutil.copyfile(index / CURRENT, folder / CURRENT)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)
