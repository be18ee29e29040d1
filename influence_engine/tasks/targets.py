"""What is explained, chosen once: by the request, or by what the served model predicts.

A task that is no ``TargetTask`` keeps its targets in ``batch["labels"]``: whole numbers of the shape of its outputs
without their last dimension, ``NO_TARGET`` where a query names none, other negative numbers (``-100``) where there is
nothing to say. What a task keeps elsewhere is measured as its batch says, whatever the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from influence_engine.errors import InputError
from influence_engine.tasks.capabilities import fields_of, labels_of, target_name
from influence_engine.tasks.contract import Batch, ChoosingTask, Example, Target, TargetTask, Task
from influence_engine.tasks.fields import target_field

LABELS = "labels"
"""The key of a batch that holds targets."""

NO_TARGET = -1
"""In ``batch["labels"]``: this example names no target, so the model's own prediction is it."""


def choose_targets(task: Task, outputs: Tensor, batch: Batch) -> Batch:
    """The batch with a target for every example, so that other models are measured on the same.

    Args:
        task: The batch's task.
        outputs: Of the model whose prediction counts where an example names no target.
        batch: What ``task.collate`` made.

    Raises:
        InputError: an example names no target, and there is no telling what was predicted.
    """
    if isinstance(task, TargetTask):
        return task.choose_targets(outputs.detach(), batch)
    labels = _class_labels(batch, outputs)
    if labels is None:
        return batch
    if labels.dim() == 1:
        unnamed = labels < 0
    else:
        unnamed = labels == NO_TARGET
        known = ((labels >= 0) | unnamed).flatten(1).any(1)
        if not bool(known.all()):
            number = int((~known).nonzero()[0])
            raise InputError(
                f"query {number} names no target, and {type(task).__name__} has no choose_targets to say what the "
                "model predicted: name the target, or give the task that method",
                field="target",
            )
    if not bool(unnamed.any()):
        return batch
    return {**batch, LABELS: torch.where(unnamed, outputs.detach().argmax(-1), labels)}


def with_targets(task: Task, model: nn.Module, batch: Batch) -> Batch:
    """The batch with the model's own prediction as the target where an example names none.

    The model runs only where an example of the batch needs it; what a ``TargetTask`` needs that is no ``ChoosingTask``
    is not known, and so it always runs.

    Args:
        task: The batch's task.
        model: Whose prediction counts, in evaluation mode.
        batch: What ``task.collate`` made, on the model's device.

    Raises:
        InputError: as ``choose_targets``.
    """
    if not _needs_choice(task, batch):
        return batch
    with torch.no_grad():
        return choose_targets(task, task.outputs(model, batch), batch)


def targets_of(task: Task, batch: Batch) -> list[Target | None]:
    """What is explained for each example of a batch whose targets are chosen; ``None`` where the task cannot say."""
    if isinstance(task, TargetTask):
        return list(task.targets(batch))
    names, labels = labels_of(task), batch.get(LABELS)
    if names is None or labels is None or labels.dim() != 1 or labels.is_floating_point():
        return [None] * len(next(iter(batch.values())))
    return [str(names[number]) for number in labels.tolist()]


def aim(task: Task, example: Example, target: Target) -> dict[str, Any]:
    """The query with ``target`` as what is to be explained, whatever the model predicts.

    Raises:
        InputError: there is no such target, or the task knows none.
    """
    if isinstance(task, TargetTask):
        return dict(task.aim(example, target))
    names = labels_of(task)
    name = target.get("label") if isinstance(target, dict) else target
    if names is not None and name not in names:
        known = ", ".join(repr(one) for one in names)
        raise InputError(f"unknown label {name!r}; the labels are {known}", field="target")
    aimed = {**example, target_name(task): name}
    if target_field(fields_of(task)) is None and _same(task.collate([example]), task.collate([aimed])):
        raise InputError(f"{type(task).__name__} has no target to name: it explains what it measures", field="target")
    return aimed


def without_targets(task: Task, examples: Sequence[Example]) -> list[Example]:
    """The examples as queries that name no target, to be measured on what a model predicts."""
    name = target_name(task)
    return [{key: value for key, value in example.items() if key != name} for example in examples]


def measured_gradient(task: Task, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Measurements ``[B]`` of a batch whose targets are chosen, and their gradient at the outputs.

    Args:
        task: The batch's task.
        outputs: With their graph, which is kept.
        batch: Its targets are chosen.

    Raises:
        InputError: a measurement does not depend on the outputs, so there is nothing to explain.
    """
    measured = task.measurement(outputs, batch)
    direction = torch.zeros_like(outputs)
    if measured.requires_grad:
        found = torch.autograd.grad(measured.sum(), outputs, retain_graph=True, allow_unused=True)[0]
        direction = direction if found is None else found
    constant = ~direction.flatten(1).any(1)
    if bool(constant.any()):
        number = int(constant.nonzero()[0])
        raise InputError(
            f"query {number} cannot be measured: its measurement ({measured[number].item():.4g}) does not depend on "
            "the model's outputs. Name what is to be explained",
            field="target",
        )
    return measured.detach(), direction


def _needs_choice(task: Task, batch: Batch) -> bool:
    if isinstance(task, ChoosingTask):
        return bool(task.needs_choice(batch).any())
    if isinstance(task, TargetTask):
        return True
    labels = batch.get(LABELS)
    if labels is None or labels.is_floating_point():
        return False
    rows = labels.reshape(len(labels), -1)
    # Whether these are labels by class is known from the outputs alone; without negative ones it does not matter.
    return bool(((rows == NO_TARGET).any(1) | (rows < 0).all(1)).any())


def _same(one: Batch, other: Batch) -> bool:
    return set(one) == set(other) and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def _class_labels(batch: Batch, outputs: Tensor) -> Tensor | None:
    labels = batch.get(LABELS)
    if labels is None or labels.is_floating_point() or labels.dim() != outputs.dim() - 1:
        return None
    return labels if labels.shape == outputs.shape[:-1] else None
