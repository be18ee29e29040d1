"""The recorded states that a replay walks back through, with the model that they belong to."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from influence_engine.resources import choose_device
from influence_engine.tasks import Example, Task
from influence_engine.training import Run, in_recorded_order
from influence_engine.training.checkpoint_intervals import RecordedStates
from influence_engine.training.frozen_cache import FrozenSteps, KeptSteps
from influence_engine.training.step import Objective, set_dropout


def recorded_states(
    run: Run,
    task: Task,
    train: Sequence[Example],
    kept: KeptSteps,
    *,
    into: nn.Module | None = None,
    device: str = "auto",
) -> RecordedStates:
    """The states of a run whose base model is loaded for it.

    Args:
        run: A run that can be replayed.
        task: The one it was trained with.
        train: The examples it was trained on, in any order.
        kept: Outputs of frozen layers; unused where there is dropout.
        into: For a module that is not from ``transformers``: a freshly built one, which is filled.
        device: Where to execute.

    Raises:
        DigestMismatchError: task or data are not the recorded ones.
    """
    chosen, examples = choose_device(device), in_recorded_order(run, task, train)
    model = run.load_base(into).to(chosen)
    set_dropout(model, run.dropout)
    frozen = None if run.dropout else FrozenSteps(model, run.trainable, kept)
    return RecordedStates(run, examples, Objective(model, task, frozen, first_position=run.first_position), chosen)
