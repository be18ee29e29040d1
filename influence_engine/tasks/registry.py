"""The tasks that a config can name, and how each is made of a model's processor and the config's words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from influence_engine.tasks.contract import Task
from influence_engine.tasks.fields import ExampleField
from influence_engine.tasks.image_classification import ImageClassification
from influence_engine.tasks.image_processor import NAME as PICTURES
from influence_engine.tasks.image_processor import PictureProcessor
from influence_engine.tasks.text_classification import TextClassification
from influence_engine.tasks.token_classification import TokenClassification


@dataclass(frozen=True)
class TaskType:
    """One kind of task.

    Attributes:
        name: What ``task.type`` in a config says.
        make: Makes the task of its processor and, by name, what the config says under ``task``.
        processor: The class that loads the processor from a model's folder, of ``PROCESSORS`` or ``transformers``;
            ``None`` for none.
        arguments: What a config may say under ``task`` for it.
        fields: The fields of its examples, of the same arguments, for whoever has no processor at hand.
        fewest_labels: Fewer names of labels make no task of this kind.
    """

    name: str
    make: Callable[..., Task]
    processor: str | None
    arguments: tuple[str, ...]
    fields: Callable[..., tuple[ExampleField, ...]]
    fewest_labels: int = 2

    def build(self, processor: Any, arguments: Mapping[str, Any]) -> Task:
        """The task.

        Raises:
            SettingsError: an argument cannot be used.
        """
        return self.make(processor, **arguments)


TASK_TYPES: dict[str, TaskType] = {
    "text_classification": TaskType(
        "text_classification",
        TextClassification,
        "AutoTokenizer",
        ("labels", "text", "label", "max_length"),
        TextClassification.fields_for,
    ),
    "image_classification": TaskType(
        "image_classification",
        ImageClassification,
        PICTURES,
        ("labels", "image", "label", "image_size"),
        ImageClassification.fields_for,
    ),
    "token_classification": TaskType(
        "token_classification",
        TokenClassification,
        "AutoTokenizer",
        ("labels", "text", "label", "max_length"),
        TokenClassification.fields_for,
        fewest_labels=1,
    ),
}
"""By name. A new task is a class, a line here, and the contract tests of ``tests/tasks`` passed."""

PROCESSORS: dict[str, Any] = {PICTURES: PictureProcessor}
"""Processors of our own, by name: classes with ``from_pretrained``. Any other is a class of ``transformers``."""
