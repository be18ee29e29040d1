"""The contract between a user's model and everything else in this package.

A task says how examples become a batch, which outputs the loss depends on, what the training loss of each example is,
and which scalar an explanation explains. Nothing else in ``influence_engine`` knows what a text, a label or an image
is. The four methods of ``Task`` are enough; the optional protocols make answers richer, and ``capabilities.py`` and
``targets.py`` say what holds without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from influence_engine.tasks.fields import ExampleField

Array = np.ndarray[Any, Any]

Example = Mapping[str, Any]
"""One example: its fields by name. ``example_id`` is its stable id where it comes from a data set."""

Batch = Mapping[str, Tensor]
"""What ``Task.collate`` returns: tensors whose first dimension is the batch."""

Target = str | dict[str, Any]
"""What is explained, as an API says it: a label's name, or such as ``{"span": [start, end], "label": name}``."""


@runtime_checkable
class Task(Protocol):
    """What a fine-tuned model is for. ``B`` is the batch size, ``C`` the number of classes, ``T`` of positions."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Turns examples into one batch on the CPU. A target may be missing (a query): see ``TargetTask``."""

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """The tensor that the loss depends on, usually logits ``[B, C]`` or ``[B, T, C]``. The GGN goes through it."""

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Training loss of each example, ``[B]``, not averaged over the batch."""

    def measurement(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The scalar that is explained for each example, ``[B]``, such as the log-odds of the target label."""


@runtime_checkable
class FieldsTask(Protocol):
    """Optional: says which fields an example has."""

    @property
    def fields(self) -> Sequence[ExampleField]:
        """Inputs and targets, in the order in which a person would name them."""


@runtime_checkable
class TargetTask(Protocol):
    """Optional: chooses and names what is explained, where that is not one label for each example.

    What is explained is chosen once, by the request or by the served model's prediction, and then measured *as named*
    on the base, the fine-tuned and retrained models alike.
    """

    def choose_targets(self, outputs: Tensor, batch: Batch) -> Batch:
        """The batch with a target for every example: the one it names already, else what ``outputs`` predict."""

    def targets(self, batch: Batch) -> Sequence[Target | None]:
        """Each example's chosen target, as an API says it."""

    def aim(self, example: Example, target: Target) -> Example:
        """The query with ``target`` as what is to be explained.

        Raises:
            InputError: there is no such target; its ``field`` is ``target``.
        """


@runtime_checkable
class ChoosingTask(TargetTask, Protocol):
    """Optional, beyond ``TargetTask``: says which examples name no target, so that no model runs where all do."""

    def needs_choice(self, batch: Batch) -> Tensor:
        """Whether ``choose_targets`` looks at an example's outputs, ``[B]``: its target is what a model predicts."""


