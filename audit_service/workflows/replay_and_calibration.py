"""Replay and its check, as verbs use them: which held-out examples serve for what, and what it will take."""

from __future__ import annotations

from audit_service.artifacts.training_data import TrainingSet, read_training_set, recorded_run
from audit_service.config import AuditConfig
from audit_service.workflows.stages import held_out_of
from influence_engine.attribution.attributor import Attributor
from influence_engine.attribution.build_replay_basis import build_basis
from influence_engine.errors import DataError
from influence_engine.evaluation import Retraining, check_index
from influence_engine.evaluation.checking import FEWEST_QUERIES
from influence_engine.index import InfluenceIndex
from influence_engine.index.calibration import Calibration
from influence_engine.progress import Progress
from influence_engine.replay import ReplayPlan, plan_replay
from influence_engine.tasks import Example
from influence_engine.training.frozen_cache import FrozenCache

CHECKED_EVERY = 4
"""One held-out example in so many is for the check, the others are for replayed directions."""

MOST_CHECKED = 64


def plan_directions(config: AuditConfig, width: int, progress: Progress) -> ReplayPlan:
    """Predicts what ``replay_directions`` will take, from one step that it walks back.

    Raises:
        RecordError: the model was trained elsewhere, or its run cannot be replayed; the message says why.
    """
    run = recorded_run(config)
    examples = read_training_set(config, run.folder / "model", progress)
    return plan_replay(run, examples.task, examples.train.examples, width)


def replay_directions(
    config: AuditConfig, index: InfluenceIndex, width: int, progress: Progress, kept: FrozenCache | None = None
) -> None:
    """Gives the index a replay basis of ``width`` directions; ``kept`` is of this run, for the check that follows.

    Raises:
        RecordError: the model was trained elsewhere, or its run cannot be replayed; the message says why.
        DataError: there are no held-out examples to take directions from.
    """
    run = recorded_run(config)
    examples = read_training_set(config, run.folder / "model", progress)
    for_directions, _ = _shared_out(examples)
    if not for_directions:
        raise DataError(
            f"{config.name!r} has no held-out examples to take directions from; name some in data.validation",
            field="data.validation",
        )
    attributor = Attributor(run.load_model(), examples.task, index)
    build_basis(run, attributor, examples.train.examples, for_directions, width, kept=kept, progress=progress)


def check_against_retraining(
    config: AuditConfig, index: InfluenceIndex, progress: Progress, kept: FrozenCache | None = None
) -> Calibration:
    """Trains again without some examples, and gives the index's answers the intervals that follow.

    What was found for this index before is not found again.

    Raises:
        RecordError: the model was trained elsewhere, or its run cannot be executed again; the message says why.
        DataError: there are too few held-out examples.
    """
    if index.calibration is not None:
        return index.calibration
    run = recorded_run(config)
    examples = read_training_set(config, run.folder / "model", progress)
    _, for_check = _shared_out(examples)
    label = getattr(examples.task, "label", "label")
    queries = [one for one in for_check if one.get(label) is not None][:MOST_CHECKED]
    if len(queries) < FEWEST_QUERIES:
        raise DataError(
            f"a check of {config.name!r} needs at least {FEWEST_QUERIES * CHECKED_EVERY} labelled held-out examples, "
            f"and {len(queries)} of one in {CHECKED_EVERY} are; name more in data.validation",
            field="data.validation",
        )
    cache = config.index_folder / "retrainings"
    retraining = Retraining(run, examples.task, examples.train.examples, queries, cache, kept=kept, progress=progress)
    return check_index(Attributor(run.load_model(), examples.task, index), retraining)


def _shared_out(examples: TrainingSet) -> tuple[list[Example], list[Example]]:
    """Held-out examples for directions, and those for the check: no answer is checked on what it was made from."""
    held_out = held_out_of(examples)
    for_check = held_out[CHECKED_EVERY - 1 :: CHECKED_EVERY]
    return [one for number, one in enumerate(held_out, 1) if number % CHECKED_EVERY], list(for_check)
