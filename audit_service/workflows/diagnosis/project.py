"""Checks one config and what has been made from it: data, base model, run, index, export, state."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from audit_service.artifacts.model_files import model_digests
from audit_service.artifacts.state_places import state_location
from audit_service.config import AuditConfig, ConfigError
from audit_service.prediction.export_files import MANIFEST as EXPORT_MANIFEST
from audit_service.prediction.export_files import read_export
from audit_service.store.database import Database
from audit_service.store.tables import PREDICTIONS
from audit_service.workflows.diagnosis.finding import Finding
from audit_service.workspace import Workspace
from influence_engine.data.sources.packaged import PACKAGED
from influence_engine.demo_assets import packages_folder
from influence_engine.demo_assets.packages import MODELS, Package
from influence_engine.errors import DigestMismatchError, InfluenceError
from influence_engine.index import InfluenceIndex
from influence_engine.training.record import INCOMPLETE, MANIFEST

Look = Callable[[Workspace], Finding]


def look_at_named_project(open_config: Callable[[], AuditConfig]) -> Iterator[Finding]:
    """All findings about the config that is named; one where none is named."""
    try:
        config = open_config()
    except ConfigError as error:
        # Without a config named, the machine is all there is to look at.
        yield Finding("config", "note" if error.field == "config" else "broken", error.message)
        return
    yield from look_at_project(config)


def look_at_project(config: AuditConfig) -> Iterator[Finding]:
    """All findings about a config. What cannot be used is a finding, never an exception."""
    yield Finding("config", "ok", f"{config.file}")
    looks: dict[str, Look] = {
        "base model": base_model,
        "model": model,
        "data": data,
        "index": index,
        "export": export,
        "state": state,
    }
    workspace = Workspace(config)
    for what, look in looks.items():
        try:
            yield look(workspace)
        except InfluenceError as error:
            yield Finding(what, "broken", error.message)


def base_model(workspace: Workspace) -> Finding:
    """Checks whether the base model is there."""
    config = workspace.config
    settings = config.base_model
    if settings is None:
        return Finding("base model", "note", "none is named", "name base_model to see what fine-tuning changed")
    if settings.package is not None:
        package, _ = MODELS[settings.package]
        return _packaged("base model", package, config)
    if settings.hub is not None:
        revision = "" if settings.revision else ", without a revision: the hub may change it"
        return Finding("base model", "ok" if settings.revision else "note", f"{settings.hub} on the hub{revision}")
    return Finding("base model", "ok", str(config.base_model_location()))


def model(workspace: Workspace) -> Finding:
    """Checks whether there is a fine-tuned model, unchanged."""
    config = workspace.config
    folder = config.model_folder()
    if folder is not None:
        digest = model_digests(config)["model"]
        return Finding("model", "ok", f"{folder}, trained elsewhere, digest {_short(digest)}")
    if not config.run_folder.exists():
        advice = f"bento-audit finetune {config.spelled}"
        return Finding("model", "missing", f"not fine-tuned yet: there is no {config.run_folder}", advice)
    if (config.run_folder / INCOMPLETE).is_file():
        advice = f"bento-audit finetune {config.spelled} goes on with it"
        return Finding("model", "missing", f"the run in {config.run_folder} is not finished", advice)
    run = workspace.run
    replayable = "can be replayed" if run.replayable else f"cannot be replayed: {run.why_not_replayable}"
    return Finding("model", "ok", f"{run.folder}, unchanged, digest {_short(run.digests['model'])}, {replayable}")


def data(workspace: Workspace) -> Finding:
    """Checks whether the training data can be read."""
    config = workspace.config
    if config.data.train.packaged is not None:
        packaged = _packaged("data", PACKAGED[config.data.train.packaged].package, config)
        if packaged.state != "ok":
            return packaged
    if not _has_processor(workspace):
        return Finding("data", "missing", "not looked at before the base model is there")
    report = workspace.training_data.report
    found, conflicts = report.summary(), report.conflicts.count
    advice = "look at the inputs with conflicting labels: the model learnt from both" if conflicts else None
    return Finding("data", "note" if conflicts else "ok", found, advice)


def index(workspace: Workspace) -> Finding:
    """Checks whether the index is there, unchanged, and of this model."""
    config = workspace.config
    advice = f"bento-audit index build {config.spelled}"
    if not (config.index_folder / "CURRENT").is_file():
        return Finding("index", "missing", f"not built yet: {config.index_folder}", advice)
    try:
        opened = InfluenceIndex.open(config.index_folder, model_digest=_model_digest(config))
        opened.verify()
    except DigestMismatchError as error:
        return Finding("index", "broken", error.message, advice)
    return Finding("index", "ok", f"{opened.folder}, unchanged, {len(opened):,} examples")


def export(workspace: Workspace) -> Finding:
    """Checks whether the ONNX export is there, unchanged, and of this model."""
    config = workspace.config
    advice = f"bento-audit index build {config.spelled}"
    if not (config.onnx_folder / EXPORT_MANIFEST).is_file():
        return Finding("export", "missing", f"not exported yet: {config.onnx_folder}", advice)
    try:
        manifest = read_export(config.onnx_folder)
    except DigestMismatchError as error:
        return Finding("export", "broken", error.message, advice)
    digest = _model_digest(config)
    if digest is not None and manifest["model_digest"] != digest:
        return Finding("export", "broken", f"{config.onnx_folder} was exported from another model", advice)
    gap = manifest["parity"]["largest_gap"]
    return Finding("export", "ok", f"{config.onnx_folder}, unchanged, at most {gap:.1g} from torch")


def state(workspace: Workspace) -> Finding:
    """Checks whether the folder for predictions can be written to, and whether the database server answers, if any."""
    config = workspace.config
    folder = config.state_folder
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(place, os.W_OK):
        advice = "name another folder in BENTO_AUDIT_STATE"
        return Finding("state", "broken", f"{place} cannot be written to", advice)
    if config.state.url is None:
        return Finding("state", "ok", f"{folder} can be written to")
    return _database(config)


def _database(config: AuditConfig) -> Finding:
    try:
        database = Database(state_location(config), PREDICTIONS)
        version = database.version()
    except InfluenceError as error:
        return Finding("state", "broken", error.message, "state.url names the database; its server's log may say more")
    if version is None:
        return Finding("state", "ok", f"{database.where} answers; the first server that starts makes its tables")
    if version not in PREDICTIONS.versions:
        return Finding("state", "broken", f"{database.where} has tables of version {version}", "upgrade bento-audit")
    return Finding("state", "ok", f"{database.where} answers, with tables of version {version}")


def _packaged(what: str, package: Package, config: AuditConfig) -> Finding:
    folder = packages_folder(config.root) / f"{package.name}-{package.version}"
    if folder.is_dir():
        return Finding(what, "ok", f"{package.requirement} in {folder}")
    advice = f"bento-audit finetune {config.spelled} fetches it"
    return Finding(what, "missing", f"{package.requirement} has not been fetched yet", advice)


def _has_processor(workspace: Workspace) -> bool:
    config = workspace.config
    trained = config.model is not None or (config.run_folder / MANIFEST).is_file()
    return trained or base_model(workspace).state != "missing"


def _model_digest(config: AuditConfig) -> str | None:
    if config.model is None and not (config.run_folder / MANIFEST).is_file():
        return None
    return model_digests(config)["model"]


def _short(digest: str | None) -> str:
    return "unknown" if digest is None else digest[:16]
