"""Fine-tunes the base model of a config and records the run, or predicts time, disk and memory of that."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from audit_service.workspace import Workspace
from influence_engine.errors import RecordError
from influence_engine.files import remove_tree
from influence_engine.models.loading import add_lora, load_base
from influence_engine.progress import Progress
from influence_engine.resources import peak_memory
from influence_engine.tasks import Task, head_of
from influence_engine.training import Run, finetune
from influence_engine.training.schedule import checkpoint_steps, plan_schedule
from influence_engine.training.settings import FinetuneSettings

PROBED_STEPS = 5
"""Steps that a prediction really takes."""


@dataclass(frozen=True)
class FinetunePlan:
    """Predicted time, disk and memory of a fine-tuning.

    Attributes:
        examples: Number of training examples.
        steps: Number of optimiser steps.
        parameters: Number of trained parameters.
        checkpoints: How often weights and optimiser state are saved.
        seconds: Time, from a few steps that were really taken.
        disk_bytes: Size of the record.
        memory_bytes: The most that this process held while probing.
    """

    examples: int
    steps: int
    parameters: int
    checkpoints: int
    seconds: float
    disk_bytes: int
    memory_bytes: int


def run_finetuning(workspace: Workspace, *, restart: bool = False) -> Run:
    """Fine-tunes the config's base model and records it; the same run, complete, is returned as it is.

    Args:
        workspace: Workspace of the base model and data; its run is this one afterwards.
        restart: Delete an earlier run of this config first.

    Raises:
        InfluenceError: data, model or settings cannot be used, or the folder holds another run.
    """
    run = finetune_recorded(workspace, workspace.base_task, workspace.config.run_folder, restart=restart)
    workspace.take_up_run(run)
    return run


def finetune_recorded(workspace: Workspace, task: Task, folder: Path, *, restart: bool = False) -> Run:
    """Fine-tunes a base model with the config's settings and records the run in ``folder``; a complete run is kept.

    Args:
        workspace: Workspace of the base model and data.
        task: The task, with the tokenizer that is used.
        folder: Folder of the run.
        restart: Delete an earlier run in that folder first.

    Raises:
        InfluenceError: as ``run_finetuning``.
    """
    config = workspace.config
    # Found and read before anything is deleted: what cannot be used must not cost the run that is there.
    location, train, held_out = workspace.base_location, workspace.train, workspace.held_out
    if restart:
        remove_tree(folder)
    try:
        return finetune(
            task,
            location,
            train,
            held_out or None,
            config.finetune,
            record_to=folder,
            revision=config.base_model.revision if config.base_model is not None else None,
            reuse=True,
            progress=workspace.progress,
        )
    except RecordError as error:
        raise RecordError(f"{error.message} --restart deletes it first.", field=error.field) from error


def plan_finetuning(workspace: Workspace, settings: FinetuneSettings | None = None) -> FinetunePlan:
    """Takes a few steps without recording and predicts time, disk and memory of the whole fine-tuning.

    Args:
        workspace: Workspace of the base model and data.
        settings: Settings in place of the config's.
    """
    config, task, train = workspace.config, workspace.base_task, workspace.train
    settings = settings or config.finetune
    schedule = plan_schedule(settings, len(train))
    saved = len(checkpoint_steps(len(schedule), settings.checkpoints))
    revision = config.base_model.revision if config.base_model is not None else None
    # A model of its own: the probe trains it.
    model = load_base(workspace.base_location, head_of(task), revision=revision)
    if settings.trainable == "lora":
        lora = settings.lora
        model = add_lora(model, r=lora.r, alpha=lora.alpha, target_modules=lora.target_modules)
    probed = train[: PROBED_STEPS * settings.batch_size * settings.accumulation]
    stopwatch = _Stopwatch(workspace.progress)
    result = finetune(task, model, probed, settings=settings.model_copy(update={"epochs": 1}), progress=stopwatch)
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
        """Median time of a step; the first is left out where there are others, since it warms up."""
        steps = [end - begin for begin, end in zip(self._ends, self._ends[1:], strict=False)]
        return statistics.median(steps[1:] or steps)
