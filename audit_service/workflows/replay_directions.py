"""Replays directions of a config's recorded run, for the replayed tier of its index."""

from __future__ import annotations

from audit_service.workspace import Workspace
from influence_engine.attribution.build_replay_basis import build_basis
from influence_engine.errors import DataError
from influence_engine.replay import ReplayPlan, plan_replay
from influence_engine.tasks import Example
from influence_engine.training.frozen_cache import FrozenCache

CHECKED_EVERY = 4
"""One held-out example in so many is for the check of the index, the others are for replayed directions."""


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
    for_directions, _ = shared_out(workspace)
    if not for_directions:
        raise DataError(
            f"{workspace.config.name!r} has no held-out examples to take directions from; name some in data.validation",
            field="data.validation",
        )
    attributor = workspace.attributor
    build_basis(
        run, attributor, workspace.train, for_directions, width, frozen_cache=cache, progress=workspace.progress
    )


def shared_out(workspace: Workspace) -> tuple[list[Example], list[Example]]:
    """Held-out examples for directions, and those for the check: no answer is checked on what it was made from."""
    held_out = workspace.held_out
    for_check = held_out[CHECKED_EVERY - 1 :: CHECKED_EVERY]
    return [one for number, one in enumerate(held_out, 1) if number % CHECKED_EVERY], list(for_check)
