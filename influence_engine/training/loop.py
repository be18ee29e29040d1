"""Fine-tuning, recorded if wanted."""

from __future__ import annotations

import contextlib
import copy
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict, Unpack, overload

import torch
from torch import nn

from influence_engine.digests import json_digest
from influence_engine.models.first_token_head import reads_first_position
from influence_engine.models.loading import add_lora, load_base, model_digest
from influence_engine.models.trainable import choose_trainable, left_frozen
from influence_engine.options import with_defaults
from influence_engine.progress import Progress, silent
from influence_engine.resources import choose_device
from influence_engine.tasks import Example, Task, example_sizes, head_of, processor_of
from influence_engine.training.checkpoints import Checkpoint
from influence_engine.training.execution import execute, weights_by_row
from influence_engine.training.identity import check_examples, data_digests, identity_of
from influence_engine.training.optimizers import Optimizer, OptimizerState, TrainingState, optimizer_for
from influence_engine.training.record import Run
from influence_engine.training.result import Finetuned, FinetuningResult
from influence_engine.training.schedule import checkpoint_steps, derived_seed, plan_schedule
from influence_engine.training.settings import FinetuneSettings
from influence_engine.training.step import (
    Objective,
    StepResult,
    UpdateRule,
    put_parameters,
    set_dropout,
    trained_parameters,
)
from influence_engine.training.validation import validate
from influence_engine.training.writer import ExecutedSteps, RecordWriter, exclusively, matching_run

STAGE = "fine-tuning"

PASS_COSTS = {"cpu": 64, "cuda": 4096}
"""Cost of a further micro-batch, in positions: on a GPU small micro-batches take no less time than larger ones."""


class FinetuneOptions(TypedDict, total=False):
    """Further options of ``finetune``, beyond data, settings and the record's folder.

    Attributes:
        revision: Branch, tag or commit of ``base`` on the hub.
        weights: The ``w_i`` by example id, 1 where not given.
        device: Where to train; ``"auto"``, the default, is the GPU if there is one.
        reuse: Returns the run in ``record_to`` if it is this very run, complete, instead of refusing.
        progress: Called after every step, with the time left.
    """

    revision: str | None
    weights: Mapping[str, float] | None
    device: str
    reuse: bool
    progress: Progress


_DEFAULTS: FinetuneOptions = {
    "revision": None,
    "weights": None,
    "device": "auto",
    "reuse": False,
    "progress": silent,
}


@overload
def finetune(
    task: Task,
    base: str | os.PathLike[str] | nn.Module,
    train: Sequence[Example],
    validation: Sequence[Example] | None = None,
    settings: FinetuneSettings | None = None,
    record_to: None = None,
    **options: Unpack[FinetuneOptions],
) -> Finetuned: ...


@overload
def finetune(
    task: Task,
    base: str | os.PathLike[str] | nn.Module,
    train: Sequence[Example],
    validation: Sequence[Example] | None = None,
    settings: FinetuneSettings | None = None,
    *,
    record_to: str | os.PathLike[str],
    **options: Unpack[FinetuneOptions],
) -> Run: ...


@overload
def finetune(
    task: Task,
    base: str | os.PathLike[str] | nn.Module,
    train: Sequence[Example],
    validation: Sequence[Example] | None = None,
    settings: FinetuneSettings | None = None,
    record_to: str | os.PathLike[str] | None = None,
    **options: Unpack[FinetuneOptions],
) -> FinetuningResult: ...


