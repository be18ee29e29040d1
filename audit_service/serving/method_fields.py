"""Finds the task's fields among the arguments of an audited method, and the outputs in what it returns."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import bentoml
from pydantic import BaseModel

Path = tuple[str, ...]
"""An argument's name, then names of fields within it."""


def argument_names(function: Callable[..., Any]) -> list[str]:
    """Names of what a request brings: all parameters but ``self`` and BentoML's context."""
    names = list(inspect.signature(function).parameters)[1:]
    hints = type_hints(function)
    return [
        name for name in names if not (name in ("ctx", "context") and hints.get(name, Any) in (Any, bentoml.Context))
    ]


def type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations, evaluated where that is possible."""
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):
        return {}


def fields_of(annotation: Any) -> list[str] | None:
    """Names of the fields of a pydantic model, dataclass, TypedDict or NamedTuple, also inside a list, a stream or an
    optional.

    ``None`` where the annotation does not say.
    """
    origin = typing.get_origin(annotation)
    if origin is tuple and typing.get_args(annotation)[1:] != (...,):
        return None  # one value whose parts have numbers
    if origin is not None:
        known = (fields_of(inner) for inner in typing.get_args(annotation) if inner not in (type(None), ...))
        wraps = isinstance(origin, type) and issubclass(origin, (Sequence, typing.Iterable, typing.AsyncIterable))
        if (wraps and not issubclass(origin, Mapping)) or origin in (typing.Union, types.UnionType, typing.Annotated):
            return next((names for names in known if names is not None), None)
        return None
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return list(annotation.model_fields)
    if inspect.isclass(annotation) and dataclasses.is_dataclass(annotation):
        return [one.name for one in dataclasses.fields(annotation)]
    if typing.is_typeddict(annotation):
        return list(annotation.__annotations__)
    if inspect.isclass(annotation) and issubclass(annotation, tuple) and hasattr(annotation, "_fields"):
        return [*annotation._fields]
    return None


def find_inputs(
    function: Callable[..., Any], wanted: Sequence[str] | None, given: Mapping[str, str]
) -> dict[str, Path]:
    """Where each field of the task's examples is in a call of ``function``.

    Args:
        function: The method.
        wanted: The task's fields; ``None`` where the task does not say: then every argument, and every field of an
            argument that has fields, is one.
        given: Paths named by hand, such as ``{"text": "request.body"}``.

    Raises:
        TypeError: a field is nowhere, or in two places; the message says what to write.
    """
    hints = type_hints(function)
    arguments = {name: fields_of(hints.get(name, Any)) for name in argument_names(function)}
    found = {field: _given_path(function, field, path, arguments) for field, path in given.items()}
    if wanted is None:
        if not given:
            for name, fields in arguments.items():
                found |= {name: (name,)} if fields is None else {field: (name, field) for field in fields}
        return found
    for field in wanted:
        if field in found:
            continue
        places: list[Path] = [(field,)] if field in arguments else []
        places += [(name, field) for name, fields in arguments.items() if fields is not None and field in fields]
        if len(places) != 1:
            raise TypeError(_where_is(function, field, places, arguments))
        found[field] = places[0]
    return found


def check_output(function: Callable[..., Any], part: str, path: str) -> None:
    """Refuses the name of an output that the return annotation rules out.

    Raises:
        TypeError: there is no such field; the message names the nearest.
    """
    fields = fields_of(type_hints(function).get("return", Any))
    first = path.split(".")[0]
    if first == "?":
        known = "" if fields is None else f"; its fields are {', '.join(fields)}"
        raise TypeError(
            f"@audited({part}='?'): name the field of what {function.__qualname__} returns that holds the {part}{known}"
        )
    if fields is None or first in fields or first.isdecimal():
        return
    near = difflib.get_close_matches(first, fields, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise TypeError(
        f"@audited({part}={path!r}): what {function.__qualname__} returns has no field {first!r}, "
        f"its fields are {', '.join(fields)}{hint}"
    )


def dig(value: Any, path: Sequence[str]) -> Any:
    """Follows names through mappings and attributes, and numbers through tuples and lists; a name that comes to a list
    is followed in each of its items.

    Raises:
        KeyError: a name is not there.
    """
    for place, name in enumerate(path):
        if isinstance(value, list) and not name.isdecimal():
            return [dig(item, path[place:]) for item in value]
        if isinstance(value, Mapping):
            value = value[name]
        elif isinstance(value, (list, tuple)) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        elif hasattr(value, name):
            value = getattr(value, name)
        else:
            raise KeyError(name)
    return value


def asks_for_several(paths: Mapping[str, Path], arguments: Mapping[str, Any], listed: Collection[str]) -> bool:
    """Whether a call's arguments hold several examples: lists of what one example has one of.

    Args:
        paths: Where the task's fields are.
        arguments: Of the call.
        listed: Fields of which a single value is a list already, such as the turns of a conversation.
    """
    for field, (argument, *rest) in paths.items():
        value = arguments.get(argument)
        if rest and not isinstance(value, (list, tuple)):
            value = dig(value, rest) if value is not None else None
        if isinstance(value, (list, tuple)):
            inner = value[0] if len(value) else None
            if rest and argument in arguments and isinstance(arguments[argument], (list, tuple)):
                return True
            if field not in listed or isinstance(inner, (list, tuple)):
                return True
    return False


def example_of(paths: Mapping[str, Path], arguments: Mapping[str, Any], number: int | None = None) -> dict[str, Any]:
    """The example's fields; with ``number`` those of one item of the arguments that are lists."""
    example = {}
    for field, (argument, *rest) in paths.items():
        if argument not in arguments:
            continue  # left to its default by the caller
        value = arguments[argument]
        if isinstance(value, (list, tuple)) and rest and number is None:
            example[field] = [dig(item, rest) for item in value]
            continue
        if number is not None and isinstance(value, (list, tuple)):
            value = value[number]
        value = dig(value, rest)
        if number is not None and rest and isinstance(value, (list, tuple)):
            value = value[number]
        example[field] = value
    return example


def _given_path(function: Callable[..., Any], field: str, path: str, arguments: Mapping[str, list[str] | None]) -> Path:
    argument, *rest = path.split(".")
    if argument not in arguments:
        raise TypeError(
            f"@audited(inputs={{{field!r}: {path!r}}}): {function.__qualname__} has no argument {argument!r}, "
            f"its arguments are {', '.join(arguments)}"
        )
    fields = arguments[argument]
    if rest and fields is not None and rest[0] not in fields:
        raise TypeError(
            f"@audited(inputs={{{field!r}: {path!r}}}): {argument!r} has no field {rest[0]!r}, "
            f"its fields are {', '.join(fields)}"
        )
    return (argument, *rest)


def _where_is(
    function: Callable[..., Any], field: str, places: list[Path], arguments: Mapping[str, list[str] | None]
) -> str:
    if places:
        where = " and ".join(repr(".".join(place)) for place in places)
        return (
            f"the task's field {field!r} is in two places of {function.__qualname__}: {where}; say which: "
            f"@audited(inputs={{{field!r}: {'.'.join(places[0])!r}}})"
        )
    seen = ", ".join(name if fields is None else f"{name} ({', '.join(fields)})" for name, fields in arguments.items())
    example = next(iter(arguments), "request")
    return (
        f"the task's field {field!r} is no argument of {function.__qualname__} and no field of one; there are: {seen}. "
        f"Say where it is: @audited(inputs={{{field!r}: {example!r}}})"
    )
