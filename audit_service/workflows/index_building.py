"""Builds the training-gradient index of a config's model, with replay basis and export; inspects an index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from audit_service.config import AuditConfig
from audit_service.store.encryption import key_of
from audit_service.workflows.export import export_and_register
from audit_service.workflows.replay_directions import plan_directions, replay_directions
from audit_service.workspace import Workspace
from influence_engine.index import InfluenceIndex
from influence_engine.index.building.cost_estimate import BuildPlan


@dataclass(frozen=True)
class Built:
    """The index and the export of ``build_for_serving``.

    Attributes:
        index: Facts about the index, as ``about`` returns them.
        export: Manifest of the ONNX export; None for a task that cannot be exported.
    """

    index: dict[str, Any]
    export: dict[str, Any] | None


def build_for_serving(workspace: Workspace, directions: int, announce: Callable[[str], None]) -> Built:
    """Builds the index, replays directions where some are asked for, and exports the model; skips what is done already.

    Args:
        workspace: Workspace of the model and data.
        directions: Number of directions of the replay basis; 0 leaves an index as it is.
        announce: Called with the predicted time, disk and memory of each stage, before it starts.

    Raises:
        InfluenceError: as ``build_index``, ``replay_directions`` and ``export_and_register``.
    """
    announce(str(plan_index(workspace)))
    index = build_index(workspace)
    if directions and (index.basis is None or index.basis.width != directions):
        announce(str(plan_directions(workspace, directions)))
        replay_directions(workspace, directions)
    exported = export_and_register(workspace)
    return Built(about(index), exported)


def plan_for_serving(workspace: Workspace, directions: int) -> dict[str, Any]:
    """Predicts the cost of ``build_for_serving``: a ``BuildPlan``, with a ``ReplayPlan`` as ``replay`` or None."""
    plan = asdict(plan_index(workspace))
    return {**plan, "replay": asdict(plan_directions(workspace, directions)) if directions else None}


def build_index(workspace: Workspace) -> InfluenceIndex:
    """Builds the index of the config's model, goes on with an interrupted build, or opens what is there already.

    Raises:
        InfluenceError: there is no model yet, data have changed, a layer cannot be attributed, or it does not fit.
    """
    config = workspace.config
    key = key_of(config.index_key_file) if config.index.store_examples == "encrypted" else None
    if config.model is None:
        index = InfluenceIndex.build_from_run(
            workspace.run,
            workspace.task,
            workspace.train,
            config.index_folder,
            config.index,
            held_out=workspace.held_out,
            key=key,
            progress=workspace.progress,
        )
    else:
        index = InfluenceIndex.build(
            workspace.model.model,
            workspace.task,
            workspace.train,
            config.index_folder,
            config.index,
            base=workspace.model.base,
            held_out=workspace.held_out,
            key=key,
            progress=workspace.progress,
        )
    workspace.take_up_index(index)
    return index


def plan_index(workspace: Workspace) -> BuildPlan:
    """Predicts time, disk and memory of ``build_index`` from a few probed batches."""
    run = workspace.run if workspace.config.model is None else None
    model = workspace.model
    base = None if run is not None else model.base
    return InfluenceIndex.plan(model.model, workspace.task, workspace.train, workspace.config.index, run=run, base=base)


def inspect_index(config: AuditConfig) -> dict[str, Any]:
    """Facts about the index in the config's folder, whether or not its model is there.

    Raises:
        IndexFormatError: there is none, or not of a format known here.
        DigestMismatchError: a file of it has changed.
    """
    return about(InfluenceIndex.open(config.index_folder))


def about(index: InfluenceIndex) -> dict[str, Any]:
    """Facts about an index as a JSON value: those of ``InfluenceIndex.inspect``, and its ``folder``."""
    return {**index.inspect(), "folder": str(index.folder)}
