"""Builds the drift baseline of a config's model and index from its held-out examples, or reads an existing one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audit_service.artifacts.bento_models import index_version_folder
from audit_service.artifacts.onnx_models import open_predictor
from audit_service.config import AuditConfig
from audit_service.drift.baseline_building import HeldOut, build_baseline
from audit_service.drift.signals import FeatureCatcher, Predicted, explain_all, predict_all
from audit_service.engine.loading import load
from audit_service.monitoring.drift_baseline import DriftBaseline, read_baseline
from audit_service.workflows.export import register
from audit_service.workspace import Workspace
from influence_engine.errors import DataError, DigestMismatchError, InputError, RecordError, SettingsError
from influence_engine.index import Manifest
from influence_engine.index.manifest import MANIFEST
from influence_engine.tasks import PredictingTask, labels_of, predicts_labels, target_name


def build(workspace: Workspace) -> tuple[DriftBaseline, Path]:
    """Builds the baseline of the config's model and index, and writes it beside the index's vectors.

    Returns:
        The baseline, and its file.

    Raises:
        DataError: the config names no held-out data, or too little.
        SettingsError: the task does not say what to explain of an input without a target.
        InfluenceError: there is no model or no index.
    """
    config, progress = workspace.config, workspace.progress
    if config.data.validation is None:
        raise DataError(
            f"{config.name!r} has no held-out examples to take a baseline from; name some in data.validation",
            field="data.validation",
        )
    loaded = load(workspace)
    task, index = loaded.task, loaded.attributor.index
    examples = workspace.held_out[: config.monitoring.reference_examples]
    columns = _columns(config, loaded.attributor)
    try:
        explained, by_torch = explain_all(loaded.attributor, examples, tier="best", group_by=columns, progress=progress)
    except InputError as error:
        if error.field != "target":
            raise
        raise SettingsError(
            f"drift is measured on explanations of inputs, and {type(task).__name__} does not say what to explain of "
            f"an input without a target: {error.message}",
            field="task",
        ) from error
    predicted = _served_predictions(workspace, examples) or by_torch
    names = list(labels_of(task) or ()) if predicts_labels(task) else []
    truths = [example.get(target_name(task)) if predicts_labels(task) else None for example in examples]
    unseen = None
    if config.data.test is not None:
        others = workspace.test[: config.monitoring.reference_examples]
        unseen, _ = explain_all(loaded.attributor, others, tier="best", group_by=columns[:1], progress=progress)
    baseline = build_baseline(
        config,
        HeldOut(predicted, explained, truths, unseen),
        model_digest=loaded.model["digest"],
        index_digest=index.manifest.build_digest,
        labels=names,
    )
    file = baseline.write(index_version_folder(config))
    if (config.onnx_folder / "manifest.json").is_file():
        register(workspace)  # the Bento model of the index carries it, too
    return baseline, file


def is_there(config: AuditConfig) -> bool:
    """Whether the current index has a baseline of the config's model."""
    try:
        return of_config(config) is not None
    except (RecordError, DigestMismatchError):
        return False


def of_config(config: AuditConfig) -> DriftBaseline | None:
    """The baseline of the config's current index; ``None`` where there is none.

    Raises:
        RecordError: there is no index, or the baseline is damaged.
        DigestMismatchError: it belongs to another index.
    """
    folder = index_version_folder(config)
    manifest = Manifest.read(folder / MANIFEST)
    return read_baseline(folder, model_digest=manifest.digests.get("model"), index_digest=manifest.build_digest)


def _served_predictions(workspace: Workspace, examples: Sequence[Any]) -> Predicted | None:
    """Predictions by ONNX Runtime, with features; None for a task or a service without an export."""
    if not isinstance(workspace.task, PredictingTask):
        return None
    try:
        catcher = FeatureCatcher()
        predictor = open_predictor(workspace.config, catcher)
        return predict_all(predictor, catcher, examples, workspace.progress, task=workspace.task)
    except RecordError:  # a service with a predictor of its own: torch predicts the same, without features
        return None


def _columns(config: AuditConfig, attributor: Any) -> list[str]:
    """The columns of ``monitoring.groups`` that the index has; those named by hand must be there.

    Labels are no groups where the task's targets make none, such as numbers.
    """
    index = attributor.index
    grouped = any(label is not None for label in index.labels)
    known = [column for column in index.columns() if grouped or column != "label"]
    wanted = config.monitoring.groups
    missing = [column for column in wanted if column not in known]
    if missing and "groups" in config.monitoring.model_fields_set:
        raise InputError(
            f"training examples cannot be grouped by {missing[0]!r}; they have {', '.join(known)}",
            field="monitoring.groups",
        )
    return [column for column in wanted if column in known]
