"""What a bento carries: model, index and ONNX export as Bento models, and where to find each when serving.

``bentoml build`` copies code and small files; what a model needs travels as Bento models named ``NAME-model``,
``NAME-index`` and ``NAME-onnx``, listed in ``bentofile.yaml`` under an alias of the same name, which pins the version
a bento was built with. Serving takes the folder that the config names, where it exists, and the Bento model otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import bentoml
from bentoml.exceptions import NotFound

from audit_service.config import AuditConfig
from audit_service.prediction.export_files import MANIFEST as ONNX_MANIFEST
from influence_engine.errors import RecordError
from influence_engine.index import current_version
from influence_engine.index.building.pipeline import CURRENT, VERSIONS
from influence_engine.index.manifest import MANIFEST as INDEX_MANIFEST

Kind = Literal["model", "index", "onnx"]


@dataclass(frozen=True, slots=True)
class Found:
    """A folder to serve from, and the tag under which answers name it."""

    folder: Path
    tag: str


def find(config: AuditConfig, kind: Literal["index", "onnx"]) -> Found:
    """The index or the ONNX export: the config's folder where there is one, else the Bento model.

    Raises:
        RecordError: there is neither, or an index none of whose versions is current; the message says which command
            makes it.
    """
    local = config.index_folder if kind == "index" else config.onnx_folder
    if (local / (CURRENT if kind == "index" else ONNX_MANIFEST)).is_file():
        return Found(local, config.name)
    if kind == "index" and any((local / VERSIONS).glob(f"*/{INDEX_MANIFEST}")):
        raise RecordError(
            f"the index in {local} has versions, and no file {CURRENT} that says which is current: restore it, or run "
            f"bento-audit index build {config.spelled if config.file else config.name}",
            field=str(local / CURRENT),
        )
    return find_bento_model(config, kind, local)


def index_version_folder(config: AuditConfig) -> Path:
    """The folder of the index's current version, of the config's own index or of the Bento model.

    Raises:
        RecordError: there is no index; the message says which command makes it.
    """
    folder = find(config, "index").folder
    return folder / VERSIONS / current_version(folder)


def keep_bento_model(name: str, digests: dict[str, Any], fill: Callable[[Path], None]) -> str:
    """Makes a Bento model, unless its latest version has these digests already.

    Args:
        name: Its name, such as ``sentiment-index``.
        digests: Of what it holds; kept as its metadata.
        fill: Writes what it holds into a folder.

    Returns:
        Its tag, with the version.
    """
    try:
        known = bentoml.models.get(f"{name}:latest")
        if known.info.metadata == digests:
            return str(known.tag)
    except NotFound:
        pass
    with bentoml.models.create(name, module="audit_service.artifacts.bento_models", metadata=digests) as made:
        fill(Path(made.path))
    return str(made.tag)


def find_bento_model(config: AuditConfig, kind: Kind, local: Path) -> Found:
    """The Bento model of a kind, at the version that the bento was built with.

    Args:
        config: The config.
        kind: Which one.
        local: The folder that was looked for in vain, for the message.

    Raises:
        RecordError: there is none; the message says which command makes it.
    """
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
