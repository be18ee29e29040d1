"""The states of a recorded run between two of its checkpoints, recomputed and compared with the record.

Whatever goes back through a training takes one checkpoint interval after the other, the last one first: memory holds
the states of one interval, about the square root of the number of steps (rematerialisation with evenly spaced
checkpoints).
"""

from __future__ import annotations

import itertools

from torch import Tensor

from influence_engine.errors import DigestMismatchError
from influence_engine.tasks import Batch
from influence_engine.training.optimizers import Parameters, TrainingState
from influence_engine.training.record import Run
from influence_engine.training.recorded_training import RecordedTraining
from influence_engine.training.schedule import Schedule, Step
from influence_engine.training.step import UpdateRule, training_step

LOSS_TOLERANCE = 1e-4
"""Relative difference of a step's loss from the recorded one above which the step is not the recorded one."""

STATE_TOLERANCE = 1e-3
"""Distance of the recomputed weights from the checkpoint at an interval's end, relative to the interval's recorded
displacement, above which the steps are not the recorded ones."""


class RecordedStates:
    """Recomputes the state that each step of a run started from.

    Args:
        training: The recorded training.
        rule: Its ``update_rule``.

    Attributes:
        weights: The recorded ``w_i``, ``[N]``.
        schedule: The steps, as recorded unless a caller puts them in smaller micro-batches.
    """

    def __init__(self, training: RecordedTraining, rule: UpdateRule) -> None:
        self.training, self.rule = training, rule
        self.weights: Tensor = training.weights
        self.schedule: Schedule = training.run.schedule

    def intervals(self) -> list[tuple[int, int]]:
        """The checkpoint intervals as pairs of steps ``(first, last)``, the last interval first."""
        return list(itertools.pairwise(self.training.run.checkpoints))[::-1]

    def batches(self, step: Step) -> list[Batch]:
        """The collated micro-batches of a step."""
        return self.training.batches(step)

    def checkpoint(self, step: int) -> TrainingState:
        """The recorded state after a step, on the device; after step 0 with the optimiser's initial state."""
        run, device = self.training.run, self.training.device
        parameters, state = run.checkpoint(step)
        on_device = {name: parameters[name].to(device) for name in run.trainable}
        if not step:
            return TrainingState(on_device, run.optimizer.initial_state(on_device))
        return TrainingState(
            on_device,
            {kind: {name: tensors[name].to(device) for name in run.trainable} for kind, tensors in state.items()},
        )

    def between(self, first: int, last: int) -> list[TrainingState]:
        """The states before each of the steps ``first + 1 .. last`` of a checkpoint interval.

        Raises:
            DigestMismatchError: the steps do not come out as recorded; the message names the first that differs.
        """
        state = start = self.checkpoint(first)
        states = []
        for number in range(first + 1, last + 1):
            states.append(state)
            step = self.schedule.step(number)
            result = training_step(self.rule, step, self.batches(step), state, weights=self.weights)
            check_loss(self.training.run, number, float(result.loss))
            state = result.state
        self._check_end(start.parameters, state.parameters, first, last)
        return states

    def _check_end(self, start: Parameters, found: Parameters, first: int, last: int) -> None:
        recorded = self.checkpoint(last).parameters
        gap = _distance(found, recorded)
        displacement = _distance(start, recorded)
        if gap > STATE_TOLERANCE * displacement:
            raise DigestMismatchError(
                f"the steps {first + 1} to {last} of the run in {self.training.run.folder} do not lead to the recorded "
                f"weights: they end {gap / max(displacement, 1e-30):.1%} of the steps' displacement apart. A library "
                "(torch, transformers) has changed, or the machine computes differently",
                field=f"step {first + 1}",
            )


def check_loss(run: Run, number: int, found: float) -> None:
    """Refuses a step whose loss is not the recorded one.

    Raises:
        DigestMismatchError: it is not; the message names the step.
    """
    recorded = float(run.losses[number - 1])
    # A loss that is NaN was not recorded.
    if recorded == recorded and abs(found - recorded) > LOSS_TOLERANCE * max(1.0, abs(recorded)):
        raise DigestMismatchError(
            f"step {number} of the run in {run.folder} does not come out as recorded: its loss is {found:.6g}, "
            f"recorded is {recorded:.6g}. The base model, the data or a library (torch, transformers) is not the one "
            "it was recorded with",
            field=f"step {number}",
        )


def _distance(one: Parameters, other: Parameters) -> float:
    return float(sum(float((one[name] - other[name]).double().pow(2).sum()) for name in one)) ** 0.5