def finetune(
    task: Task,
    base: str | os.PathLike[str] | nn.Module,
    train: Sequence[Example],
    validation: Sequence[Example] | None = None,
    settings: FinetuneSettings | None = None,
    record_to: str | os.PathLike[str] | None = None,
    **options: Unpack[FinetuneOptions],
) -> FinetuningResult:
    """Fine-tunes ``base`` on ``train``; with ``record_to`` the run is recorded and can be interrupted.

    The objective of step ``t`` is ``sum_i w_i a_i l_i / Z_t``; ``Z_t`` never depends on ``w``, so ``w_i = 0`` is what
    leaving example ``i`` out means everywhere in this package. The same arguments on the same machine lead to the
    same weights, also after an interruption.

    Args:
        task: What the model is for. If ``base`` is a folder or hub id, it says which head the model has (``HeadTask``,
            or the attribute ``labels``).
        base: Folder or hub id of the base model, or a module, which is not changed.
        train: The examples; each has an ``example_id`` of its own.
        validation: Examples on which the fine-tuned model is measured.
        settings: How to train.
        record_to: A new or empty folder for the record, or that of the same run, interrupted, which is resumed.
        options: ``revision``, ``weights``, ``device``, ``reuse`` and ``progress`` of ``FinetuneOptions``.

    Returns:
        A ``FinetuningResult``: the recorded ``Run``, or without ``record_to`` a ``Finetuned``.

    Raises:
        DataError: no examples, an example that the task refuses, or a loss that is not finite (the message names
            step and examples).
        ModelError: the base model cannot be loaded.
        SettingsError: the settings do not fit the model.
        RecordError: ``record_to`` holds something else, or this run already (see ``reuse``), or another process is
            writing there.
        TypeError: an option is unknown.
    """
    chosen = with_defaults(finetune, _DEFAULTS, options)
    weights, progress = chosen["weights"], chosen["progress"]
    settings = settings or FinetuneSettings()
    ids, data = check_examples(task, train, "training"), data_digests(task, train)
    if validation is not None:
        check_examples(task, validation, "validation")
    example_weights = weights_by_row(ids, weights)
    model = _base_model(task, base, settings, chosen["revision"])
    frozen = left_frozen(model, settings.trainable)
    trainable = choose_trainable(model, settings.trainable)
    device = choose_device(chosen["device"])
    sizes, pass_cost = example_sizes(task, train), PASS_COSTS.get(device.type, PASS_COSTS["cuda"])
    schedule = plan_schedule(settings, len(train), sizes, pass_cost=pass_cost)
    optimizer = optimizer_for(settings, {name: model.get_parameter(name) for name in trainable})
    first_position = reads_first_position(model)
    with contextlib.ExitStack() as stack:
        writer: RecordWriter | None = None
        if record_to is not None:
            stack.enter_context(exclusively(record_to))
            identity = _identity(task, model, ids, data, settings, weights)
            if frozen:  # the digest of the base model does not say which of its layers the caller has frozen
                identity["frozen_normalisation"] = frozen
            found = matching_run(record_to, identity) if chosen["reuse"] else None
            if found is not None:
                return found
            writer = RecordWriter(record_to, identity, len(schedule))
            stack.callback(writer.checkpoints.close)

        model.to(device)
        set_dropout(model, settings.dropout)
        rule = UpdateRule(Objective(model, task, first_position=first_position), optimizer, settings.max_grad_norm)
        start = _start(model, trainable, optimizer, writer)
        log = _Log(start, writer, checkpoint_steps(len(schedule), settings.checkpoints), len(schedule), progress)
        parameters = execute(
            rule,
            train,
            schedule,
            TrainingState(start.parameters, start.state),
            after=start.step,
            weights=example_weights,
            on_step=log.step,
        )
        put_parameters(model, parameters)
        measured = None if validation is None else validate(task, model, validation, progress)
        model.eval().cpu()
        if writer is None:
            losses = torch.tensor(log.losses, dtype=torch.float64)
            return Finetuned(model, trainable, losses, schedule.learning_rates, measured)
        return writer.finish(
            model,
            ExecutedSteps(schedule, log.losses, log.clip_factors),
            processor=processor_of(task),
            example_ids=ids,
            optimizer=optimizer.describe(),
            recorded_by="finetune",
            settings=settings.model_dump(mode="json"),
            trainable=trainable,
            max_grad_norm=settings.max_grad_norm,
            dropout=settings.dropout,
            first_position=first_position,
            weights=_not_one(weights),
            validation=measured,
        )


class _Log:
    """Collects losses and clip factors, writes checkpoints and reports progress, step by step."""

    def __init__(
        self, start: Checkpoint, writer: RecordWriter | None, checkpoints: list[int], total: int, progress: Progress
    ) -> None:
        self.losses = list(start.losses)
        self.clip_factors = list(start.clip_factors)
        self._writer = writer
        self._checkpoints = set(checkpoints)
        self._first = start.step
        self._total = total
        self._progress = progress
        self._began = time.monotonic()
        progress(STAGE, start.step, total)

    def step(self, number: int, result: StepResult) -> None:
        self.losses.append(float(result.loss))
        self.clip_factors.append(float(result.clip_factor))
        if self._writer is not None and number in self._checkpoints:
            self._writer.checkpoints.save(number, *result.state, self.losses, self.clip_factors)
        left = (time.monotonic() - self._began) / (number - self._first) * (self._total - number)
        self._progress(STAGE, number, self._total, f"loss {self.losses[-1]:.3f}, {left:.0f} s left")


def _base_model(
    task: Task, base: str | os.PathLike[str] | nn.Module, settings: FinetuneSettings, revision: str | None
) -> nn.Module:
    if isinstance(base, nn.Module):
        model = copy.deepcopy(base)
    else:
        seed = derived_seed(settings.seed, "head", 0)
        model = load_base(base, head_of(task), revision=revision, seed=seed)
    if settings.trainable == "lora" and not hasattr(model, "peft_config"):
        lora = settings.lora
        seed = derived_seed(settings.seed, "lora", 0)
        model = add_lora(model, r=lora.r, alpha=lora.alpha, target_modules=lora.target_modules, seed=seed)
    return model.float()


def _identity(
    task: Task,
    model: nn.Module,
    ids: list[str],
    data: Mapping[str, str],
    settings: FinetuneSettings,
    weights: Mapping[str, float] | None,
) -> dict[str, Any]:
    return {
        "recorded_by": "finetune",
        "base": model_digest(model),
        **identity_of(task, data),
        "order_of_ids": json_digest(ids),
        "settings": settings.model_dump(mode="json"),
        "weights": _not_one(weights),
    }


def _start(model: nn.Module, trainable: list[str], optimizer: Optimizer, writer: RecordWriter | None) -> Checkpoint:
    """The state to train from: the newest checkpoint, or the base model's weights, which are then saved as step 0."""
    begun = None if writer is None else writer.progressed()
    parameters = trained_parameters(model, trainable)
    if begun is None:
        begun = Checkpoint(0, parameters, {}, [], [])
        if writer is not None:
            writer.checkpoints.save(0, parameters, {}, [], [])
    device = next(iter(parameters.values())).device
    state: OptimizerState = {
        kind: {name: tensor.to(device) for name, tensor in values.items()} for kind, values in begun.state.items()
    }
    return replace(
        begun,
        parameters={name: begun.parameters[name].to(device) for name in trainable},
        state=state if begun.step else optimizer.initial_state(parameters),
    )


def _not_one(weights: Mapping[str, float] | None) -> dict[str, float]:
    return {example_id: float(weight) for example_id, weight in sorted((weights or {}).items()) if weight != 1}
