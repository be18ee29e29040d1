"""Follows one run of the Trainer step by step and writes its record."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from influence_engine.digests import json_digest
from influence_engine.models.loading import model_digest
from influence_engine.tasks import Example, Task, processor_of
from influence_engine.training.execution import collate_step
from influence_engine.training.identity import check_examples, data_digests, identity_of
from influence_engine.training.record import Run
from influence_engine.training.schedule import Step, checkpoint_steps, derived_seed, schedule_of
from influence_engine.training.step import Objective, gradient, trained_parameters
from influence_engine.training.trainer.checks import arguments_of, describe_optimizer, dropout_rates, obstacles
from influence_engine.training.trainer.hooks import TrainerHooks
from influence_engine.training.writer import ExecutedSteps, RecordWriter

TOLERANCE = 1e-3
"""Largest relative difference between the Trainer's first gradient and the task's gradient of the same step."""


@dataclass(frozen=True)
class TrainerSetup:
    """A training as the Trainer has set it up.

    Attributes:
        task: Its loss is the loss that the model computes.
        model: The model that is trained.
        optimizer: Torch's optimiser.
        examples: The data set whose rows the batches carry.
        arguments: The Trainer's ``TrainingArguments``.
        steps_done: Number of steps that the Trainer has done already, where it resumes a training.
        total_steps: Number of steps at the end of the training.
    """

    task: Task
    model: nn.Module
    optimizer: torch.optim.Optimizer
    examples: Sequence[Example]
    arguments: Any
    steps_done: int
    total_steps: int


class TrainerRun:
    """Follows a run from its first step to its last.

    Args:
        setup: The training.
        hooks: On the model.
        record_to: The record's folder.
        dropout_seed: Seeds every step; None leaves torch's random state alone.
        checkpoints: How many times weights and optimiser state are saved; None takes about the square root of the
            number of steps.
    """

    def __init__(
        self,
        setup: TrainerSetup,
        hooks: TrainerHooks,
        record_to: str | os.PathLike[str],
        *,
        dropout_seed: int | None,
        checkpoints: int | None,
    ) -> None:
        task, model, examples, args = setup.task, setup.model, setup.examples, setup.arguments
        self._task, self._model, self._optimizer, self._examples = task, model, setup.optimizer, examples
        self._hooks, self._args, self._seed = hooks, args, dropout_seed
        self._ids = check_examples(task, examples, "training")
        self._names: dict[Tensor, str] = {p: name for name, p in model.named_parameters() if p.requires_grad}
        self._described = describe_optimizer(setup.optimizer, self._names)
        self._dropout = max(dropout_rates(model), default=0.0)
        self._reasons = [
            *self._described.reasons,
            *obstacles(args, model, steps_done=setup.steps_done, dropout_seed=dropout_seed),
        ]
        identity = {
            "recorded_by": "transformers.Trainer",
            "base": model_digest(model),
            **identity_of(task, data_digests(task, examples)),
            "order_of_ids": json_digest(self._ids),
            "arguments": arguments_of(args),
            "dropout_seed": dropout_seed,
            "weights": {},
        }
        self._writer = RecordWriter(record_to, identity, setup.total_steps)
        self._writer.checkpoints.delete_all()
        self._save_after = set(checkpoint_steps(setup.total_steps, checkpoints))
        self._steps: list[Step] = []
        self._losses: list[float] = []
        self._clip_factors: list[float] = []
        self._scaled_by_items: bool | None = None
        self._norms: dict[Tensor, Tensor] = {}
        # The Trainer does not report the norm before clipping, so it is taken as gradients accumulate; the last counts.
        watched: list[Any] = list(self._names) if args.max_grad_norm else []
        self._handles = [parameter.register_post_accumulate_grad_hook(self._record_norm) for parameter in watched]
        self._writer.checkpoints.save(0, self._parameters(), {}, [], [])

    def begin_step(self) -> None:
        """Clears the log of the last step's batches and, where there is a dropout seed, seeds this step."""
        self._hooks.clear()
        if self._seed is not None:
            torch.manual_seed(derived_seed(self._seed, "step", len(self._steps) + 1))

    def before_update(self) -> None:
        """Records what the step consists of; for the first step, checks that the task has the same gradient."""
        rows, items, losses = self._hooks.rows, self._hooks.items, self._hooks.losses
        if not rows:
            self._add_reason("the batches carry no rows; pass data_collator=recording.collate")
        rates = {float(group["lr"]) for group in self._optimizer.param_groups}
        if len(rates) > 1:
            self._add_reason("the optimiser's groups have different learning rates")
        number = len(self._steps) + 1
        seeded = self._seed is not None and self._dropout > 0
        shares, normalizer = self._weights(rows, items, losses)
        step = Step(
            number=number,
            rows=list(rows),
            shares=shares,
            normalizer=normalizer,
            learning_rate=max(rates),
            seed=derived_seed(self._seed or 0, "step", number) if seeded else None,
        )
        factor = self._clip_factor()
        if number == 1 and not self._reasons:
            self._check_gradient(step, factor)
        self._steps.append(step)
        self._clip_factors.append(factor)
        divisor = 1 if items is not None else max(1, len(rows))
        self._losses.append(sum(losses) / divisor if losses else math.nan)

    def after_update(self) -> None:
        """Writes a checkpoint after the chosen steps."""
        if len(self._steps) in self._save_after:
            self._save()

    def finish(self) -> Run:
        """Completes the record."""
        for handle in self._handles:
            handle.remove()
        if self._steps and len(self._steps) not in self._save_after:
            self._save()
        return self._writer.finish(
            self._model,
            ExecutedSteps(schedule_of(self._steps), self._losses, self._clip_factors),
            processor=processor_of(self._task),
            example_ids=self._ids,
            optimizer=self._described.description,
            reasons=self._reasons,
            recorded_by="transformers.Trainer",
            settings=None,
            arguments=arguments_of(self._args),
            trainable=list(self._names.values()),
            max_grad_norm=self._args.max_grad_norm or None,
            dropout=self._dropout,
            weights={},
            validation=None,
        )

    def _add_reason(self, reason: str) -> None:
        if reason not in self._reasons:
            self._reasons.append(reason)

    def _parameters(self) -> dict[str, Tensor]:
        return trained_parameters(self._model, list(self._names.values()))

    def _save(self) -> None:
        state = self._described.state(self._optimizer, self._names)
        self._writer.checkpoints.save(len(self._steps), self._parameters(), state, self._losses, self._clip_factors)

    def _record_norm(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._norms[parameter] = torch.linalg.vector_norm(parameter.grad)

    def _clip_factor(self) -> float:
        if not self._norms:
            return 1.0
        norm = float(torch.linalg.vector_norm(torch.stack(list(self._norms.values()))))
        return min(1.0, float(self._args.max_grad_norm) / (norm + 1e-6))

    def _weights(
        self, rows: Sequence[Tensor], items: float | None, losses: Sequence[float]
    ) -> tuple[list[Tensor], float]:
        """The ``a_i`` and ``Z_t`` by which the Trainer has in fact weighted the losses of the step.

        ``items`` is the number of labels in the step, which the Trainer gives to the model to divide its loss by. A
        model that ignores it returns the mean over each micro-batch, and the sum of these means is not divided by the
        number of micro-batches.
        """
        if items is not None and len(rows) > 1 and self._scaled_by_items is None:
            self._scaled_by_items = self._is_scaled_by_items(rows[0], items, losses)
        if items is not None and self._scaled_by_items is not False:
            return [torch.ones(len(batch)) for batch in rows], items
        divisor = 1.0 if items is not None else float(max(1, len(rows)))
        sizes = {len(batch) for batch in rows}
        if len(sizes) == 1:
            return [torch.ones(len(batch)) for batch in rows], divisor * sizes.pop()
        return [torch.full((len(batch),), 1.0 / len(batch)) for batch in rows], divisor

    def _is_scaled_by_items(self, rows: Tensor, items: float, losses: Sequence[float]) -> bool:
        if not losses or not losses[0] > 0:
            return True
        with torch.no_grad(), self._hooks.paused():
            device = next(self._model.parameters()).device
            batch = self._task.collate([self._examples[row] for row in rows.tolist()])
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            total = float(self._task.loss(self._task.outputs(self._model, batch), batch).sum())
        if not total > 0:
            return True
        # Dropout may have moved the loss a little; the two candidates lie a factor of the micro-batches apart.
        divided_by = total / losses[0]
        return abs(math.log(divided_by / items)) < abs(math.log(divided_by / len(rows)))

    def _check_gradient(self, step: Step, clip_factor: float) -> None:
        parameters = {name: parameter.requires_grad_() for name, parameter in self._parameters().items()}
        batches = collate_step(self._task, self._examples, step, next(iter(parameters.values())).device)
        with self._hooks.paused(), torch.random.fork_rng():
            if step.seed is not None:
                torch.manual_seed(step.seed)
            expected, _, _ = gradient(Objective(self._model, self._task), step, batches, parameters)
        difference, size = 0.0, 0.0
        for parameter, name in self._names.items():
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad / clip_factor
            difference += float((found - expected[name]).square().sum())
            size += float(expected[name].square().sum())
        if not difference <= TOLERANCE**2 * size:
            self._add_reason(
                "the task's gradient of the first step is not the Trainer's (relative difference "
                f"{math.sqrt(difference / max(size, 1e-30)):.2g}), so the Trainer's loss is not the task's"
            )
