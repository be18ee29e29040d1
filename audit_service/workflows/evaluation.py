"""Evaluates explanations against retraining (LDS) and on planted label errors, and writes the results."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

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
"""What a kind of retraining is called where it is shown."""


@dataclass(frozen=True)
class EvaluationCost:
    """What an evaluation will take.

    Attributes:
        queries: Held-out examples whose measurements are compared; the first ``tuning`` of them choose the damping.
        tuning: How many those are.
        retrainings: In all.
        kept: Of them, those measured before.
        seconds: For the others, from a few steps that were really taken; frozen layers run once only, so it is less.
    """

    queries: int
    tuning: int
    retrainings: int
    kept: int
    seconds: float


def evaluation_folder(config: AuditConfig) -> Path:
    """Where results and retrainings lie."""
    return config.state_folder / "evaluation"


def plan_evaluation(workspace: Workspace, plan: EvaluationPlan, queries: int) -> EvaluationCost:
    """Predicts what ``run_evaluation`` will take; raises what that does."""
    retraining = _retraining(workspace, queries)
    ids = retraining.run.example_ids
    plan.check(ids)
    tuning = plan.tuning_of(len(retraining.queries))
    kept = sum(
        retraining.kept(random_removals(ids, fraction, plan.subsets, seed=plan.seed), kind)
        for kind in plan.kinds
        for fraction in plan.fractions
    )
    if plan.single or plan.leave_out:
        attributor = workspace.attributor
        influences = attributor.scores(retraining.queries[tuning:], "estimated").double()
        kept += retraining.kept(single_removals(plan, influences, attributor.index.example_ids))
    each = plan_finetuning(workspace).seconds
    return EvaluationCost(
        queries=len(retraining.queries),
        tuning=tuning,
        retrainings=plan.retrainings,
        kept=kept,
        seconds=each * (plan.retrainings - kept),
    )


def run_evaluation(workspace: Workspace, plan: EvaluationPlan, queries: int, folder: Path) -> Evaluation:
    """Evaluates the config's index against retrainings of its run, and writes the results to ``folder``.

    Args:
        workspace: Whose run, index and data.
        plan: What to retrain; retrainings of an earlier evaluation are used again.
        queries: Held-out examples to take, tuning ones included.
        folder: Gets ``evaluation.json``.

    Raises:
        RecordError: there is no recorded run, or none that can be executed again.
        DataError: there are no labelled held-out examples.
        SettingsError: the plan cannot be carried out.
    """
    retraining = _retraining(workspace, queries)
    loaded = load(workspace)
    found = evaluate(loaded.attributor, retraining, plan, base=workspace.model.base, progress=workspace.progress)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RESULTS, {**found.to_dict(), "model": loaded.model, "index": loaded.index})
    return found


def run_planted(workspace: Workspace, share: float, folder: Path) -> PlantedErrors:
    """Plants wrong labels in the config's training examples, and counts how many the rankings of suspects find.

    Args:
        workspace: Whose base model and data; its own run and index stay as they are.
        share: Of the labels that are changed.
        folder: Gets ``planted.json``; a run and an index of their own are kept below it.

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
    config, run = workspace.config, workspace.run
    labelled = workspace.labelled_held_out
    chosen = random.Random(0).sample(labelled, min(queries, len(labelled)))
    if len(chosen) < FEWEST_QUERIES:
        raise DataError(
            f"{config.name!r} has {len(chosen)} labelled held-out examples, an evaluation needs at least "
            f"{FEWEST_QUERIES}: name them in data.validation",
            field="data.validation",
        )
    cache = evaluation_folder(config) / "retrainings"
    return Retraining(run, workspace.task, workspace.train, chosen, cache, progress=workspace.progress)
