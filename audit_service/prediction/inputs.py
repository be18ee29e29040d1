"""Whether an input can be predicted and explained, and its form when it comes from outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from influence_engine.errors import InputError
from influence_engine.tasks import Example, ExampleField, characters, received, without_references


def taken_input(task: Any, fields: Sequence[ExampleField], example: Example, max_chars: int | None) -> Example:
    """An input from outside as the task takes it; see ``tasks.received``.

    Args:
        task: Refuses what it cannot use.
        fields: The task's.
        example: What was sent.
        max_chars: Longer texts are refused.

    Raises:
        InputError: with the field it is about.
    """
    taken = received(fields, example)
    measured = example if taken is example else without_references(fields, example)
    for name, value in measured.items():
        check_length(repr(name), value, max_chars, field=name)
    check = getattr(task, "check", None)  # asking the protocol costs more than the check itself
    if check is not None:
        check(taken, labelled=False)
    return taken


def check_length(called: str, value: Any, max_chars: int | None, *, field: str) -> None:
    """Refuses what has more characters than are read, by an ``InputError`` about ``field``."""
    if max_chars is not None and (length := characters(value)) > max_chars:
        raise InputError(f"{called} has {length} characters; at most {max_chars} are read", field=field)
