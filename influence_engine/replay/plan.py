"""What a replay will take, said before it starts."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from influence_engine.errors import RecordError
from influence_engine.replay.reverse import Adjoint, reverse_step
from influence_engine.resources import choose_device, readable_bytes
from influence_engine.tasks import Example, Task
from influence_engine.training import Run, in_recorded_order
from influence_engine.training.frozen import MOST_BYTES, FrozenSteps, KeptSteps
from influence_engine.training.step import Objective, set_dropout, training_step
from influence_engine.training.stretches import RecordedStates


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
    if not run.replayable:
        raise RecordError(f"the run in {run.folder} cannot be replayed: {run.why_not_replayable}")
    chosen = choose_device(device)
    examples = in_recorded_order(run, task, train)
    model = run.load_base(into).to(chosen)
    set_dropout(model, run.dropout)
    kept = KeptSteps()
    objective = Objective(model, task, None if run.dropout else FrozenSteps(model, run.trainable, kept))
    recorded = RecordedStates(run, examples, objective, chosen)
    total = len(run.schedule)
    stretch = max(last - first for first, last in itertools.pairwise(run.checkpoints))

    step, (parameters, state) = run.schedule.step((total + 1) // 2), recorded.checkpoint(total)
    batches = recorded.batches(step)
    weights = recorded.weights[torch.cat(step.rows)]

    def forward() -> None:
        training_step(objective, run.optimizer, step, batches, parameters, state, max_grad_norm=run.max_grad_norm)

    def back(width: int) -> None:
        adjoint = Adjoint.of({name: one.new_ones(width, *one.shape) for name, one in parameters.items()}, state)
        reverse_step(
            objective,
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

    graph = _SavedBytes()
    with torch.autograd.graph.saved_tensors_hooks(graph.count, _same):
        back(1)
    once, trained = _seconds(lambda: back(1)), _seconds(forward)
    further = max(_seconds(lambda: back(2)) - once, 0.1 * once)
    one = sum(tensor.nbytes for tensor in parameters.values())
    moments = sum(tensor.nbytes for tensors in state.values() for tensor in tensors.values())
    frozen = min(kept.bytes * (len(run.schedule.batch_offsets) - 1) / len(step.rows), MOST_BYTES)
    carried = directions * (one + moments)
    return ReplayPlan(
        directions=directions,
        steps=total,
        seconds=total * (trained + once + (directions - 1) * further),
        disk_bytes=carried + directions * len(examples) * 4,
        # Directions, and those carried back; the states of a stretch; a step's graph and one direction's results.
        memory_bytes=int(directions * one + carried + stretch * (one + moments) + graph.bytes + one + moments + frozen),
    )


class _SavedBytes:
    """Bytes of what a graph keeps, each storage counted once."""

    def __init__(self) -> None:
        self.bytes = 0
        self._seen: set[int] = set()

    def count(self, tensor: Tensor) -> Tensor:
        """Called for every tensor that is saved."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
