"""Builds the training-gradient index of a config's model, with replay basis and export; inspects an index."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from audit_service.artifacts.bento_models import index_version_folder
from audit_service.artifacts.pending import PendingWork, pending_work
from audit_service.config import AuditConfig
from audit_service.schemas.explain import PartName
from audit_service.store.encryption import key_of
from audit_service.workflows import drift_baseline
from audit_service.workflows.export import export_if_it_can_be, register
from audit_service.workflows.index_check import check_against_retraining
from audit_service.workflows.replay_directions import plan_directions, replay_directions
from audit_service.workspace import Workspace
from influence_engine.counterfactual.cost import predict_cost
from influence_engine.errors import InfluenceError
from influence_engine.evaluation.checking import RETRAININGS
from influence_engine.index import InfluenceIndex, Manifest
from influence_engine.index.building.approximation import approximation_of
from influence_engine.index.building.cost_estimate import BuildPlan
from influence_engine.index.building.provenance import Provenance
from influence_engine.index.manifest import MANIFEST
from influence_engine.index.replay_basis import FEWEST_DIRECTIONS
from influence_engine.index.settings import IndexSettings
from influence_engine.replay import ReplayPlan
from influence_engine.training.frozen_cache import FrozenCache

LATER_PARTS: tuple[PartName, ...] = ("replayed", "intervals", "drift_baseline")
"""What can be added to an index, in the order in which it is made."""


@dataclass(frozen=True)
class Built:
    """The index and the export of ``build_for_serving``.

    Attributes:
        index: Facts about the index, as ``about`` returns them.
        export: Manifest of the ONNX export; None for a task that cannot be exported.
    """

    index: dict[str, Any]
    export: dict[str, Any] | None


@dataclass(frozen=True)
class BuildOrder:
    """What an index is to have beyond its vectors.

    Attributes:
        directions: Of the replay basis; 0 leaves an index as it is.
        check: Whether it is checked against retraining.
        drift_baseline: Whether the baseline of its drift metrics is built.
        provisional: Whether a quick index, of one step at the final weights, comes first where none is current and the
            one that is wanted follows the training trajectory.
        seconds: In which index, replay and check are to be done; no limit if None. Where all would take longer, fewer
            directions are replayed, or none, and what still does not fit is put off: the index that follows the
            training trajectory, then the check.
    """

    directions: int = 0
    check: bool = False
    drift_baseline: bool = False
    provisional: bool = True
    seconds: float | None = None

    @property
    def parts(self) -> list[PartName]:
        """What will come after the index."""
        wanted = {"replayed": bool(self.directions), "intervals": self.check, "drift_baseline": self.drift_baseline}
        return ["index", *(part for part in LATER_PARTS if wanted[part])]


def build_for_serving(workspace: Workspace, order: BuildOrder, announce: Callable[[str], None]) -> Built:
    """Exports the model, and builds the index with what is ordered; what is there is kept.

    A service may be started as soon as the first index is there: what comes later is taken up by its engine, and until
    then its answers say what is still to come.

    Args:
        workspace: Workspace of the model and data.
        order: What the index is to have.
        announce: Called with the predicted time, disk and memory of each stage, before it starts.

    Raises:
        SettingsError: another process builds this index.
        InfluenceError: as ``build_index``, ``replay_directions``, ``check_against_retraining``,
            ``drift_baseline.build`` and ``export_if_it_can_be``.
    """
    began, shown = time.monotonic(), workspace.progress
    with pending_work(workspace.config.index_folder, order.parts, shown) as pending:
        workspace.progress = pending.progress
        try:
            return _build(workspace, order, announce, pending, began)
        finally:
            workspace.progress = shown


def first_index(workspace: Workspace, order: BuildOrder) -> None:
    """Builds the first index that can be served, unless the model has one already.

    Raises:
        InfluenceError: as ``build_index``.
    """
    if not _is_there(workspace) and not (order.provisional and make_provisional_index(workspace)):
        build_index(workspace)


def make_provisional_index(workspace: Workspace) -> InfluenceIndex | None:
    """Builds an index of one step at the final weights; None where the config's index would be none other.

    It takes a fraction of a training's time, where following the trajectory takes several trainings'.

    Raises:
        InfluenceError: as ``build_index``.
    """
    if not _wants_trajectory(workspace):
        return None
    return build_index(workspace, workspace.config.index.model_copy(update={"approximation": "final"}))


def _wants_trajectory(workspace: Workspace) -> bool:
    """Whether the config's index is to follow the training trajectory."""
    provenance = Provenance({}, base=workspace.model.base)
    if workspace.config.model is None:
        provenance = Provenance.of(workspace.run)
    return approximation_of(workspace.config.index, provenance).along_trajectory


