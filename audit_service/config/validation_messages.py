"""Validation errors of a config in words: where, which key, what was found, what is allowed."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from audit_service.config.errors import ConfigError
from audit_service.config.layers import PREFIX, RESERVED, Layers, variable
from audit_service.config.yaml_text import Path
from influence_engine.names import did_you_mean, listing, nearest

LONGEST_VALUE = 80

ALLOWED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "keys with values",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_type": "keys with values",
    "path_type": "a path",
    "string_type": "a text",
    "tuple_type": "a list",
}
"""Kinds of pydantic's errors, where its own words suit Python better than YAML."""


def explain(error: ValidationError, layers: Layers, model: type[BaseModel]) -> ConfigError:
    """All problems of a config, one a line.

    Args:
        error: What validating ``layers.values`` raised.
        layers: The values and their origins.
        model: What they were validated as.
    """
    found: dict[Path, list[Mapping[str, Any]]] = {}
    for problem in error.errors(include_url=False):
        found.setdefault(_path(problem["loc"], layers), []).append(problem)
    lines = []
    for path, problems in found.items():
        origin = layers.origin(path)
        text = "; or ".join(dict.fromkeys(_words(problem, path, layers, model) for problem in problems))
        lines.append(f"{origin.where}: {origin.key}: {text}" if origin.key else f"{origin.where}: {text}")
    first = next(iter(found))
    return ConfigError("\n".join(lines), field=".".join(map(str, first)) or None)


def _path(location: tuple[str | int, ...], layers: Layers) -> Path:
    """The part of pydantic's location that is in the config; the rest names members of a union."""
    for length in range(len(location), 0, -1):
        if layers.holds(location[:length]):
            return location[:length]
    return location[:1]


def _words(problem: Mapping[str, Any], path: Path, layers: Layers, model: type[BaseModel]) -> str:
    kind, value = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        return _unknown(path, layers, model)
    if kind == "missing":
        key = problem["loc"][-1]
        return f"needs more than {key} items" if isinstance(key, int) else f"{key} is missing"
    if kind == "invalid_key":
        return "a key of this section must be a word"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    allowed = ALLOWED.get(kind) or re.sub(r"^Input should be ", "", problem["msg"])
    hint = ""
    if kind == "literal_error" and isinstance(value, str):
        hint = did_you_mean(value, re.findall(r"'([^']*)'", str(problem["ctx"]["expected"])))
    if kind == "string_type" and isinstance(value, (bool, int, float)):
        hint = " Put it in quotes."
    if kind in {"model_type", "dict_type"} and (known := known_keys(model, path)):
        hint = f" Keys are {listing(known)}."
    return f"found {_shown(value)}; it should be {allowed}.{hint}"


def _unknown(path: Path, layers: Layers, model: type[BaseModel]) -> str:
    key = str(path[-1])
    known = sorted(known_keys(model, path[:-1]))
    by_variable = layers.origin(path).where.startswith("environment")
    meant: dict[str, Path] = {name: (*path[:-1], name) for name in known}
    if by_variable and len(path) == 1:
        meant |= {name.removeprefix(PREFIX).lower(): (name.removeprefix(PREFIX),) for name in RESERVED}
    close = nearest(key, meant)
    elsewhere = meant[close] if close is not None else next((at for at in _paths(model) if at[-1] == key), None)
    if elsewhere is None:
        hint = ""
    elif by_variable:
        hint = f" Did you mean {variable(elsewhere)}?"
    else:
        hint = f" Did you mean {close if close is not None else '.'.join(map(str, elsewhere))!r}?"
    return f"unknown key.{hint} Allowed are {listing(known)}."


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    names = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", list: "a list"}
    text = repr(value)
    text = text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."
    return f"{text} ({names.get(type(value), 'a mapping' if isinstance(value, Mapping) else type(value).__name__)})"


def known_keys(model: type[BaseModel], path: Path) -> list[str]:
    """Keys that a config may have at a path; none where the path leads to no section."""
    for part in path:
        field = model.model_fields.get(str(part))
        inner = next(_models(field.annotation), None) if field is not None else None
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _paths(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        yield (*above, name)
        for inner in _models(field.annotation):
            yield from _paths(inner, (*above, name))


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, Annotated):
        for member in get_args(annotation):
            yield from _models(member)
