"""Replays directions of a config's recorded run, for the replayed tier of its index."""

from __future__ import annotations

from audit_service.workspace import Workspace
from influence_engine.attribution.build_replay_basis import build_basis
from influence_engine.errors import DataError
from influence_engine.replay import ReplayPlan, plan_replay
from influence_engine.tasks import Example
from influence_engine.training.frozen_cache import FrozenCache

CHECKED_EVERY = 4
"""One in so many held-out examples is for the check of the index; the others are for replayed directions."""


def plan_directions(workspace: Workspace, width: int) -> ReplayPlan:
    """Predicts the cost of ``replay_directions``, from one recorded step that is differentiated in reverse.

    Raises:
        RecordError: the model was trained elsewhere, or its run cannot be replayed; the message says why.
    """
    return plan_replay(workspace.run, workspace.task, workspace.train, width)


def replay_directions(workspace: Workspace, width: int, cache: FrozenCache | None = None) -> None:
    """Gives the index a replay basis of ``width`` directions; ``cache`` is for outputs of frozen layers, to be shared.

    Raises:
        RecordError: the model was trained elsewhere, or its run cannot be replayed; the message says why.
        DataError: there are no held-out examples to take directions from.
    """
    run = workspace.run
    for_directions, _ = split_held_out(workspace)
    if not for_directions:
        raise DataError(
            f"{workspace.config.name!r} has no held-out examples to take directions from; name some in data.validation",
            field="data.validation",
        )
    attributor = workspace.attributor
    build_basis(
        run, attributor, workspace.train, for_directions, width, frozen_cache=cache, progress=workspace.progress
    )


def split_held_out(workspace: Workspace) -> tuple[list[Example], list[Example]]:
    """Held-out examples for directions, and others for the check: a basis is not checked on what it was made from."""
    held_out = workspace.held_out
    for_check = held_out[CHECKED_EVERY - 1 :: CHECKED_EVERY]
    return [example for number, example in enumerate(held_out, 1) if number % CHECKED_EVERY], list(for_check)
