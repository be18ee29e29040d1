"""Predicts time, memory and disk of training again with a change, from a few recorded steps that are executed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import nn

from influence_engine.counterfactual.tangent import NODES
from influence_engine.resources import SavedBytes, peak_memory
from influence_engine.tasks import Example, Task
from influence_engine.training import RecordedTraining, Run
from influence_engine.training.step import Objective, trained_parameters, training_step

PROBED_STEPS = 4
"""Recorded steps that a prediction executes."""

DERIVATIVE = 2.5
"""Time of a pass of ``first_order`` over that of a training, and memory of its activations over a training's."""


@dataclass(frozen=True)
class Cost:
    """Time, memory and disk that measuring one change takes.

    Attributes:
        steps: Optimiser steps of one training.
        seconds: Time of a training with the change.
        control_seconds: Time of the recorded steps without a change, which each machine executes once.
        replay_seconds: Time of a prediction by ``first_order``, where that is asked for.
        memory_bytes: The most that this process will hold.
        disk_bytes: Disk for the cached parameters, or for an unfinished retraining.
    """

    steps: int
    seconds: float
    control_seconds: float
    replay_seconds: float
    memory_bytes: int
    disk_bytes: int


def predict_cost(
    run: Run,
    task: Task,
    train: Sequence[Example],
    *,
    replay: bool = False,
    into: nn.Module | None = None,
    device: str = "auto",
) -> Cost:
    """Executes a few recorded steps and predicts time, memory and disk of ``measure``.

    Args:
        run: A run that can be replayed.
        task: The task that the run was trained with.
        train: The examples that the run was trained on, in any order.
        replay: Whether ``first_order`` predicts, too.
        into: For a model that is not from ``transformers``: a freshly built module, which is filled.
        device: Where the training will be.

    Raises:
        RecordError: the run cannot be replayed; the message says why.
        DigestMismatchError: task, tokenizer or data are not the recorded ones.
    """
    run.require_replayable()
    held = psutil.Process().memory_info().rss
    training = RecordedTraining.load(run, task, train, into=into, device=device)
    rule, model, state = training.update_rule(), training.model, training.initial_state()
    seconds = []
    total = len(run.schedule)
    for number in range(1, min(PROBED_STEPS, total) + 1):
        begun = time.perf_counter()
        step = run.schedule.step(number)
        state = training_step(rule, step, training.batches(step), state).state
        seconds.append(time.perf_counter() - begun)
    each = statistics.median(seconds[1:] or seconds)
    activations = _activations(training, rule.objective)
    model_bytes = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    trained = sum(tensor.nbytes for tensor in state.parameters.values())
    kinds = len(state.optimizer_state)
    # The model that measures and the one that trains; parameters, moments, their successors and a gradient.
    need = 2 * model_bytes + trained * (3 + 2 * kinds) + activations
    if replay:
        need += trained * (3 + 2 * kinds) + int((DERIVATIVE - 1) * activations)
    return Cost(
        steps=total,
        seconds=each * total,
        control_seconds=each * total,
        replay_seconds=len(NODES) * DERIVATIVE * each * total if replay else 0.0,
        memory_bytes=max(held + need, peak_memory()),
        disk_bytes=2 * trained * (1 + kinds),
    )


def _activations(training: RecordedTraining, objective: Objective) -> int:
    """Bytes that autograd saves for the backward pass of the largest micro-batch."""
    run, examples = training.run, training.examples
    sizes = [
        (max(len(str(examples[row])) for row in rows.tolist()) * len(rows), step.number, place)
        for step in run.schedule.steps()
        for place, rows in enumerate(step.rows)
    ]
    _, number, place = max(sizes)
    step = run.schedule.step(number)
    batch = training.batches(step)[place]
    parameters = {
        name: one.requires_grad_() for name, one in trained_parameters(objective.model, run.trainable).items()
    }
    with SavedBytes(beside=[*objective.model.parameters(), *parameters.values()]) as saved:
        objective.evaluate(parameters, batch, torch.ones(len(step.rows[place])))
    return saved.total
