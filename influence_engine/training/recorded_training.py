"""A recorded run together with what executing or replaying its steps takes: task, examples in order, model, device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from influence_engine.errors import DigestMismatchError
from influence_engine.resources import choose_device
from influence_engine.tasks import Batch, Example, Task
from influence_engine.training.execution import collate_step, weights_by_row
from influence_engine.training.frozen_cache import FrozenCache, FrozenLayers
from influence_engine.training.identity import first_difference
from influence_engine.training.optimizers import TrainingState
from influence_engine.training.record import Run
from influence_engine.training.schedule import Step
from influence_engine.training.step import Objective, UpdateRule, set_dropout, trained_parameters


@dataclass(frozen=True)
class RecordedTraining:
    """What executing the steps of a recorded run takes.

    Attributes:
        run: A run that can be replayed.
        task: The task that the run was trained with.
        examples: The run's training examples in recorded order, so that ``run.schedule.rows`` are rows of it.
        model: A model of the run, on ``device``. The trained parameters of every step are handed in from outside.
        device: Where to execute.
    """

    run: Run
    task: Task
    examples: Sequence[Example]
    model: nn.Module
    device: torch.device

    @classmethod
    def load(
        cls,
        run: Run,
        task: Task,
        train: Sequence[Example],
        *,
        into: nn.Module | None = None,
        device: str = "auto",
    ) -> RecordedTraining:
        """Puts the examples in recorded order and loads the model before the first step.

        Args:
            run: A run that can be replayed.
            task: The task that the run was trained with.
            train: The examples that the run was trained on, in any order.
            into: For a model that is not from ``transformers``: a freshly built module, which is filled.
            device: Where to execute; ``"auto"`` is the GPU if there is one.

        Raises:
            DigestMismatchError: task, tokenizer or data are not the recorded ones; the message says which.
        """
        chosen, examples = choose_device(device), in_recorded_order(run, task, train)
        return cls(run, task, examples, run.load_base(into).to(chosen), chosen)

    @property
    def weights(self) -> Tensor:
        """The recorded ``w_i``, ``[N]``."""
        found = weights_by_row(self.run.example_ids, self.run.weights)
        return torch.ones(len(self.run.example_ids)) if found is None else found

    def update_rule(self, cache: FrozenCache | None = None) -> UpdateRule:
        """The recorded objective, optimiser and clipping; puts the model into the mode in which the steps ran.

        Args:
            cache: For the outputs of frozen layers; unused where there was dropout.
        """
        set_dropout(self.model, self.run.dropout)
        frozen = None if cache is None or self.run.dropout else FrozenLayers(self.model, self.run.trainable, cache)
        objective = Objective(self.model, self.task, frozen, first_position=self.run.first_position)
        return UpdateRule(objective, self.run.optimizer, self.run.max_grad_norm)

    def initial_state(self) -> TrainingState:
        """The model's trained parameters and a fresh optimiser state: what the first step starts from."""
        parameters = trained_parameters(self.model, self.run.trainable)
        return TrainingState(parameters, self.run.optimizer.initial_state(parameters))

    def batches(self, step: Step) -> list[Batch]:
        """The collated micro-batches of a step."""
        return collate_step(self.task, self.examples, step, self.device)


def in_recorded_order(run: Run, task: Task, train: Sequence[Example]) -> list[Example]:
    """The examples of a run in recorded order, so that ``run.schedule.rows`` are rows of the result.

    Raises:
        DigestMismatchError: task, tokenizer or data are not the recorded ones; the message says which.
    """
    different = first_difference(run.digests, task, train)
    if different is not None:
        what, digest, recorded = different
        raise DigestMismatchError(
            f"the {what} given is not that of the run in {run.folder}: its digest is {digest}, recorded is {recorded}",
            field=what,
        )
    by_id = {example["example_id"]: example for example in train}
    return [by_id[example_id] for example_id in run.example_ids]
