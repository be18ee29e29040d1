"""Ranks training examples by the harm they do to held-out predictions, and writes the ranking to a file."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from audit_service.engine.loading import Loaded, load
from audit_service.workflows.finetuning import plan_finetuning
from audit_service.workspace import Workspace
from influence_engine.errors import SettingsError
from influence_engine.evaluation import CrossValidation, Measure, Suspect, rank_suspects, seen_in_training
from influence_engine.evaluation.baselines import training_losses
from influence_engine.files import atomic_write
from influence_engine.index.ordering import in_index_order
from influence_engine.training.schedule import plan_schedule

PROBED = 32
"""Most held-out and training examples whose influences and losses a dry run computes."""

MEASURED = tuple(field.name for field in fields(Suspect) if field.name != "fields")
"""The first columns of the file, after ``rank``; the fields of the examples follow."""


@dataclass(frozen=True)
class Suspects:
    """All training examples of a config by how suspect they are.

    Attributes:
        ranked: Every training example, the most suspect first.
        by: The measure that they are ranked by.
        held_out: Number of held-out examples.
        seen_in_training: Ids of held-out examples that are training examples, too.
        model: ``tag`` and ``digest``.
        index: ``tag``, ``digest``, ``method`` and ``rows``.
    """

    ranked: list[Suspect]
    by: Measure
    held_out: int
    seen_in_training: list[str]
    model: dict[str, Any]
    index: dict[str, Any]

    def to_dict(self, top_k: int) -> dict[str, Any]:
        """The ranking as a JSON value, with the first ``top_k`` suspects."""
        return {
            "by": self.by,
            "held_out": self.held_out,
            "seen_in_training": self.seen_in_training,
            "training": len(self.ranked),
            "model": self.model,
            "index": self.index,
            "suspects": [{"rank": rank, **asdict(one)} for rank, one in enumerate(self.ranked[:top_k], 1)],
        }


@dataclass(frozen=True)
class SuspectsPlan:
    """Predicted cost of a ranking.

    Attributes:
        held_out: Number of held-out examples.
        training: Number of training examples.
        pairs: Number of influences to be computed: the product of the two.
        seconds: Time for harm and losses, from a few that were really computed.
        folds: Number of folds of the cross-validation; 0 for none.
        trainings: Number of folds that are not cached yet, each a training.
        training_seconds: Time of these trainings, from a few steps that were really taken.
    """

    held_out: int
    training: int
    pairs: int
    seconds: float
    folds: int
    trainings: int
    training_seconds: float


@dataclass(frozen=True)
class _Opened:
    loaded: Loaded
    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    validation: CrossValidation | None


def find_suspects(workspace: Workspace, *, by: Measure = "harm", folds: int = 0) -> Suspects:
    """Ranks all training examples of a config.

    Args:
        workspace: Workspace of the model, index and data; ``data.validation`` are its held-out examples.
        by: The measure to rank by.
        folds: Number of folds of the cross-validation for the out-of-sample confidence; 0 leaves it out.

    Raises:
        InfluenceError: there are no held-out examples, model or index are missing or do not belong together, or there
            is no recorded run to cross-validate.
    """
    opened = _open(workspace, folds)
    validation, loaded = opened.validation, opened.loaded
    ranked = rank_suspects(
        loaded.attributor,
        opened.held_out,
        opened.train,
        by=by,
        out_of_sample_confidence=None if validation is None else validation.out_of_sample_confidence(),
        progress=workspace.progress,
    )
    seen = seen_in_training(opened.held_out, opened.train)
    return Suspects(ranked, by, len(opened.held_out), seen, loaded.model, loaded.index)


def plan_suspects(workspace: Workspace, *, folds: int = 0) -> SuspectsPlan:
    """Predicts how long ``find_suspects`` will take, from a few influences, losses and training steps.

    Raises:
        InfluenceError: as ``find_suspects``.
    """
    opened = _open(workspace, folds)
    attributor, train, held_out = opened.loaded.attributor, opened.train, opened.held_out
    in_index_order(attributor.index, attributor.task, train)
    attributor.scores(held_out[:1])  # warms up
    influences = _seconds_each(held_out[:PROBED], attributor.scores) * len(held_out)
    losses = len(train) * _seconds_each(
        train[:PROBED], lambda examples: training_losses(attributor.model, attributor.task, examples)
    )
    trainings, training_seconds = 0, 0.0
    if opened.validation is not None:
        missing = opened.validation.missing
        trainings = len(missing)
        remaining = [len(train) - len(opened.validation.left_out[fold]) for fold in missing]
        training_seconds = _training_seconds(workspace, opened.validation, remaining) if missing else 0.0
    return SuspectsPlan(
        held_out=len(held_out),
        training=len(train),
        pairs=len(held_out) * len(train),
        seconds=influences + losses,
        folds=folds,
        trainings=trainings,
        training_seconds=training_seconds,
    )


def write_suspects(path: Path, ranked: Sequence[Suspect]) -> None:
    """Writes every suspect to a CSV file, whole or not at all.

    The columns are ``rank``, those of ``MEASURED``, and the fields of the examples, of which one that is named as a
    column before it is left out (as a rule the label). Where there is no value the cell is empty.
    """
    extra = list(dict.fromkeys(name for one in ranked for name in one.fields if name not in MEASURED))
    with atomic_write(path) as aside, aside.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["rank", *MEASURED, *extra])
        for rank, one in enumerate(ranked, 1):
            # What the label is a name for, such as a list of labels or a number, can be trained on; the name cannot.
            measured = _cells({**{name: getattr(one, name) for name in MEASURED}, **_own_label(one)}, MEASURED)
            writer.writerow([rank, *measured, *_cells(one.fields, extra)])


def _open(workspace: Workspace, folds: int) -> _Opened:
    config = workspace.config
    if config.data.validation is None:
        raise SettingsError(
            f"{config.name!r} names no held-out examples to be harmed. Add data.validation to {config.file}: labelled "
            "examples that the model was not trained on, in the same way as data.train",
            field="data.validation",
        )
    if folds and config.model is not None:
        raise SettingsError(
            f"--folds fine-tunes again as the recorded run did, and the model of {config.name!r} was fine-tuned "
            "elsewhere: there is no record of how. Leave --folds out; harm and loss need no record",
            field="folds",
        )
    run = workspace.run if folds else None
    loaded, train, held_out = load(workspace), workspace.train, workspace.held_out
    validation = None
    if run is not None:
        cache = config.state_folder / "folds"
        validation = CrossValidation(run, loaded.task, train, cache, folds=folds, progress=workspace.progress)
    return _Opened(loaded, train, held_out, validation)


def _seconds_each(examples: Sequence[Any], compute: Any) -> float:
    began = time.perf_counter()
    compute(examples)
    return (time.perf_counter() - began) / len(examples)


def _training_seconds(workspace: Workspace, validation: CrossValidation, remaining: Sequence[int]) -> float:
    # The run's settings, which the folds are trained with, whatever the config says by now.
    settings = validation.run.settings
    assert settings is not None  # a cross-validation has made sure
    plan = plan_finetuning(workspace, settings)
    return plan.seconds / plan.steps * sum(len(plan_schedule(settings, count)) for count in remaining)


def _own_label(suspect: Suspect) -> dict[str, Any]:
    return {"label": suspect.fields["label"]} if "label" in suspect.fields else {}


def _cells(values: Mapping[str, Any], names: Sequence[str]) -> Iterator[Any]:
    for name in names:
        value = values.get(name)
        yield json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