def _is_there(workspace: Workspace) -> bool:
    """Whether the config's folder has an index of the model that it has now."""
    try:
        folder = index_version_folder(workspace.config)
        digests = Manifest.read(folder / MANIFEST).digests
    except InfluenceError:
        return False
    own = folder.is_relative_to(workspace.config.index_folder)
    return own and digests.get("model") == workspace.model_digests["model"]


def _build(
    workspace: Workspace, order: BuildOrder, announce: Callable[[str], None], pending: PendingWork, began: float
) -> Built:
    spelled, limit = workspace.config.spelled, _TimeLimit(order.seconds, began)
    plan = plan_index(workspace)
    announce(str(plan))
    first_index(workspace, order)
    exported = export_if_it_can_be(workspace)
    announce(f"Explanations can be asked for from now on: bento-audit explain {spelled}, or a service that is started.")
    check_seconds = _check_seconds(workspace) if order.check else 0.0
    if plan.seconds is not None and _is_provisional(workspace) and not limit.allows(plan.seconds + check_seconds):
        pending.skip("index")
        announce(
            f"The index along the training trajectory is put off: it takes about {plan.seconds:.0f} s, more than is "
            f"left of the time. The provisional one stays. Build it later with: bento-audit index build {spelled}"
        )
    else:
        with pending.making("index"):
            build_index(workspace)
    cache = FrozenCache()
    basis = workspace.index.basis
    if order.directions and (basis is None or basis.width != order.directions):
        plan_of_replay = plan_directions(workspace, order.directions)
        directions = order.directions
        if order.seconds is not None:
            directions = plan_of_replay.within(limit.left() - check_seconds, FEWEST_DIRECTIONS)
        if directions:
            announce(str(plan_of_replay if directions == order.directions else _fewer(plan_of_replay, directions)))
            with pending.making("replayed"):
                replay_directions(workspace, directions, cache)
        else:
            pending.skip("replayed")
            announce(
                f"Not replayed: {plan_of_replay}, more than is left of the time. Influences stay estimated. Replay "
                f"later with: bento-audit index build {spelled} --directions {order.directions}"
            )
    if order.check and limit.allows(check_seconds):
        with pending.making("intervals"):
            check_against_retraining(workspace, cache)
    elif order.check:
        pending.skip("intervals")
        announce(
            f"Not checked: training again {RETRAININGS} times takes about {check_seconds:.0f} s, more than is left of "
            f"the time. Influences have no intervals. Check later with: bento-audit index check {spelled}"
        )
    if order.drift_baseline and not drift_baseline.is_there(workspace.config):
        with pending.making("drift_baseline"):
            drift_baseline.build(workspace)
    if exported is not None:
        register(workspace)
    return Built(about(workspace.index), exported)


@dataclass(frozen=True)
class _TimeLimit:
    """How long an order may still take; for ever without a limit."""

    seconds: float | None
    began: float

    def left(self) -> float:
        return math.inf if self.seconds is None else self.seconds - (time.monotonic() - self.began)

    def allows(self, seconds: float) -> bool:
        return seconds <= self.left()


def _is_provisional(workspace: Workspace) -> bool:
    """Whether the index that is there is of one step, and the one that is wanted follows the trajectory."""
    return workspace.index.manifest.approximation == "final" and _wants_trajectory(workspace)


def _fewer(plan: ReplayPlan, directions: int) -> str:
    seconds = plan.seconds - (plan.directions - directions) * plan.seconds_a_direction
    return f"{directions} directions (of {plan.directions}, for which the time is too short): about {seconds:.0f} s"


def _check_seconds(workspace: Workspace) -> float:
    """What a check against retraining will take at most: later retrainings are quicker than the first."""
    if workspace.index.calibration is not None:
        return 0.0
    trained_again = workspace.checkable
    return RETRAININGS * predict_cost(trained_again.run, trained_again.task, workspace.train).seconds


def plan_for_serving(workspace: Workspace, directions: int) -> dict[str, Any]:
    """Predicts the cost of ``build_for_serving``: a ``BuildPlan``, with a ``ReplayPlan`` as ``replay`` or None."""
    plan = asdict(plan_index(workspace))
    return {**plan, "replay": asdict(plan_directions(workspace, directions)) if directions else None}


def build_index(workspace: Workspace, settings: IndexSettings | None = None) -> InfluenceIndex:
    """Builds the index of the config's model, goes on with an interrupted build, or opens what is there already.

    Args:
        workspace: Whose model and data.
        settings: How to build; by default as the config says.

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
            settings or config.index,
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
            settings or config.index,
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
