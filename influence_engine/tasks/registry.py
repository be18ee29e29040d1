"""The tasks that a config can name, and how each is made of a model's processor and the config's words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from influence_engine.tasks.contract import Task
from influence_engine.tasks.fields import ExampleField
from influence_engine.tasks.text_classification import TextClassification
from influence_engine.tasks.token_classification import TokenClassification


@dataclass(frozen=True)
class TaskType:
    """One kind of task.

    Attributes:
        name: What ``task.type`` in a config says.
        make: Makes the task of its processor and, by name, what the config says under ``task``.
        processor: The class of ``transformers`` that loads the processor from a model's folder; ``None`` for none.
        fields: The fields of its examples, of the same arguments, for whoever has no processor at hand.
    """

    name: str
    make: Callable[..., Task]
    processor: str | None
    fields: Callable[..., tuple[ExampleField, ...]]

    def build(self, processor: Any, arguments: Mapping[str, Any]) -> Task:
        """The task.

        Raises:
            SettingsError: an argument cannot be used.
        """
        return self.make(processor, **arguments)


TASK_TYPES: dict[str, TaskType] = {
    "text_classification": TaskType(
        "text_classification", TextClassification, "AutoTokenizer", TextClassification.fields_for
    ),
    "token_classification": TaskType(
        "token_classification", TokenClassification, "AutoTokenizer", TokenClassification.fields_for
    ),
}
"""By name. A new task is a class, a line here, and the contract tests of ``tests/tasks`` passed."""
