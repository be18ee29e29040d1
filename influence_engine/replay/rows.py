"""Exact replay: reverse differentiation through the recorded steps (Engstrom et al. 2025).

``row_k[i] = d <direction_k, theta_T> / d w_i``: by how much the final weights move along a direction when example ``i``
counts a little more at every step in which it was used. For a measurement's gradient as direction this is, to first
order, what having had the example in training did to that measurement.

Steps are executed again from one recorded checkpoint to the next, last ones first, and walked back; memory holds the
states of one such stretch, about the square root of the number of steps.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from influence_engine.digests import json_digest, weights_digest
from influence_engine.errors import SettingsError
from influence_engine.progress import Progress, silent
from influence_engine.replay.reverse import Adjoint, reverse_step
from influence_engine.replay.states import recorded_states
from influence_engine.tasks import Example, Task
from influence_engine.training import Run
from influence_engine.training.checkpoint_intervals import RecordedStates
from influence_engine.training.frozen_cache import KeptSteps
from influence_engine.training.optimizers import Parameters
from influence_engine.training.retraining_cache import SavedWork

STAGE = "replaying the recorded steps"


def replay(
    run: Run,
    task: Task,
    train: Sequence[Example],
    directions: Mapping[str, Tensor],
    *,
    keep_in: str | os.PathLike[str] | None = None,
    save_every_s: float = 60.0,
    at_once: int = 1,
    into: nn.Module | None = None,
    device: str = "auto",
    kept: KeptSteps | None = None,
    progress: Progress = silent,
) -> Tensor:
    """Exact rows of directions, ``[K, N]`` in the order of ``run.example_ids``, single precision, on the CPU.

    Args:
        run: A run that can be replayed.
        task: The one it was trained with.
        train: The examples it was trained on, in any order.
        directions: By name of each trained parameter ``[K, *shape]``.
        keep_in: A folder; an interrupted replay of the same directions goes on from there, to the same bits.
        save_every_s: Seconds of work that an interruption may cost.
        at_once: Directions of one backward pass; more take more memory.
        into: For a module that is not from ``transformers``: a freshly built one, which is filled.
        device: Where to replay.
        kept: Outputs of frozen layers, shared by several replays and retrainings of the run on one device.
        progress: Told of every step.

    Raises:
        RecordError: the run cannot be replayed; the message says why.
        DigestMismatchError: task, data or base model are not the recorded ones, or a library has changed the steps;
            the message names the first step that differs.
        SettingsError: the directions are not of the trained parameters.
    """
    run.require_replayable("replayed")
    _check(run, directions)
    player = _Player(recorded_states(run, task, train, kept or KeptSteps(), into=into, device=device))
    saved = None if keep_in is None else _Saved(Path(keep_in), run, directions, save_every_s)
    return player.rows({name: tensor.float() for name, tensor in directions.items()}, at_once, saved, progress)


class _Player:
    def __init__(self, recorded: RecordedStates) -> None:
        self.recorded, self.run, self.device = recorded, recorded.run, recorded.device

    def rows(self, directions: Parameters, at_once: int, saved: _Saved | None, progress: Progress) -> Tensor:
        total = len(self.run.schedule)
        end = self.recorded.checkpoint(total)
        begun = Adjoint.of({name: directions[name].to(self.device) for name in end[0]}, end[1])
        rows = torch.zeros(begun.width, len(self.recorded.examples))
        adjoint, done = begun, total
        if saved is not None:
            rows, adjoint, done = saved.read(rows, begun, total, self.device)
        progress(STAGE, total - done, total)
        for first, last in self.recorded.stretches():
            if last > done:
                continue
            states = self.recorded.between(first, last)
            for number in range(last, first, -1):
                step = self.run.schedule.step(number)
                uses = torch.cat(step.rows)
                parameters, state = states.pop()
                found = reverse_step(
                    self.recorded.objective,
                    self.run.optimizer,
                    step,
                    self.recorded.batches(step),
                    parameters,
                    state,
                    adjoint,
                    weights=self.recorded.weights[uses],
                    max_grad_norm=self.run.max_grad_norm,
                    at_once=at_once,
                )
                rows.index_add_(1, uses, found.cpu())
                progress(STAGE, total - number + 1, total)
            if saved is not None and first and saved.due():
                saved.write(rows, adjoint, first)
        if saved is not None:
            saved.write(rows, adjoint, 0)
        return rows


class _Saved(SavedWork):
    """An unfinished replay, or a finished one, on disk."""

    def __init__(self, folder: Path, run: Run, directions: Mapping[str, Tensor], every_s: float) -> None:
        key = json_digest({"files": run.manifest["files"], "directions": weights_digest(directions)})
        super().__init__(folder / f"replay-{key[:32]}.safetensors", every_s)

    def read(self, rows: Tensor, adjoint: Adjoint, total: int, device: torch.device) -> tuple[Tensor, Adjoint, int]:
        """Rows so far, adjoint, and the step before which to go on."""
        if not self.path.is_file():
            return rows, adjoint, total
        found = load_file(self.path)
        done = int(found["done"])
        if not done:
            return found["rows"], adjoint, 0
        tensors = [found[f"adjoint/{number}"].to(device) for number in range(len(adjoint.tensors()))]
        return found["rows"], adjoint.like(tensors), done

    def write(self, rows: Tensor, adjoint: Adjoint, done: int) -> None:
        """Keeps it; of a finished one only the rows."""
        parts = adjoint.tensors() if done else []
        self.keep({"rows": rows} | {f"adjoint/{number}": part for number, part in enumerate(parts)}, done)


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
