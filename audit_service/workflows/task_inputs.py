"""Parses inputs and targets for a task of any kind: a text, fields as JSON, a label's name or a target as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from audit_service.workspace import Workspace
from influence_engine.errors import InputError
from influence_engine.names import listing
from influence_engine.tasks import Example, ExampleField, Target, embedded, input_fields, show


def input_of(
    workspace: Workspace, text: str | None, given: Mapping[str, Any] | None, image: Path | None = None
) -> dict[str, Any]:
    """The input that is explained, by the fields of the workspace's task.

    Args:
        workspace: Workspace of the task.
        text: The text, where the input is one text and nothing else.
        given: The fields by their names; a picture's is a path or a data URL.
        image: A picture's file, where the input is one picture and nothing else.

    Raises:
        InputError: not exactly one of the two is given, the task's input is no single text, or a field is missing or
            unknown; the message names the fields.
    """
    fields = input_fields(workspace.fields)
    names = listing([field.name for field in fields])
    options = {"--text": text, "--image": image, "--input": given}
    used = [option for option, value in options.items() if value is not None]
    if len(used) > 1:
        raise InputError(f"{' and '.join(used)} exclude each other; the fields of an input are {names}", field="input")
    if image is not None:
        if len(fields) != 1 or not fields[0].viewable:
            raise InputError(
                f"--image is for an input that is one picture, and here its fields are {names}: "
                f"say {usual_option(fields)}",
                field="image",
            )
        return dict(embedded(fields, {fields[0].name: str(image)}, Path.cwd()))
    if text is not None:
        if len(fields) != 1 or not fields[0].readable:
            raise InputError(
                f"--text is for an input that is one text, and here its fields are {names}: say {usual_option(fields)}",
                field="text",
            )
        return {fields[0].name: text}
    if given is None:
        raise InputError(f"say the input: {usual_option(fields)}", field="input")
    known = [field.name for field in fields]
    for name in given:
        if name not in known:
            raise InputError(f"input has no field {name!r}; its fields are {names}", field=f"input.{name}")
    for name in known:
        if name not in given:
            raise InputError(f"input has no {name!r}; its fields are {names}", field=f"input.{name}")
    return dict(embedded(fields, given, Path.cwd()))


def input_template(fields: Sequence[ExampleField]) -> str:
    """An input of these fields as JSON for messages, with dots in place of the values."""
    return "{" + ", ".join(f'"{field.name}": ...' for field in fields if field.role == "input") + "}"


def usual_option(fields: Sequence[ExampleField]) -> str:
    """The command-line option for an input of these fields, with dots in place of the values."""
    inputs = input_fields(fields)
    if len(inputs) == 1 and inputs[0].readable:
        return '--text "..."'
    if len(inputs) == 1 and inputs[0].viewable:
        return "--image FILE"
    return f"--input '{input_template(fields)}'"


def target_of(value: Any) -> Target:
    """The target that a label's name, or a JSON object such as ``{"span": [0, 4]}``, stands for.

    Raises:
        InputError: the value begins like a JSON object and is none.
    """
    found = value
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            found = json.loads(value)
        except ValueError as error:
            raise InputError(f"the target {value!r} is not JSON: {error}", field="target") from None
    if not isinstance(found, dict):
        return str(found)
    label = found.get("label")
    return label if set(found) == {"label"} and isinstance(label, str) else found


def target_fields(target: Target | None) -> dict[str, Any] | None:
    """A target as a request has it: an object, of a label's name ``{"label": name}``."""
    return {"label": target} if isinstance(target, str) else target


def shown_input(task: object, example: Example) -> str:
    """What a person sees of an input: as the task shows it, else its fields as JSON."""
    return show(task, example) or json.dumps(dict(example), ensure_ascii=False, default=str)
