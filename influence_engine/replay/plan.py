"""Predicts time, memory and disk of a replay before it starts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from influence_engine.replay.reverse import Adjoint, reverse_step
from influence_engine.resources import SavedBytes, readable_bytes
from influence_engine.tasks import Example, Task
from influence_engine.training import RecordedTraining, Run
from influence_engine.training.checkpoint_intervals import RecordedStates
from influence_engine.training.frozen_cache import MAX_BYTES, FrozenCache
from influence_engine.training.step import training_step

_FURTHER = 4
"""Directions beyond the first with which a step is timed: with fewer, the difference is mostly noise."""


@dataclass(frozen=True)
class ReplayPlan:
    """Predicted cost of replaying directions together.

    Attributes:
        directions: Number of directions.
        steps: Number of recorded steps.
        seconds: Estimated from one step that was timed in reverse.
        seconds_a_direction: What each direction beyond the first adds to that.
        disk_bytes: Of an interrupted replay, where ``keep_in`` is given.
        memory_bytes: Beyond the memory that is in use already.
    """

    directions: int
    steps: int
    seconds: float
    seconds_a_direction: float
    disk_bytes: int
    memory_bytes: int

    def within(self, seconds: float, fewest: int) -> int:
        """How many of the directions can be replayed in so many seconds; 0 where ``fewest`` of them cannot."""
        beyond = (seconds - self.seconds) / max(self.seconds_a_direction, 1e-9)
        fitting = self.directions + min(math.floor(beyond), 0)
        return fitting if fitting >= fewest else 0

    def __str__(self) -> str:
        return (
            f"{self.directions} directions over {self.steps} steps: about {self.seconds:.0f} s, "
            f"{readable_bytes(self.memory_bytes)} of memory (estimated)"
        )


def plan_replay(
    run: Run,
    task: Task,
    train: Sequence[Example],
    directions: int,
    *,
    into: nn.Module | None = None,
    device: str = "auto",
) -> ReplayPlan:
    """Times one recorded step in reverse and predicts the cost of a replay.

    Args:
        run: A run that can be replayed.
        task: The task that the run was trained with.
        train: The examples that the run was trained on, in any order.
        directions: Number of directions.
        into: For a model that is not from ``transformers``: a freshly built module, which is filled.
        device: Where to replay; ``"auto"`` is the GPU if there is one.

    Raises:
        RecordError: the run cannot be replayed; the message says why.
        DigestMismatchError: task, tokenizer or data are not the recorded ones.
    """
    run.require_replayable("replayed")
    cache = FrozenCache()
    training = RecordedTraining.load(run, task, train, into=into, device=device)
    recorded = RecordedStates(training, training.update_rule(cache))
    total = len(run.schedule)
    interval = max(last - first for first, last in recorded.intervals())

    step, end = run.schedule.step((total + 1) // 2), recorded.checkpoint(total)
    parameters, state = end
    batches = recorded.batches(step)
    weights = recorded.weights[torch.cat(step.rows)]

    def forward() -> None:
        training_step(recorded.rule, step, batches, end)

    def back(width: int) -> None:
        adjoint = Adjoint.of({name: one.new_ones(width, *one.shape) for name, one in parameters.items()}, state)
        reverse_step(recorded.rule, step, batches, end, adjoint, weights=weights, at_once=1)

    with SavedBytes() as graph:
        back(1)
    once, trained = _seconds(lambda: back(1)), _seconds(forward)
    further = max((_seconds(lambda: back(1 + _FURTHER)) - once) / _FURTHER, 0.1 * once)
    one = sum(tensor.nbytes for tensor in parameters.values())
    moments = sum(tensor.nbytes for tensors in state.values() for tensor in tensors.values())
    frozen = min(cache.bytes * (len(run.schedule.batch_offsets) - 1) / len(step.rows), MAX_BYTES)
    carried = directions * (one + moments)
    return ReplayPlan(
        directions=directions,
        steps=total,
        seconds=total * (trained + once + (directions - 1) * further),
        seconds_a_direction=total * further,
        disk_bytes=carried + directions * len(training.examples) * 4,
        # The directions and the adjoint; the states of a checkpoint interval; a step's graph, its gradients, the
        # optimiser's adjoint, and one direction's results.
        memory_bytes=int(directions * one + carried + interval * (one + moments) + graph.total + 6 * one + frozen),
    )


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
