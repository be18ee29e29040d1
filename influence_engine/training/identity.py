"""The identity of a training run: runs with equal identities have equal weights."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from influence_engine.data import rows_digest
from influence_engine.digests import json_digest
from influence_engine.errors import DataError
from influence_engine.tasks import (
    CheckingTask,
    Example,
    Task,
    content_digest,
    digest_by_name,
    fields_of,
    matches_task_digest,
    processor_digest,
    task_digest,
    without_references,
)
from influence_engine.training.settings import FinetuneSettings


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
    """Digest of the examples' content, independent of their order; arrays and tensors count with their bytes.

    Raises:
        DataError: a field is neither JSON nor an array; the message names it and the example.
    """
    try:
        return rows_digest(examples)
    except (TypeError, ValueError) as error:
        raise _not_json(examples, error) from error


def data_digests(task: Task, examples: Sequence[Example]) -> dict[str, str]:
    """``data``, the digest of the examples' fields; and ``inputs``, of what a task reads beyond them, if it does.

    Raises:
        DataError: a field is neither JSON nor an array; the message names it and the example.
    """
    content = content_digest(task, examples)
    if content is None:
        return {"data": data_digest(examples)}
    fields = fields_of(task)
    return {"data": data_digest([without_references(fields, example) for example in examples]), "inputs": content}


def first_difference(
    digests: Mapping[str, str | None], task: Task, examples: Sequence[Example]
) -> tuple[str, str | None, str | None] | None:
    """What of task and data is not as recorded: its name, its digest now, and the recorded one; or ``None``.

    What older code did not record is not compared.

    Args:
        digests: Of a run or an index.
        task: The task given.
        examples: The training examples given, in any order.
    """
    now: dict[str, str | None] = {**task_digests(task), **data_digests(task, examples)}
    for what, digest in now.items():
        recorded = digests.get(what)
        same = matches_task_digest(task, recorded) if what == "task" else digest == recorded
        if not same and what in digests:
            return what, digest, recorded
    return None


def _not_json(examples: Sequence[Example], first: Exception) -> DataError:
    """Names the first example with a field that cannot be digested."""
    for example in examples:
        for name, value in example.items():
            try:
                json_digest(value)
            except (TypeError, ValueError) as error:
                return DataError(
                    f"example {example['example_id']!r}: the field {name!r} is not JSON: {error}. Give numbers, texts, "
                    "lists, arrays or tensors, or a reference to it (a path)",
                    field=name,
                )
    return DataError(f"an example is not JSON: {first}")


def task_digests(task: Task) -> dict[str, str | None]:
    """Digests of ``task`` and, under the name ``tokenizer``, of its processor (None where it has none)."""
    return {"task": task_digest(task), "tokenizer": processor_digest(task)}


def identity_of(task: Task, data: Mapping[str, str]) -> dict[str, str | None]:
    """What a run's identity says of task and data.

    Args:
        task: The task.
        data: Its ``data_digests``.
    """
    named = digest_by_name(task)
    return {**task_digests(task), **data, **({} if named is None else {"task_by_name": named})}


def versions() -> dict[str, str]:
    """Versions of what computes the weights: provenance, which is recorded and never compared."""
    found = {"python": platform.python_version()}
    for name in ("bento-audit", "torch", "transformers", "peft", "safetensors"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


PROVENANCE = ("versions", "task_by_name")
"""Entries that say how a run came about or what it was once called, and never decide whether it is the same."""

LATER = ("inputs",)
"""Entries that are compared where the record has them: older code left them out."""


def differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Where two identities differ, one line each: ``settings.epochs: 3 in the run, 4 now``.

    Versions of code are no difference, and a setting that there was not yet when the run was recorded has its default.
    """
    before, after = ({key: one[key] for key in one if key not in PROVENANCE} for one in (recorded, now))
    before |= {key: after[key] for key in LATER if key in after and key not in before}
    if before.get("task") == now.get("task_by_name", ""):
        before["task"] = after["task"]
    if isinstance(before.get("settings"), Mapping):
        before["settings"] = _filled(before["settings"], FinetuneSettings().model_dump(mode="json"))
    return _differences(before, after, "")


def _filled(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    filled = {**defaults, **given}
    for key, value in given.items():
        if isinstance(value, Mapping) and isinstance(defaults.get(key), Mapping):
            filled[key] = _filled(value, defaults[key])
    return filled


def _differences(recorded: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> list[str]:
    lines: list[str] = []
    for key in sorted({*recorded, *now}):
        before, after = recorded.get(key), now.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {_short(before)} in the run, {_short(after)} now")
    return lines


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) > 40:
        return f"{value[:12]}..."
    return repr(value)
