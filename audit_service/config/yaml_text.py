"""YAML as it is commonly read, with the line of every key.

The booleans and numbers are those of YAML 1.2: ``no`` and ``on`` are words (a label may be called so), ``2e-4`` is a
number, dates stay texts. PyYAML alone would read YAML 1.1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

Path = tuple[str | int, ...]


class YamlError(Exception):
    """A text is not YAML, or says the same thing twice.

    Attributes:
        line: Where, counting from 1; None if it is not known.
    """

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


@dataclass(frozen=True)
class Document:
    """Values of a YAML text.

    Attributes:
        value: The values, plain Python.
        lines: Path of keys and positions -> line, counting from 1.
    """

    value: Any
    lines: dict[Path, int]


class _Loader(yaml.SafeLoader):
    """SafeLoader with the words and numbers of YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in {"null", "merge"}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def read_yaml(text: str) -> Document:
    """Values and lines of a YAML text; nothing in it is ever executed.

    Raises:
        YamlError: it is not YAML, or a key occurs twice in one mapping.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines: dict[Path, int] = {}
        if node is not None:
            _walk(node, (), lines, set())
        value = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(error.problem or str(error), mark.line + 1 if mark else None) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise YamlError(str(error)) from error
    return Document(value=value, lines=lines)


def read_scalar(text: str) -> Any:
    """One value as YAML would read it: ``"2"`` is a number, ``"[a, b]"`` a list, ``"fast"`` a text."""
    return read_yaml(text).value


def _walk(node: yaml.Node, path: Path, lines: dict[Path, int], above: set[int]) -> None:
    if id(node) in above:
        raise YamlError("an alias refers to what it is part of", node.start_mark.line + 1)
    above = above | {id(node)}
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            _walk(item, (*path, position), lines, above)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, item in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise YamlError("a key must be a word", line)
            if key.value in seen:
                raise YamlError(f"the key {key.value!r} occurs twice, first in line {seen[key.value]}", line)
            seen[key.value] = line
            lines[*path, key.value] = line
            _walk(item, (*path, key.value), lines, above)
