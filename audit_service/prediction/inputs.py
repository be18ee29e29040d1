"""Whether an input can be predicted and explained."""

from __future__ import annotations

from typing import Any

from influence_engine.errors import InputError
from influence_engine.tasks import Example, characters


def check_example(task: Any, example: Example, max_chars: int | None) -> None:
    """Refuses what the task refuses, and texts that are too long.

    Raises:
        InputError: with the field it is about.
    """
    for name, value in example.items():
        if max_chars is not None and (length := characters(value)) > max_chars:
            raise InputError(f"{name!r} has {length} characters; at most {max_chars} are read", field=name)
    check = getattr(task, "check", None)  # asking the protocol costs more than the check itself
    if check is not None:
        check(example, labelled=False)
