"""What a replay will take, said before it starts."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from influence_engine.replay.reverse import Adjoint, reverse_step
from influence_engine.replay.states import recorded_states
from influence_engine.resources import SavedBytes, readable_bytes
from influence_engine.tasks import Example, Task
from influence_engine.training import Run
from influence_engine.training.frozen_cache import MOST_BYTES, KeptSteps
from influence_engine.training.step import training_step

_FURTHER = 4
"""Directions that a step is timed with beyond the first: with fewer, what differs is mostly chance."""


@dataclass(frozen=True)
class ReplayPlan:
    """Predictions for ``directions`` directions replayed together.

    Attributes:
        directions: How many.
        steps: Recorded steps to walk back.
        seconds: Estimated from one step that was really walked back.
        disk_bytes: Of an interrupted replay, where it is kept.
        memory_bytes: Beyond what is in use already.
    """

    directions: int
    steps: int
    seconds: float
    disk_bytes: int
    memory_bytes: int

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
    """Walks one step back to see what replaying takes; arguments as for ``replay``.

    Raises:
        RecordError, DigestMismatchError: as ``replay``.
    """
    run.require_replayable("replayed")
    kept = KeptSteps()
    recorded = recorded_states(run, task, train, kept, into=into, device=device)
    total = len(run.schedule)
    stretch = max(last - first for first, last in itertools.pairwise(run.checkpoints))

    step, (parameters, state) = run.schedule.step((total + 1) // 2), recorded.checkpoint(total)
    batches = recorded.batches(step)
    weights = recorded.weights[torch.cat(step.rows)]

    def forward() -> None:
        training_step(
            recorded.objective, run.optimizer, step, batches, parameters, state, max_grad_norm=run.max_grad_norm
        )

    def back(width: int) -> None:
        adjoint = Adjoint.of({name: one.new_ones(width, *one.shape) for name, one in parameters.items()}, state)
        reverse_step(
            recorded.objective,
            run.optimizer,
            step,
            batches,
            parameters,
            state,
            adjoint,
            weights=weights,
            max_grad_norm=run.max_grad_norm,
            at_once=1,
        )

    with SavedBytes() as graph:
        back(1)
    once, trained = _seconds(lambda: back(1)), _seconds(forward)
    further = max((_seconds(lambda: back(1 + _FURTHER)) - once) / _FURTHER, 0.1 * once)
    one = sum(tensor.nbytes for tensor in parameters.values())
    moments = sum(tensor.nbytes for tensors in state.values() for tensor in tensors.values())
    frozen = min(kept.bytes * (len(run.schedule.batch_offsets) - 1) / len(step.rows), MOST_BYTES)
    carried = directions * (one + moments)
    return ReplayPlan(
        directions=directions,
        steps=total,
        seconds=total * (trained + once + (directions - 1) * further),
        disk_bytes=carried + directions * len(recorded.examples) * 4,
        # Directions, and those carried back; the states of a stretch; a step's graph, its gradients, what its optimiser
        # does in reverse, and one direction's results.
        memory_bytes=int(directions * one + carried + stretch * (one + moments) + graph.total + 6 * one + frozen),
    )


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
