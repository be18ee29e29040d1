"""Replays directions for the replayed tier, and checks an index against retraining."""

from __future__ import annotations

from audit_service.workspace import Workspace
from influence_engine.attribution.build_replay_basis import build_basis
from influence_engine.errors import DataError
from influence_engine.evaluation import Retraining, check_index
from influence_engine.evaluation.checking import FEWEST_QUERIES
from influence_engine.index import current_version
from influence_engine.index.calibration import Calibration
from influence_engine.replay import ReplayPlan, plan_replay
from influence_engine.tasks import Example
from influence_engine.training.frozen_cache import FrozenCache

CHECKED_EVERY = 4
"""One held-out example in so many is for the check, the others are for replayed directions."""

MOST_CHECKED = 64


def plan_directions(workspace: Workspace, width: int) -> ReplayPlan:
    """Predicts what ``replay_directions`` will take, from one step that it walks back.

    Raises:
        RecordError: the model was trained elsewhere, or its run cannot be replayed; the message says why.
    """
    return plan_replay(workspace.run, workspace.task, workspace.train, width)


def replay_directions(workspace: Workspace, width: int, cache: FrozenCache | None = None) -> None:
    """Gives the index a replay basis of ``width`` directions; ``cache`` is of this run, for the check that follows.

    Raises:
        RecordError: the model was trained elsewhere, or its run cannot be replayed; the message says why.
        DataError: there are no held-out examples to take directions from.
    """
    run = workspace.run
    for_directions, _ = _shared_out(workspace)
    if not for_directions:
        raise DataError(
            f"{workspace.config.name!r} has no held-out examples to take directions from; name some in data.validation",
            field="data.validation",
        )
    attributor = workspace.attributor
    build_basis(
        run, attributor, workspace.train, for_directions, width, frozen_cache=cache, progress=workspace.progress
    )


def check_against_retraining(workspace: Workspace, cache: FrozenCache | None = None) -> Calibration:
    """Trains again without some examples, and gives the index's answers the intervals that follow.

    What was found for this index before is not found again.

    Raises:
        IndexFormatError: the config's folder holds no index; what is found is kept beside it.
        RecordError: the model was trained elsewhere, or its run cannot be executed again; the message says why.
        DataError: there are too few held-out examples.
    """
    config = workspace.config
    current_version(config.index_folder)
    if workspace.index.calibration is not None:
        return workspace.index.calibration
    run, task = workspace.run, workspace.task
    _, for_check = _shared_out(workspace)
    queries = workspace.labelled(for_check)[:MOST_CHECKED]
    if len(queries) < FEWEST_QUERIES:
        raise DataError(
            f"a check of {config.name!r} needs at least {FEWEST_QUERIES * CHECKED_EVERY} labelled held-out examples, "
            f"and {len(queries)} of one in {CHECKED_EVERY} are; name more in data.validation",
            field="data.validation",
        )
    folder = config.index_folder / "retrainings"
    retraining = Retraining(
        run, task, workspace.train, queries, folder, frozen_cache=cache, progress=workspace.progress
    )
    return check_index(workspace.attributor, retraining)


def _shared_out(workspace: Workspace) -> tuple[list[Example], list[Example]]:
    """Held-out examples for directions, and those for the check: no answer is checked on what it was made from."""
    held_out = workspace.held_out
    for_check = held_out[CHECKED_EVERY - 1 :: CHECKED_EVERY]
    return [one for number, one in enumerate(held_out, 1) if number % CHECKED_EVERY], list(for_check)