@runtime_checkable
class SamplingTask(Protocol):
    """Optional: draws targets from the model's own distribution, for curvature of outputs too many to decompose."""

    def sample(self, outputs: Tensor, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with targets drawn from ``outputs``, so that ``loss(outputs, drawn)`` is ``-log p(drawn)``.

        Args:
            outputs: What ``Task.outputs`` returned, without its graph.
            batch: The batch it belongs to.
            generator: On the CPU; the only source of randomness.
        """


@runtime_checkable
class PredictingTask(Protocol):
    """Optional: puts raw outputs into the words of an API."""

    def predictions(self, outputs: Tensor, batch: Batch) -> list[dict[str, Any]]:
        """One JSON object an example, such as ``{"label", "confidence", "scores"}`` or ``{"entities": [...]}``.

        Metrics and drift read ``label`` and ``confidence`` where there are such keys (see ``ProjectingTask``).
        """


@runtime_checkable
class ProjectingTask(Protocol):
    """Optional: what metrics and drift see of a prediction that has no ``label`` and ``confidence`` of its own."""

    def project(self, prediction: Mapping[str, Any]) -> Projection:
        """The prediction's label and confidence, as far as it has any."""


@dataclass(frozen=True)
class Projection:
    """What metrics and drift see of a prediction.

    Attributes:
        label: One of few names; ``None`` where there is none.
        confidence: A probability; ``None`` where there is none.
        labels: What is counted of a prediction that has several labels, each as often as it was predicted; of one that
            has none, a word for that. The prediction is counted as one, in equal parts.
    """

    label: str | None
    confidence: float | None
    labels: tuple[str, ...] = ()

    @property
    def counted(self) -> tuple[str, ...]:
        """The labels that the prediction is counted under."""
        return self.labels or (() if self.label is None else (self.label,))


@runtime_checkable
class MeasuredTask(Protocol):
    """Optional: what the measurement is counted in, where that is not log-odds."""

    measurement_unit: str
    """Such as ``nats`` for a summed log-probability, or the unit of a regression's target."""


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
class CuttingTask(Protocol):
    """Optional: says where the model reads only a part of an example."""

    def unread(self, example: Example) -> str | None:
        """What was read, in words, such as ``only the first 64 of 90 tokens were read``; ``None`` where all of it."""


@runtime_checkable
class CheckingTask(Protocol):
    """Optional: refuses bad examples with a message for people."""

    def check(self, example: Example, *, labelled: bool) -> None:
        """Raises ``DataError`` (with ``field``) if the example cannot be used; ``labelled`` asks for a target."""


@runtime_checkable
class DescribedTask(Protocol):
    """Optional: what the task is, for manifests and digests. Without it, the class's own code is digested."""

    def describe(self) -> dict[str, Any]:
        """A JSON value that changes whenever the task's behaviour does (fields, labels, lengths, processor)."""


@runtime_checkable
class ReadingTask(Protocol):
    """Optional: what the model reads of an example whose fields only say where that lies, such as an image's path."""

    def content(self, example: Example) -> bytes:
        """What digests of the data cover beside the fields, such as the bytes of the image's file."""


@runtime_checkable
class KeepingTask(Protocol):
    """Optional, for a ``ReadingTask``: what an index keeps of an example, so that it can be shown and read again."""

    def kept(self, example: Example) -> Example:
        """The example with values of JSON that hold what the model reads, such as a data URL in place of a path."""


@runtime_checkable
class ProcessorTask(Protocol):
    """Optional: what turns raw inputs into tensors, saved beside the model: a tokenizer, an image processor."""

    @property
    def processor(self) -> Any:
        """An object of ``transformers`` with ``save_pretrained``; ``None`` where there is none."""


@dataclass(frozen=True)
class Head:
    """How a base model is loaded for a task.

    Attributes:
        auto_class: The class of ``transformers`` that loads it, such as ``AutoModelForTokenClassification``.
        settings: What its ``from_pretrained`` is given beside the source: names and number of outputs.
        outputs: Number of outputs that the head must have; ``None`` where that is the model's own affair.
    """

    auto_class: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    outputs: int | None = None


@runtime_checkable
class HeadTask(Protocol):
    """Optional: says how a base model is loaded and what a fresh head is."""

    def head(self) -> Head:
        """The class that loads the model, and the shape of its head."""


@dataclass(frozen=True)
class Unit:
    """A part of an input that influence can be split over: a token, a patch, a turn.

    Attributes:
        field: The field it is a part of.
        start: First character (pixel row-major block, turn) of it there.
        end: One past the last.
        position: Its place along the model's positions.
    """

    field: str
    start: int
    end: int
    position: int


@runtime_checkable
class UnitsTask(Protocol):
    """Optional: the parts of an input, for attributions over words and regions."""

    def units(self, example: Example) -> list[Unit]:
        """In the order of the positions; none for positions that stand for no part of the input (``[CLS]``)."""


@runtime_checkable
class ShowingTask(Protocol):
    """Optional: what a person sees of an example, where its fields' own texts are not that."""

    def show(self, example: Example) -> str:
        """One line or a few, without markup."""
