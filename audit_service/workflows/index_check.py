"""Checks a config's index against retraining: ``bento-audit index check``."""

from __future__ import annotations

from audit_service.workflows.replay_directions import CHECKED_EVERY, split_held_out
from audit_service.workspace import Workspace
from influence_engine.errors import DataError
from influence_engine.evaluation import Retraining, check_index
from influence_engine.evaluation.checking import FEWEST_QUERIES
from influence_engine.index import current_version
from influence_engine.index.calibration import Calibration
from influence_engine.training.frozen_cache import FrozenCache

MOST_CHECKED = 64
"""Most held-out examples that are measured."""


def check_against_retraining(workspace: Workspace, cache: FrozenCache | None = None) -> Calibration:
    """Trains again without some examples, and stores with the index the intervals that follow for its influences.

    An index that was checked before is not checked again. That of a model which was trained elsewhere is checked
    against retrainings of its surrogate, as far as that agrees with the model; every answer then says so.

    Raises:
        IndexFormatError: the config's folder holds no index.
        RecordError: there is no run and no surrogate that can be executed again, or the surrogate agrees too little
            with the served model; the message says what helps.
        DataError: there are too few held-out examples.
    """
    config = workspace.config
    current_version(config.index_folder)
    calibration = workspace.index.calibration
    if calibration is not None and (config.model is None or calibration.surrogate is None):
        return calibration
    trained_again = workspace.checkable
    surrogate = None if trained_again.agreement is None else trained_again.agreement["summary"]
    if calibration is not None and calibration.surrogate == surrogate:
        return calibration
    run, task = trained_again.run, trained_again.task
    _, for_check = split_held_out(workspace)
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
    return check_index(workspace.attributor, retraining, surrogate=surrogate)
