"""The contract between a user's model and everything in this package.

A task says how examples become a batch, which outputs the loss depends on, what the training loss of each example
is, and which scalar an explanation explains. Nothing else in ``influence_engine`` knows what a text, a label or an
image is. Four methods are enough; the optional ones make answers richer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

Array = np.ndarray[Any, Any]

Example = Mapping[str, Any]
"""One example: its fields by name. ``example_id`` is its stable id where it comes from a data set."""

Batch = Mapping[str, Tensor]
"""What ``Task.collate`` returns: tensors whose first dimension is the batch."""


@runtime_checkable
class Task(Protocol):
    """What a fine-tuned model is for. ``B`` is the batch size, ``C`` the number of classes, ``T`` of tokens."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Turns examples into one batch on the CPU. A label may be missing (a query): see ``measurement``."""

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """The tensor the loss depends on, usually logits ``[B, C]`` or ``[B, T, C]``. The GGN goes through it."""

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Training loss of each example, ``[B]``, not averaged over the batch."""

    def measurement(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The scalar explained for each example, ``[B]``, such as the log-odds of the target label.

        Where the batch names no target for an example, the target is what the model predicts.
        """


@runtime_checkable
class PredictingTask(Protocol):
    """Optional: puts raw outputs into the words of an API."""

    def predictions(self, outputs: Tensor, batch: Batch) -> list[dict[str, Any]]:
        """For each example ``{"label", "confidence", "scores": {label: probability}}``."""


@runtime_checkable
class ProbabilityTask(Protocol):
    """Optional: a measurement that stands for a probability, such as log-odds."""

    def probability(self, measurement: Tensor) -> Tensor:
        """The target's probability, of the same shape."""


@runtime_checkable
class ExportableTask(Protocol):
    """Optional: allows the model to be exported to ONNX."""

    def model_inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The tensors that are passed to the model's ``forward`` by name."""


@runtime_checkable
class ServingTask(Protocol):
    """Optional: predicts without torch, for the hot path of a server that runs the exported model.

    Both methods mean what ``model_inputs(collate(...))`` and ``predictions(...)`` mean; without them those are used.
    """

    def serving_inputs(self, examples: Sequence[Example]) -> dict[str, Array]:
        """The exported model's inputs by name."""

    def serving_predictions(self, outputs: Array) -> list[dict[str, Any]]:
        """For each example what ``PredictingTask.predictions`` returns."""


@runtime_checkable
class SizedTask(Protocol):
    """Optional: says how large examples are without collating each of them alone."""

    def sizes(self, examples: Sequence[Example]) -> list[int]:
        """For each example the positions (tokens, pixels) of its batch of one: the size of its first tensor."""


@runtime_checkable
class CheckingTask(Protocol):
    """Optional: refuses bad examples with a message for people."""

    def check(self, example: Example, *, labelled: bool) -> None:
        """Raises ``DataError`` (with ``field``) if the example cannot be used; ``labelled`` asks for a label."""


@runtime_checkable
class DescribedTask(Protocol):
    """Optional: what the task is, for manifests and digests. Without it, the class's qualified name is used."""

    def describe(self) -> dict[str, Any]:
        """A JSON value that changes whenever the task's behaviour does (fields, labels, lengths, tokenizer digest)."""


def describe_task(task: Task) -> dict[str, Any]:
    """``task.describe()`` where there is one, else the qualified name of its class."""
    if isinstance(task, DescribedTask):
        return task.describe()
    return {"type": f"{type(task).__module__}.{type(task).__qualname__}"}


def with_predicted_targets(batch: Batch, outputs: Tensor) -> Batch:
    """The batch with the model's own prediction as target where a query names none.

    So that another model is measured on the same target; a task without labels measures what its batch says.
    """
    labels = batch.get("labels")
    if labels is None or labels.dim() != 1 or outputs.dim() != 2:
        return batch
    return {**batch, "labels": torch.where(labels < 0, outputs.detach().argmax(-1), labels)}


def example_sizes(task: Task, examples: Sequence[Example]) -> list[int]:
    """Positions (tokens, pixels) that each example takes in a batch of its own."""
    if isinstance(task, SizedTask):
        return task.sizes(examples)
    return [next(iter(task.collate([example]).values())).numel() for example in examples]


def batches_of_like_size(task: Task, examples: Sequence[Example], count: int) -> list[list[int]]:
    """Places in ``examples``, ``count`` a batch and the longest first, so that little of a batch is padding."""
    sizes = example_sizes(task, examples)
    order = sorted(range(len(examples)), key=lambda place: -sizes[place])
    return [order[start : start + count] for start in range(0, len(order), count)]
