"""Planted label errors: how many of them are among the first examples of each ranking of suspects?

Some labels are changed on purpose, the model is fine-tuned on them and recorded, and the training examples are ranked
by each measure of ``suspects``. The recall at a share of examples inspected is what a cleaning of the data would have
gained; by chance it is that share.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from influence_engine.attribution.attributor import Attributor
from influence_engine.errors import DataError
from influence_engine.evaluation.finding import Figure, area_under_curve, average_precision, figures, recall
from influence_engine.evaluation.folds import CrossValidation
from influence_engine.evaluation.suspects import Measure, Suspect, rank_suspects
from influence_engine.index import IndexSettings, InfluenceIndex
from influence_engine.options import with_defaults
from influence_engine.progress import Progress, silent
from influence_engine.tasks import Example, Task, target_name
from influence_engine.training import FinetuneSettings, finetune

INSPECTED = (0.05, 0.1, 0.2, 0.3)
"""Shares of the training examples that are inspected."""

MEASURES: tuple[Measure, ...] = ("harm", "self_influence", "loss")


@dataclass(frozen=True)
class PlantedErrors:
    """Recall and other metrics of each ranking of suspects for the planted errors.

    Attributes:
        examples: Number of training examples.
        planted: Number of examples whose label was changed.
        recall: By measure, share of the planted errors among the first ``INSPECTED`` shares of the ranking.
        figures: By measure, that recall by share (``recall 5%``), ``average precision`` and ``area under curve``, with
            intervals.
    """

    examples: int
    planted: int
    recall: dict[str, dict[float, float]]
    figures: dict[str, dict[str, Figure]]

    def to_dict(self) -> dict[str, Any]:
        """The results as a JSON value."""
        return asdict(self)


def with_wrong_labels(
    train: Sequence[Example], label: str, share: float, *, seed: int = 0
) -> tuple[list[Example], set[str]]:
    """The examples with a share of the labels changed to another label of theirs, and the ids of the changed examples.

    Raises:
        DataError: there is but one label, or the share changes none.
    """
    labels = sorted({str(example[label]) for example in train})
    values = {str(example[label]): example[label] for example in train}
    count = round(share * len(train))
    if len(labels) < 2 or not count:
        what = f"all labels are {labels[0]!r}" if len(labels) < 2 else f"{share:g} of {len(train)} examples is none"
        raise DataError(f"no label errors can be planted: {what}", field=label)
    draw = random.Random(seed)
    chosen = set(draw.sample(range(len(train)), count))
    changed: list[Example] = []
    for row, example in enumerate(train):
        if row in chosen:
            others = [other for other in labels if other != str(example[label])]
            example = {**example, label: values[draw.choice(others)]}
        changed.append(example)
    return changed, {str(train[row]["example_id"]) for row in chosen}


class PlantingOptions(TypedDict, total=False):
    """Options of an evaluation with planted errors.

    Attributes:
        share: Share of the labels that are changed; 0.1 by default.
        finetuning: Settings of the fine-tuning.
        indexing: Settings of the index.
        into: For a model that is not from ``transformers``: a freshly built module, which is filled.
        folds: Trainings of a cross-validation, whose ``out_of_sample_confidence`` then is one more ranking; 0 for none.
        seed: Chooses the examples and their new labels.
        progress: Called with every stage and how far it is.
    """

    share: float
    finetuning: FinetuneSettings | None
    indexing: IndexSettings | None
    into: nn.Module | None
    folds: int
    seed: int
    progress: Progress


PLANTING_DEFAULTS: PlantingOptions = {
    "share": 0.1,
    "finetuning": None,
    "indexing": None,
    "into": None,
    "folds": 0,
    "seed": 0,
    "progress": silent,
}


def find_planted_errors(
    task: Task,
    base: str | os.PathLike[str] | nn.Module,
    train: Sequence[Example],
    held_out: Sequence[Example],
    folder: str | os.PathLike[str],
    **options: Unpack[PlantingOptions],
) -> PlantedErrors:
    """Plants label errors, fine-tunes and indexes with them, and counts how many the rankings find.

    Args:
        task: A task whose examples have one label each, in the target field.
        base: The base model, as for ``finetune``.
        train: Training examples; these are not changed themselves.
        held_out: Labelled examples that harm is measured on, with their true labels.
        folder: Folder for run and index, so that an interrupted call goes on.
        options: Those of ``PlantingOptions``.

    Raises:
        DataError: labels are missing, or none can be changed.
        SettingsError: there are fewer than two folds or more than examples, or the task predicts no labels.
    """
    chosen = with_defaults(find_planted_errors, PLANTING_DEFAULTS, options)
    into, folds, seed, progress = chosen["into"], chosen["folds"], chosen["seed"], chosen["progress"]
    wrong, planted = with_wrong_labels(train, target_name(task), chosen["share"], seed=seed)
    run = finetune(
        task, base, wrong, settings=chosen["finetuning"], record_to=Path(folder) / "run", reuse=True, progress=progress
    )
    index = InfluenceIndex.build_from_run(
        run, task, wrong, Path(folder) / "index", chosen["indexing"], into=into, progress=progress
    )
    confidence: dict[str, float] | None = None
    if folds:
        cache = Path(folder) / "folds"
        crossed = CrossValidation(run, task, wrong, cache, folds=folds, seed=seed, into=into, progress=progress)
        confidence = crossed.out_of_sample_confidence()
    attributor = Attributor(run.load_model(into), task, index)
    suspects = rank_suspects(attributor, held_out, wrong, out_of_sample_confidence=confidence, progress=progress)
    rankings = {
        measure: _relevance(suspects, measure, planted)
        for measure in (*MEASURES, *(("out_of_sample_confidence",) if folds else ()))
    }
    metrics: dict[str, Callable[[Tensor], float]] = {
        **{f"recall {share:.0%}": partial(recall, share=share) for share in INSPECTED},
        "average precision": average_precision,
        "area under curve": area_under_curve,
    }
    return PlantedErrors(
        examples=len(train),
        planted=len(planted),
        recall={
            measure: {share: recall(relevant, share) for share in INSPECTED} for measure, relevant in rankings.items()
        },
        figures={measure: figures(relevant, metrics, seed=seed) for measure, relevant in rankings.items()},
    )


def _relevance(suspects: Sequence[Suspect], measure: Measure, planted: set[str]) -> Tensor:
    """Whether each example is a planted error, ``[N]``, the most suspect first."""
    ranked = sorted(suspects, key=lambda suspect: suspect.rank_by(measure) or len(suspects))
    return torch.tensor([suspect.example_id in planted for suspect in ranked])
