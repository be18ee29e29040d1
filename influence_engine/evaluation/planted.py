"""Planted label errors: how many wrong labels are found among the first examples that somebody would look at?

Some labels are changed on purpose, the model is fine-tuned on them and recorded, and the training examples are ranked
as suspects are. The recall at a share of examples inspected is what a cleaning of the data would have gained; by chance
it is that share.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from influence_engine.attribution import Attributor
from influence_engine.errors import DataError
from influence_engine.evaluation.suspects import Measure, Suspect, rank_suspects
from influence_engine.index import IndexSettings, InfluenceIndex
from influence_engine.progress import Progress, silent
from influence_engine.tasks import Example, Task
from influence_engine.training import FinetuneSettings, finetune

INSPECTED = (0.05, 0.1, 0.2, 0.3)
"""Shares of the training examples that somebody looks at."""

MEASURES: tuple[Measure, ...] = ("harm", "self_influence", "loss")


@dataclass(frozen=True)
class PlantedErrors:
    """What was found of the planted errors.

    Attributes:
        examples: Training examples.
        planted: Of them, those whose label was changed.
        recall: By measure, share of the planted ones among the first ``INSPECTED`` shares of the ranking.
    """

    examples: int
    planted: int
    recall: dict[str, dict[float, float]]

    def to_dict(self) -> dict[str, Any]:
        """As a JSON value."""
        return asdict(self)


def with_wrong_labels(
    train: Sequence[Example], label: str, share: float, *, seed: int = 0
) -> tuple[list[Example], set[str]]:
    """The examples with a share of the labels changed to another one of theirs, and the ids of those.

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
            others = [one for one in labels if one != str(example[label])]
            example = {**example, label: values[draw.choice(others)]}
        changed.append(example)
    return changed, {str(train[row]["example_id"]) for row in chosen}


def find_planted_errors(
    task: Task,
    base: str | os.PathLike[str] | nn.Module,
    train: Sequence[Example],
    held_out: Sequence[Example],
    folder: str | os.PathLike[str],
    *,
    share: float = 0.1,
    finetuning: FinetuneSettings | None = None,
    indexing: IndexSettings | None = None,
    into: nn.Module | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> PlantedErrors:
    """Plants label errors, fine-tunes and indexes with them, and counts how many the rankings find.

    Args:
        task: Whose examples have one label each, in the field that its attribute ``label`` names.
        base: As for ``finetune``.
        train: Training examples; they are left as they are.
        held_out: Labelled examples that harm is measured on, with their true labels.
        folder: Keeps run and index, so that an interrupted call goes on.
        share: Of the labels that are changed.
        finetuning: How to fine-tune.
        indexing: How to index.
        into: For a module that is not from ``transformers``: a freshly built one, which is filled.
        seed: Chooses the examples and their new labels.
        progress: Told of every stage.

    Raises:
        DataError: labels are missing, or none can be changed.
    """
    label = str(getattr(task, "label", "label"))
    wrong, planted = with_wrong_labels(train, label, share, seed=seed)
    run = finetune(
        task, base, wrong, settings=finetuning, record_to=Path(folder) / "run", reuse=True, progress=progress
    )
    index = InfluenceIndex.build_from_run(
        run, task, wrong, Path(folder) / "index", indexing, into=into, progress=progress
    )
    attributor = Attributor(run.load_model(into), task, index)
    suspects = rank_suspects(attributor, held_out, wrong, progress=progress)
    return PlantedErrors(
        examples=len(train),
        planted=len(planted),
        recall={measure: _recall(suspects, measure, planted) for measure in MEASURES},
    )


def _recall(suspects: Sequence[Suspect], measure: Measure, planted: set[str]) -> dict[float, float]:
    ranked = sorted(suspects, key=lambda suspect: suspect.rank_by(measure) or len(suspects))
    found = [suspect.example_id in planted for suspect in ranked]
    return {share: sum(found[: round(share * len(found))]) / len(planted) for share in INSPECTED}
