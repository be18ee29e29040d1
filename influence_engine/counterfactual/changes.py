"""Changes of the training data: examples removed, given another target, or with another input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from influence_engine.digests import json_digest
from influence_engine.errors import DataError, SettingsError
from influence_engine.tasks import CheckingTask, Example, Task, editable_field, fields_of, target_field

VALUES_SHOWN = 8
"""Most values of a column that a message names."""


@dataclass(frozen=True)
class Change:
    """A change of the training data; everything else of the training stays as recorded.

    Attributes:
        kind: What is done to the examples.
        replacements: The example that takes another one's place, by the latter's id; None where it is removed.
    """

    kind: Literal["remove", "relabel", "edit"]
    replacements: Mapping[str, Example | None]

    @property
    def example_ids(self) -> list[str]:
        """The changed examples, sorted."""
        return sorted(self.replacements)

    @property
    def removed(self) -> list[str]:
        """Ids of the examples that are removed, sorted."""
        return [name for name in self.example_ids if self.replacements[name] is None]

    @property
    def replaced(self) -> dict[str, Example]:
        """The examples that take the place of others, by the ids of those."""
        return {name: example for name, example in sorted(self.replacements.items()) if example is not None}

    @cached_property
    def digest(self) -> str:
        """A digest of the change: equal for equal changes."""
        given = {name: None if one is None else dict(one) for name, one in self.replacements.items()}
        return json_digest(given)


def removal(example_ids: Iterable[str]) -> Change:
    """The change that removes some examples.

    Raises:
        SettingsError: no example is named.
    """
    return Change("remove", dict.fromkeys(_some(example_ids)))


def relabelling(task: Task, train: Sequence[Example], targets: Mapping[str, Any]) -> Change:
    """The change that gives examples other targets, by example id.

    Raises:
        SettingsError: no example is named, or the task does not say which field holds the target.
        DataError: an example is not there, has that target already, or the task knows no such target.
    """
    field = target_field(fields_of(task))
    if field is None:
        raise SettingsError(f"{type(task).__name__} names no target that could be changed", field="relabel")
    return _replacing("relabel", task, train, targets, field.name)


def editing(task: Task, train: Sequence[Example], inputs: Mapping[str, str]) -> Change:
    """The change that gives examples another input, by example id; of a task with a single field that can be edited.

    Raises:
        SettingsError: no example is named, or the task has no field that can be edited or several.
        DataError: an example is not there or reads so already, or the task refuses the new input.
    """
    field = editable_field(task)
    if field is None:
        raise SettingsError(f"{type(task).__name__} has no single input that can be written otherwise", field="edit")
    return _replacing("edit", task, train, inputs, field.name)


def members(train: Sequence[Example], column: str, value: str) -> list[str]:
    """Ids of the training examples with a ``value`` in a ``column``, a field or one of their metadata, in their order.

    Raises:
        SettingsError: no example has such a column or such a value in it; the message says what there is.
    """
    values = {str(example["example_id"]): _value(example, column) for example in train}
    if all(value is None for value in values.values()):
        columns = {name for example in train for name in (*example, *example.get("metadata", {}))} - {"metadata"}
        raise SettingsError(
            f"no training example has a {column!r}; they have {', '.join(sorted(columns))}", field="group"
        )
    chosen = [example_id for example_id, found in values.items() if found == value]
    if not chosen:
        there = sorted({found for found in values.values() if found is not None})
        more = f" and {len(there) - VALUES_SHOWN} more" if len(there) > VALUES_SHOWN else ""
        raise SettingsError(
            f"no training example has the {column} {value!r}; there is {', '.join(there[:VALUES_SHOWN])}{more}",
            field="group",
        )
    return chosen


def _value(example: Example, column: str) -> str | None:
    found = example.get(column)
    if found is None:
        found = (example.get("metadata") or {}).get(column)
    return None if found is None else str(found)


def _replacing(
    kind: Literal["relabel", "edit"], task: Task, train: Sequence[Example], values: Mapping[str, Any], field: str
) -> Change:
    by_id: dict[str, Example] = {str(example["example_id"]): example for example in train}
    replacements: dict[str, Example | None] = {}
    for example_id in _some(values):
        if example_id not in by_id:
            raise DataError(f"there is no training example {example_id!r}", field="examples")
        if by_id[example_id].get(field) == values[example_id]:
            raise DataError(f"the {field} of a training example is already what it was to become", field=field)
        other: dict[str, Any] = {**by_id[example_id], field: values[example_id]}
        if isinstance(task, CheckingTask):
            task.check(other, labelled=True)
        replacements[example_id] = other
    return Change(kind, replacements)


def _some(example_ids: Iterable[str]) -> list[str]:
    found = list(example_ids)
    if not found:
        raise SettingsError("no training example is named; name at least one", field="examples")
    return found
