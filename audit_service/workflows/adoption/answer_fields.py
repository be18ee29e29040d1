"""Guesses from a method's source which parts of its answer hold the predicted label and its confidence."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from audit_service.workflows.adoption.columns import LABEL_NAMES, TEXT_NAMES

Method = ast.FunctionDef | ast.AsyncFunctionDef
Kind = Literal["closed", "text", "float", "unknown", "other"]
"""What a field holds: one of a few names (``Literal``, ``Enum``), a string, a float, what the source does not say, or
what is neither label nor confidence."""

LABEL_FIELDS = ("label", "prediction", "predicted", "predicted_label", "class_name", "category", *LABEL_NAMES)
CONFIDENCE_FIELDS = ("confidence", "certainty", "probability", "score", "prob")
UNCLEAR = "?"
"""Stands for the label where the source does not say which field holds it; ``@audited`` refuses it by name."""

_MAPPINGS = ("dict", "Dict", "Mapping", "MutableMapping")
_ENUMS = ("Enum", "StrEnum")
_PLAIN: dict[str, Kind] = {"str": "text", "float": "float", "int": "other", "bool": "other", "bytes": "other"}


@dataclass(frozen=True)
class AnswerField:
    """A part of what a method answers.

    Attributes:
        path: Its name, dotted for nested ones; the place in a tuple.
        kind: What it holds.
    """

    path: str
    kind: Kind

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]


@dataclass(frozen=True)
class Answer:
    """What is guessed of a method's answer, as Python source for the arguments of ``@audited``.

    Attributes:
        label: A quoted path, ``str`` where the answer is the label itself, or a quoted ``UNCLEAR``.
        confidence: A quoted path, or None where none can be told.
    """

    label: str
    confidence: str | None

    @property
    def clear(self) -> bool:
        """Whether the label could be told."""
        return self.label != _quoted(UNCLEAR)


def answer_of(tree: ast.Module, method: Method) -> Answer:
    """Guesses by the fields' kinds and likely names; the annotation counts first, then dictionaries that are returned.

    Args:
        tree: The module with the classes that the annotation may name.
        method: The method.
    """
    source = _Source(tree)
    returned = source.unwrapped(method.returns)
    if isinstance(returned, ast.Name) and returned.id == "str":
        return Answer("str", None)
    fields = list(source.parts(returned)) or list(_returned_keys(method))
    label = _label(fields)
    confidence = _named(fields, CONFIDENCE_FIELDS, ("float", "unknown")) or _only(fields, ("float",))
    return Answer(_quoted(label or UNCLEAR), None if confidence is None else _quoted(confidence))


def fields_of_class(tree: ast.Module, name: str) -> list[str]:
    """Names of the annotated fields of a class of this module; none where there is no such class."""
    return [field for field, _ in _Source(tree).fields(name)]


def _label(fields: list[AnswerField]) -> str | None:
    likely = [one for one in fields if not one.name.endswith("id") and one.name not in TEXT_NAMES]
    return (
        _named(fields, LABEL_FIELDS, ("closed", "text", "unknown"))
        or _only(likely, ("closed",))
        or _only(likely, ("closed", "text"))
    )


def _named(fields: list[AnswerField], names: Iterable[str], kinds: tuple[Kind, ...]) -> str | None:
    fitting = {one.name: one.path for one in reversed(fields) if one.kind in kinds}
    return next((fitting[name] for name in names if name in fitting), None)


def _only(fields: list[AnswerField], kinds: tuple[Kind, ...]) -> str | None:
    fitting = [one.path for one in fields if one.kind in kinds]
    return fitting[0] if len(fitting) == 1 else None


def _quoted(path: str) -> str:
    return f'"{path}"'


def _returned_keys(method: Method) -> Iterator[AnswerField]:
    """The keys of a dictionary that the method returns as it is written there."""
    for node in ast.walk(method):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Dict):
            keys = [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
            yield from (AnswerField(key, "unknown") for key in keys if isinstance(key, str))
            return


class _Source:
    """The classes of a module, by their names."""

    def __init__(self, tree: ast.Module) -> None:
        self._classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}

    def fields(self, name: str) -> Iterator[tuple[str, ast.expr]]:
        """Names and annotations of a class's fields, those of its bases first."""
        if name not in self._classes:
            return
        node = self._classes[name]
        for base in node.bases:
            if isinstance(base, ast.Name) and base.id != name:
                yield from self.fields(base.id)
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                yield statement.target.id, statement.annotation

    def parts(self, annotation: ast.expr | None, within: tuple[str, ...] = ()) -> Iterator[AnswerField]:
        """The fields of an annotated answer, nested ones with dotted paths; none where it does not say."""
        prefix = ".".join(within)
        if isinstance(annotation, ast.Subscript) and _last_name(annotation.value) in ("tuple", "Tuple"):
            inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else []
            yield from (AnswerField(str(place), self.kind(one)) for place, one in enumerate(inner))
        elif isinstance(annotation, ast.Name) and len(within) < 3:
            for name, own in self.fields(annotation.id):
                nested = list(self.parts(self.unwrapped(own), (*within, name)))
                yield from nested or [AnswerField(f"{prefix}.{name}" if prefix else name, self.kind(own))]

    def unwrapped(self, annotation: ast.expr | None) -> ast.expr | None:
        """What an optional, a list, a stream or ``Annotated`` is of; a quoted annotation as it is meant."""
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            try:
                return self.unwrapped(ast.parse(annotation.value, mode="eval").body)
            except SyntaxError:
                return None
        if isinstance(annotation, ast.BinOp):
            sides = [one for one in (annotation.left, annotation.right) if not _is_none(one)]
            return self.unwrapped(sides[0]) if len(sides) == 1 else annotation
        if isinstance(annotation, ast.Subscript):
            if _last_name(annotation.value) in (*_MAPPINGS, "Literal", "tuple", "Tuple"):
                return annotation
            inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
            return self.unwrapped(inner[0]) if inner else annotation
        return annotation

    def kind(self, annotation: ast.expr) -> Kind:
        """What a field of this annotation holds."""
        if isinstance(annotation, ast.Subscript) and _last_name(annotation.value) not in ("Literal", *_WRAPPERS):
            return "other"  # a list or a mapping of labels is not the label
        found = self.unwrapped(annotation)
        if isinstance(found, ast.Subscript):
            return "closed" if _last_name(found.value) == "Literal" else "other"
        name = None if found is None else _last_name(found)
        if name in self._classes:
            return "closed" if any(_last_name(base) in _ENUMS for base in self._classes[name].bases) else "other"
        return _PLAIN.get(name or "", "unknown")


_WRAPPERS = ("Annotated", "Optional", "Required", "NotRequired")


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _last_name(node: ast.expr) -> str | None:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None
