"""Exact replay: reverse differentiation through the recorded steps.

``row_k[i] = d <direction_k, theta_T> / d w_i``: the displacement of the final weights along a direction, per change of
the weight of example ``i`` at every step in which it was used. With a measurement's gradient as direction, this is the
first-order effect of example ``i`` on that measurement: MAGIC (Ilyas and Engstrom 2025, arXiv 2504.16430), whose
derivative is a metagradient with respect to the data weights at ``w = 1`` (or, here, at the recorded weights), computed
by the step-wise adjoint recursion of REPLAY (Engstrom et al. 2025, arXiv 2503.13751).

The states that the recursion needs in reverse are executed again from one recorded checkpoint to the next. This module
differs from REPLAY there: the run's checkpoints are about the square root of ``T`` on disk, so memory holds about
``sqrt(T)`` states and every step is executed once more, where REPLAY's lazy k-ary tree holds ``O(k log_k T)`` states
and executes steps several times.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

import torch
from safetensors.torch import load_file
from torch import Tensor

from influence_engine.digests import json_digest, weights_digest
from influence_engine.errors import SettingsError
from influence_engine.options import with_defaults
from influence_engine.progress import Progress
from influence_engine.replay.reverse import Adjoint, reverse_step
from influence_engine.tasks import Example, Task
from influence_engine.training import RecordedTraining, Run
from influence_engine.training.checkpoint_intervals import RecordedStates
from influence_engine.training.execution_options import EXECUTION_DEFAULTS, RENAMED, ExecutionOptions
from influence_engine.training.frozen_cache import FrozenCache
from influence_engine.training.optimizers import Parameters
from influence_engine.training.retraining_cache import WorkCheckpoint

STAGE = "replaying the recorded steps"

REPLAY_DEFAULTS: ExecutionOptions = {**EXECUTION_DEFAULTS, "save_every_s": 60.0}


def replay(
    run: Run,
    task: Task,
    train: Sequence[Example],
    directions: Mapping[str, Tensor],
    *,
    at_once: int = 1,
    **options: Unpack[ExecutionOptions],
) -> Tensor:
    """Exact rows of directions, ``[K, N]`` in the order of ``run.example_ids``, single precision, on the CPU.

    Args:
        run: A run that can be replayed.
        task: The task that the run was trained with.
        train: The examples that the run was trained on, in any order.
        directions: By name of each trained parameter ``[K, *shape]``.
        at_once: Directions in one backward pass; more take more memory.
        options: ``ExecutionOptions``; ``save_every_s`` is 60 by default.

    Raises:
        RecordError: the run cannot be replayed; the message says why.
        DigestMismatchError: task, data or base model are not the recorded ones, or a library has changed the steps;
            the message names the first step that differs.
        SettingsError: the directions are not of the trained parameters.
        TypeError: an option is unknown.
    """
    chosen = with_defaults(replay, REPLAY_DEFAULTS, options, renamed=RENAMED)
    run.require_replayable("replayed")
    _check(run, directions)
    training = RecordedTraining.load(run, task, train, into=chosen["into"], device=chosen["device"])
    states = RecordedStates(training, training.update_rule(chosen["frozen_cache"] or FrozenCache()))
    checkpoint = None
    if chosen["keep_in"] is not None:
        checkpoint = _ReplayCheckpoint(chosen["keep_in"], run, directions, chosen["save_every_s"])
    single = {name: tensor.float() for name, tensor in directions.items()}
    return _rows(states, single, at_once, checkpoint, chosen["progress"])


def _rows(
    states: RecordedStates,
    directions: Parameters,
    at_once: int,
    checkpoint: _ReplayCheckpoint | None,
    progress: Progress,
) -> Tensor:
    training = states.training
    total = len(training.run.schedule)
    end = states.checkpoint(total)
    last_adjoint = Adjoint.of(
        {name: directions[name].to(training.device) for name in end.parameters}, end.optimizer_state
    )
    rows = torch.zeros(last_adjoint.width, len(training.examples))
    adjoint, remaining = last_adjoint, total
    if checkpoint is not None:
        rows, adjoint, remaining = checkpoint.read(rows, last_adjoint, total, training.device)
    progress(STAGE, total - remaining, total)
    for first, last in states.intervals():
        if last > remaining:
            continue
        interval = states.between(first, last)
        for number in range(last, first, -1):
            step = training.run.schedule.step(number)
            uses = torch.cat(step.rows)
            found = reverse_step(
                states.rule,
                step,
                states.batches(step),
                interval.pop(),
                adjoint,
                weights=states.weights[uses],
                at_once=at_once,
            )
            rows.index_add_(1, uses, found.cpu())
            progress(STAGE, total - number + 1, total)
        if checkpoint is not None and first and checkpoint.due():
            checkpoint.write(rows, adjoint, first)
    if checkpoint is not None:
        checkpoint.write(rows, adjoint, 0)
    return rows


class _ReplayCheckpoint(WorkCheckpoint):
    """An unfinished or finished replay of a run along certain directions, on disk."""

    def __init__(
        self, folder: str | os.PathLike[str], run: Run, directions: Mapping[str, Tensor], every_s: float
    ) -> None:
        key = json_digest({"files": run.manifest["files"], "directions": weights_digest(directions)})
        super().__init__(Path(folder) / f"replay-{key[:32]}.safetensors", every_s)

    def read(self, rows: Tensor, adjoint: Adjoint, total: int, device: torch.device) -> tuple[Tensor, Adjoint, int]:
        """Rows so far, adjoint, and the number of steps that remain; without a file what was given."""
        if not self.path.is_file():
            return rows, adjoint, total
        found = load_file(self.path)
        remaining = int(found["done"])
        if not remaining:
            return found["rows"], adjoint, 0
        tensors = [found[f"adjoint/{number}"].to(device) for number in range(len(adjoint.tensors()))]
        return found["rows"], adjoint.like(tensors), remaining

    def write(self, rows: Tensor, adjoint: Adjoint, remaining: int) -> None:
        """Writes rows and adjoint; of a finished replay (no step remains) only the rows."""
        parts = adjoint.tensors() if remaining else []
        # The key on disk is ``done``: the step up to which the recursion has come from the last one back.
        self.write_tensors({"rows": rows} | {f"adjoint/{n}": part for n, part in enumerate(parts)}, remaining)


def _check(run: Run, directions: Mapping[str, Tensor]) -> None:
    missing = sorted(set(run.trainable) ^ set(directions))
    if missing:
        raise SettingsError(
            f"directions must have every trained parameter of the run and no other; {missing[0]!r} is only in one of "
            "them",
            field="directions",
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in run.checkpoint(0)[0].items()}
    widths = {tensor.shape[0] for tensor in directions.values()}
    wrong = [name for name, tensor in directions.items() if tuple(tensor.shape[1:]) != shapes[name]]
    if wrong or len(widths) != 1 or not min(widths):
        name = wrong[0] if wrong else min(directions, key=lambda one: directions[one].shape[0])
        raise SettingsError(
            f"the direction of {name!r} has shape {tuple(directions[name].shape)}; it must be [K, "
            f"{', '.join(map(str, shapes[name]))}] with the same K of at least 1 for all parameters",
            field="directions",
        )
