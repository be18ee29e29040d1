"""Out-of-sample confidence in each training label, by cross-validation whose folds are cached on disk.

It is the "self-confidence" that confident learning ranks possible label errors by (Northcutt, Jiang and Chuang 2021).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import torch
from torch import nn

from influence_engine.data.selection import place
from influence_engine.digests import json_digest
from influence_engine.errors import RecordError, SettingsError
from influence_engine.files import read_json, write_json
from influence_engine.options import with_defaults
from influence_engine.resources import choose_device, to_device
from influence_engine.tasks import Example, Task, confidence_in_own, group_of, predictions_of, predicts_labels
from influence_engine.training import FinetuneSettings, Run, finetune, in_recorded_order
from influence_engine.training.execution_options import MODEL_DEFAULTS, ModelOptions
from influence_engine.training.validation import BATCH


class CrossValidation:
    """Fine-tunes a run's base model once for every fold, without the fold's examples, and predicts their labels.

    Every label is spread evenly over the folds. Which fold an example is in depends on ids, labels and ``seed`` only.

    Args:
        run: The recorded run, whose base model and settings are used.
        task: The run's task; it predicts labels.
        train: The run's training examples, in any order.
        cache: A folder; the result of each fold is cached there under a digest of all that it depends on, so that an
            interrupted cross-validation goes on with the fold that was interrupted.
        folds: Number of folds; each example is left out of one of as many trainings.
        seed: Seed of the folds.
        options: ``ModelOptions``.

    Raises:
        RecordError: the run is of another trainer, which left no settings to train with.
        SettingsError: the task predicts no labels, or there are fewer than two folds or more than examples.
        DigestMismatchError: task, tokenizer or data are not the recorded ones.
    """

    def __init__(
        self,
        run: Run,
        task: Task,
        train: Sequence[Example],
        cache: str | os.PathLike[str],
        *,
        folds: int = 5,
        seed: int = 0,
        **options: Unpack[ModelOptions],
    ) -> None:
        chosen = with_defaults(CrossValidation, MODEL_DEFAULTS, options)
        if run.settings is None:
            raise RecordError(
                f"the run in {run.folder} was recorded by {run.manifest['recorded_by']}, which leaves no settings to "
                "fine-tune with again; cross-validation needs a run of bento-audit finetune",
                field="folds",
            )
        if not predicts_labels(task):
            raise SettingsError(
                f"{type(task).__name__} predicts no labels, so there is no confidence in one; it needs "
                "`predictions` with scores, and a field of kind label for the true one",
                field="folds",
            )
        if not 2 <= folds <= len(train):
            raise SettingsError(
                f"folds is {folds}; it must be at least 2 and at most the number of training examples, {len(train)}",
                field="folds",
            )
        self.run = run
        self.task: Task = task
        self.cache = Path(cache)
        self.device = choose_device(chosen["device"])
        self.progress = chosen["progress"]
        self.examples = in_recorded_order(run, task, train)
        self.left_out = _stratified(
            [(str(each["example_id"]), group_of(task, each) or "") for each in train], folds, seed
        )
        self._settings: FinetuneSettings = run.settings
        self._into = chosen["into"]
        self._base: nn.Module | None = None

    @property
    def missing(self) -> list[int]:
        """The folds that are not on disk yet, each a training to be done; counted from 0."""
        return [fold for fold in range(len(self.left_out)) if not self._path(fold).exists()]

    def out_of_sample_confidence(self) -> dict[str, float]:
        """By example id, the probability of its given label under the model that was not trained on it.

        Raises:
            RecordError: a file in the cache is damaged; the message names it.
        """
        confidences: dict[str, float] = {}
        for fold in range(len(self.left_out)):
            path = self._path(fold)
            if path.exists():
                self.progress(self._stage(fold), 1, 1, "cached")
            else:
                write_json(path, self._confidence(fold))
            confidences.update(self._read(path, fold))
        return confidences

    def _path(self, fold: int) -> Path:
        identity = {
            "digests": self.run.digests,
            "settings": self._settings.model_dump(mode="json"),
            "weights": self.run.weights,
            "order": json_digest(self.run.example_ids),
            "left_out": self.left_out[fold],
        }
        return self.cache / f"{json_digest(identity)}.json"

    def _read(self, path: Path, fold: int) -> dict[str, float]:
        cached = read_json(path)
        if not isinstance(cached, dict) or sorted(cached) != self.left_out[fold]:
            raise RecordError(
                f"{path} does not hold the confidences of fold {fold + 1}; delete it, and the fold is trained again",
                field=str(path),
            )
        return cached

    def _confidence(self, fold: int) -> dict[str, float]:
        absent = set(self.left_out[fold])
        remaining = [example for example in self.examples if example["example_id"] not in absent]
        left_out = [example for example in self.examples if example["example_id"] in absent]

        def report(stage: str, done: int, total: int, note: str = "") -> None:
            self.progress(self._stage(fold), done, total, note)

        if self._base is None:
            self._base = self.run.load_base(self._into)
        model = finetune(
            self.task,
            self._base,
            remaining,
            settings=self._settings,
            weights={key: weight for key, weight in self.run.weights.items() if key not in absent},
            device=str(self.device),
            progress=report,
        ).model
        return self._probabilities(model, left_out)

    def _probabilities(self, model: nn.Module, examples: Sequence[Example]) -> dict[str, float]:
        model.to(self.device)
        probabilities = {}
        with torch.no_grad():
            for start in range(0, len(examples), BATCH):
                chunk = examples[start : start + BATCH]
                batch = to_device(self.task.collate(chunk), self.device)
                predicted = predictions_of(self.task, self.task.outputs(model, batch), batch)
                for example, prediction in zip(chunk, predicted, strict=True):
                    assert prediction is not None  # the task predicts labels
                    probabilities[example["example_id"]] = confidence_in_own(self.task, prediction, example)
        return probabilities

    def _stage(self, fold: int) -> str:
        return f"fold {fold + 1} of {len(self.left_out)}"


def _stratified(labelled: Sequence[tuple[str, str]], folds: int, seed: int) -> list[list[str]]:
    """The ids of each fold, sorted: those of one label are dealt out in turn, in an order that a hash gives."""
    ordered = sorted((label, place(example_id, f"folds {seed}"), example_id) for example_id, label in labelled)
    return [sorted(example_id for _, _, example_id in ordered[fold::folds]) for fold in range(folds)]
