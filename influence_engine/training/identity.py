"""The identity of a training run: runs with equal identities have equal weights."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from influence_engine.data import rows_digest
from influence_engine.digests import json_digest
from influence_engine.errors import DataError
from influence_engine.tasks import CheckingTask, Example, Task, describe_task
from influence_engine.tasks.text_classification import tokenizer_digest


def check_examples(task: Task, examples: Sequence[Example], what: str) -> list[str]:
    """Checks labelled examples and returns their ids, in order.

    Args:
        task: Checks every example, where it has a method ``check``.
        examples: The data set.
        what: The data set's name in messages (``training``).

    Raises:
        DataError: there is no example, one has no id, an id appears twice, or the task refuses one.
    """
    if not len(examples):
        raise DataError(f"there are no {what} examples", field=what)
    ids: dict[str, int] = {}
    for row, example in enumerate(examples):
        example_id = example.get("example_id")
        if not isinstance(example_id, str) or not example_id:
            raise DataError(f"{what} example {row} has no example_id", field="example_id")
        if example_id in ids:
            raise DataError(
                f"{what} examples {ids[example_id]} and {row} have the same example_id {example_id!r}",
                field="example_id",
            )
        ids[example_id] = row
        if isinstance(task, CheckingTask):
            try:
                task.check(example, labelled=True)
            except DataError as error:
                raise DataError(f"{what} example {example_id!r}: {error.message}", field=error.field) from error
    return list(ids)


def data_digest(examples: Sequence[Example]) -> str:
    """Digest of the examples' content, independent of their order.

    Raises:
        DataError: a field cannot be written as JSON.
    """
    try:
        return rows_digest(examples)
    except (TypeError, ValueError) as error:
        raise DataError(f"an example has a field that is not JSON: {error}") from error


def task_digests(task: Task) -> dict[str, str | None]:
    """Digests of ``task`` and of its ``tokenizer`` (None for a task without one)."""
    tokenizer = getattr(task, "tokenizer", None)
    return {
        "task": json_digest(describe_task(task)),
        "tokenizer": None if tokenizer is None else tokenizer_digest(tokenizer),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that compute the weights."""
    found = {"python": platform.python_version()}
    for name in ("bento-audit", "torch", "transformers", "peft", "safetensors"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def differences(recorded: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The differences of two identities, one line each, such as ``settings.epochs: 3 in the run, 4 now``."""
    lines: list[str] = []
    for key in sorted({*recorded, *now}):
        before, after = recorded.get(key), now.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {_short(before)} in the run, {_short(after)} now")
    return lines


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) > 40:
        return f"{value[:12]}..."
    return repr(value)
