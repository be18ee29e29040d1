"""The states of a recorded run between two of its checkpoints, recomputed and compared with the record.

Whatever walks back through a training goes from one checkpoint to the one before: memory holds the states of one such
stretch, about the square root of the number of steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from influence_engine.errors import DigestMismatchError
from influence_engine.tasks import Batch, Example
from influence_engine.training.execution import collate_step, weights_by_row
from influence_engine.training.optimizers import OptimizerState, Parameters
from influence_engine.training.record import Run
from influence_engine.training.schedule import Step
from influence_engine.training.step import Objective, training_step

LOSS_TOLERANCE = 1e-4
"""Relative difference of a step's loss from the recorded one above which it is another step."""

STATE_TOLERANCE = 1e-3
"""Distance from the next checkpoint, relative to the way from the last one, above which something has changed."""

State = tuple[Parameters, OptimizerState]
"""Trained parameters and the optimiser's state."""


class RecordedStates:
    """Recomputes what each step of a run started from.

    Args:
        run: A run that can be replayed.
        examples: Its training examples, in the recorded order.
        objective: A model of the run (its trained parameters are handed in) and its task.
        device: Where the objective's model is.

    Attributes:
        weights: The recorded ``w_i``, ``[N]``.
        schedule: The steps, as recorded unless they are put in smaller micro-batches.
    """

    def __init__(self, run: Run, examples: Sequence[Example], objective: Objective, device: torch.device) -> None:
        self.run, self.examples, self.objective, self.device = run, examples, objective, device
        found = weights_by_row(run.example_ids, run.weights)
        self.weights: Tensor = torch.ones(len(examples)) if found is None else found
        self.schedule = run.schedule

    def stretches(self) -> list[tuple[int, int]]:
        """Each checkpoint with the next one, by their steps; the last ones first."""
        return list(itertools.pairwise(self.run.checkpoints))[::-1]

    def batches(self, step: Step) -> list[Batch]:
        """The micro-batches of a step."""
        return collate_step(self.objective.task, self.examples, step, self.device)

    def checkpoint(self, step: int) -> State:
        """The recorded state after a step, on the device; after step 0 the optimiser's initial one."""
        parameters, state = self.run.checkpoint(step)
        on_device = {name: parameters[name].to(self.device) for name in self.run.trainable}
        if not step:
            return on_device, self.run.optimizer.initial_state(on_device)
        return on_device, {
            kind: {name: tensors[name].to(self.device) for name in self.run.trainable}
            for kind, tensors in state.items()
        }

    def between(self, first: int, last: int) -> list[State]:
        """What each of the steps ``first + 1 .. last`` starts from, for two checkpoints that follow each other.

        Raises:
            DigestMismatchError: the steps do not come out as recorded; the message names the first that differs.
        """
        parameters, state = start = self.checkpoint(first)
        states = []
        for number in range(first + 1, last + 1):
            states.append((parameters, state))
            step = self.schedule.step(number)
            result = training_step(
                self.objective,
                self.run.optimizer,
                step,
                self.batches(step),
                parameters,
                state,
                weights=self.weights,
                max_grad_norm=self.run.max_grad_norm,
            )
            check_loss(self.run, number, float(result.loss))
            parameters, state = result.parameters, result.state
        self._check_end(start[0], parameters, first, last)
        return states

    def _check_end(self, start: Parameters, found: Parameters, first: int, last: int) -> None:
        recorded = self.checkpoint(last)[0]
        gap = _distance(found, recorded)
        way = _distance(start, recorded)
        if gap > STATE_TOLERANCE * way:
            raise DigestMismatchError(
                f"the steps {first + 1} to {last} of the run in {self.run.folder} do not lead to the recorded weights: "
                f"they end {gap / max(way, 1e-30):.1%} of their way apart. A library (torch, transformers) has "
                "changed, or the machine computes differently",
                field=f"step {first + 1}",
            )


def check_loss(run: Run, number: int, found: float) -> None:
    """Refuses a step whose loss is not the recorded one.

    Raises:
        DigestMismatchError: it is not; the message names the step.
    """
    recorded = float(run.losses[number - 1])
    if recorded == recorded and abs(found - recorded) > LOSS_TOLERANCE * max(1.0, abs(recorded)):
        raise DigestMismatchError(
            f"step {number} of the run in {run.folder} does not come out as recorded: its loss is {found:.6g}, "
            f"recorded is {recorded:.6g}. The base model, the data or a library (torch, transformers) is not the one "
            "it was recorded with",
            field=f"step {number}",
        )


def _distance(one: Parameters, other: Parameters) -> float:
    return float(sum(float((one[name] - other[name]).double().pow(2).sum()) for name in one)) ** 0.5
