"""Evaluates explanations against retraining (LDS) and on planted label errors, and writes the results."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audit_service.config import AuditConfig
from audit_service.engine.loading import load
from audit_service.workflows.finetuning import plan_finetuning
from audit_service.workspace import Workspace
from influence_engine.errors import DataError, SettingsError
from influence_engine.evaluation import (
    Evaluation,
    EvaluationPlan,
    PlantedErrors,
    Retraining,
    evaluate,
    find_planted_errors,
    random_removals,
    single_removals,
)
from influence_engine.files import write_json
from influence_engine.tasks import target_field

RESULTS = "evaluation.json"
PLANTED = "planted.json"
FEWEST_QUERIES = 4

TRUTHS = {"removal": "recorded steps", "afresh": "new order"}
"""Names of the kinds of retraining for people."""


@dataclass(frozen=True)
class EvaluationCost:
    """Number of retrainings and time that an evaluation will take.

    Attributes:
        queries: Held-out examples whose measurements are compared; the first ``tuning`` of them choose the damping.
        tuning: Number of queries that choose the damping.
        retrainings: Number of retrainings in all.
        kept: Number of retrainings whose measurements are cached.
        seconds: At most, for the other retrainings, from a few steps that were really taken: outputs of frozen layers
            are cached, too.
    """

    queries: int
    tuning: int
    retrainings: int
    kept: int
    seconds: float


def evaluation_folder(config: AuditConfig) -> Path:
    """The folder of results and cached retrainings."""
    return config.state_folder / "evaluation"


def plan_evaluation(workspace: Workspace, plan: EvaluationPlan, queries: int) -> EvaluationCost:
    """Predicts the cost of ``run_evaluation``; raises as that does."""
    retraining = _retraining(workspace, queries)
    ids = retraining.run.example_ids
    plan.check(ids)
    tuning = plan.tuning_of(len(retraining.queries))
    cached = sum(
        retraining.cached(random_removals(ids, fraction, plan.subsets, seed=plan.seed), kind)
        for kind in plan.kinds
        for fraction in plan.fractions
    )
    if plan.single or plan.leave_out:
        attributor = workspace.attributor
        influences = attributor.scores(retraining.queries[tuning:], "estimated").double()
        cached += retraining.cached(single_removals(plan, influences, attributor.index.example_ids))
    each = plan_finetuning(workspace).seconds
    return EvaluationCost(
        queries=len(retraining.queries),
        tuning=tuning,
        retrainings=plan.retrainings,
        kept=cached,
        seconds=each * (plan.retrainings - cached),
    )


def run_evaluation(workspace: Workspace, plan: EvaluationPlan, queries: int, folder: Path) -> Evaluation:
    """Evaluates the config's index against retrainings of its run, and writes the results to ``folder``.

    Args:
        workspace: Workspace of the run, index and data.
        plan: Which retrainings to take; those of an earlier evaluation are used again.
        queries: Number of held-out examples to take, tuning queries included.
        folder: Folder for ``evaluation.json``.

    Raises:
        RecordError: there is no recorded run and no surrogate, its steps cannot be executed again, or a surrogate
            agrees too little with the served model.
        DataError: there are no labelled held-out examples.
        SettingsError: the plan cannot be carried out.
    """
    retraining = _retraining(workspace, queries)
    loaded = load(workspace)
    found = evaluate(loaded.attributor, retraining, plan, base=workspace.model.base, progress=workspace.progress)
    folder.mkdir(parents=True, exist_ok=True)
    surrogate = surrogate_of(workspace)
    about = {"model": loaded.model, "index": loaded.index} | ({} if surrogate is None else {"surrogate": surrogate})
    write_json(folder / RESULTS, {**found.to_dict(), **about})
    return found


def surrogate_of(workspace: Workspace) -> dict[str, Any] | None:
    """How far the surrogate that is trained again agrees with the served model; None where that model itself is."""
    return workspace.replayable.agreement


def run_planted(workspace: Workspace, share: float, folder: Path) -> PlantedErrors:
    """Plants wrong labels in the config's training examples, and counts how many the rankings of suspects find.

    Args:
        workspace: Workspace of the base model and data; its own run and index stay as they are.
        share: Share of the labels that are changed.
        folder: Folder for ``planted.json`` and for the run and index with the wrong labels.

    Raises:
        SettingsError: the task's target is not one label.
        DataError: there are no labelled held-out examples, or no label can be changed.
    """
    config, task = workspace.config, workspace.base_task
    field = target_field(workspace.fields)
    if field is None or field.kind != "label":
        raise SettingsError(
            f"label errors can be planted where training teaches one label an example, and that of "
            f"{type(task).__name__} does not; evaluate without --planted",
            field="planted",
        )
    labelled = workspace.labelled_held_out
    if not labelled:
        raise DataError(
            f"{config.name!r} has no labelled held-out examples to measure harm on: name them in data.validation",
            field="data.validation",
        )
    found = find_planted_errors(
        task,
        workspace.base_location,
        workspace.train,
        labelled,
        folder / f"planted-{share:g}",
        share=share,
        finetuning=config.finetune,
        indexing=config.index,
        progress=workspace.progress,
    )
    write_json(folder / PLANTED, found.to_dict())
    return found


def _retraining(workspace: Workspace, queries: int) -> Retraining:
    config, trained_again = workspace.config, workspace.checkable
    labelled = workspace.labelled_held_out
    chosen = random.Random(0).sample(labelled, min(queries, len(labelled)))
    if len(chosen) < FEWEST_QUERIES:
        raise DataError(
            f"{config.name!r} has {len(chosen)} labelled held-out examples, an evaluation needs at least "
            f"{FEWEST_QUERIES}: name them in data.validation",
            field="data.validation",
        )
    cache = evaluation_folder(config) / "retrainings"
    run, task = trained_again.run, trained_again.task
    return Retraining(run, task, workspace.train, chosen, cache, progress=workspace.progress)
