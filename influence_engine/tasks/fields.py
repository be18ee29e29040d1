"""Fields of a task's examples: their names, what kind of value each holds, and what follows from the kind.

From them come the request's schema, what the command line takes, how a data set is read, limits of size, what is shown
of a training example, what influence is grouped by, and whether the values alone say what the model reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from influence_engine.errors import InputError
from influence_engine.tasks.pictures import file_bytes, from_outside, media_type, name_of

Kind = Literal["text", "image", "conversation", "numbers", "label", "labels", "spans", "number", "json"]
"""What a field holds.

========================  ==============================================================================
``text``                  a string
``image``                 a path or a data URL (``data:image/png;base64,...``) of a PNG or JPEG file
``conversation``          a list of turns, ``{"role", "content"}`` each
``numbers``               numbers, nested in lists as deep as they go
``label``                 one name of ``ExampleField.names`` (any scalar where no names are given)
``labels``                a list of such names, possibly empty
``spans``                 a list of ``{"start", "end", "label"}`` in characters of the text
``number``                one number
``json``                  anything that JSON can say
========================  ==============================================================================
"""

Role = Literal["input", "target"]

_PLAIN: frozenset[Kind] = frozenset({"text", "conversation", "numbers", "label", "labels", "spans", "number", "json"})
"""Kinds whose value, as JSON, is all that a model reads; an image's is where it lies."""


@dataclass(frozen=True)
class ExampleField:
    """One field of a task's examples.

    Attributes:
        name: Its key in an example, in requests, and among the ``columns`` of a config.
        kind: What it holds.
        role: ``input`` is what a query must have; ``target`` is what training examples have beside it.
        names: What labels are called, in the order of the model's outputs; ``None`` where that is not known.
    """

    name: str
    kind: Kind
    role: Role = "input"
    names: tuple[str, ...] | None = None

    @property
    def readable(self) -> bool:
        """Whether the value is text, which can be searched, shortened and edited."""
        return self.kind == "text"

    @property
    def viewable(self) -> bool:
        """Whether the value is a picture, which is shown as itself."""
        return self.kind == "image"

    @property
    def is_list(self) -> bool:
        """Whether a single value is a list."""
        return self.kind in ("conversation", "numbers", "labels", "spans")

    @property
    def plain(self) -> bool:
        """Whether the value, as JSON, is all that the model reads."""
        return self.kind in _PLAIN

    @property
    def counted(self) -> tuple[str, ...]:
        """All that values of this field are counted under, as far as that is known; see ``summary``."""
        several = self.kind in ("labels", "spans")
        return () if self.names is None else (*self.names, *((NONE,) if several else ()))

    def show(self, value: Any) -> str:
        """What a person sees of a value in a line; an image is shown as itself, elsewhere."""
        if value is None:
            return ""
        if self.kind == "conversation":
            return "\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in value)
        if self.kind == "image":
            return name_of(value)
        return self.group(value) or "" if self.role == "target" else str(value)

    def received(self, value: Any) -> Any:
        """A value from outside, of a request or an upload, as tasks take it: no string is ever a path.

        Raises:
            InputError: it cannot be used.
        """
        if self.kind != "image":
            return value
        try:
            return from_outside(value)
        except InputError as error:
            raise InputError(f"{self.name!r} {error.message}", field=self.name) from None

    def group(self, value: Any) -> str | None:
        """What examples of this value are grouped under; ``None`` where the kind makes no groups."""
        if value is None:
            return None
        if self.kind in ("label", "json"):
            return str(value)
        if self.kind == "labels":
            return summary(value)
        if self.kind == "spans":
            return summary(span["label"] for span in value)
        return None

    def json_type(self) -> dict[str, Any]:
        """The JSON schema of a value."""
        if self.kind in ("label", "labels"):
            name: dict[str, Any] = {} if self.names is None else {"type": "string", "enum": list(self.names)}
            return name if self.kind == "label" else {"type": "array", "items": name}
        return _TYPES.get(self.kind, {})


_TYPES: dict[Kind, dict[str, Any]] = {
    "text": {"type": "string"},
    "image": {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/*"},
    "numbers": {"type": "array"},
    "number": {"type": "number"},
    "conversation": {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"role": {"type": "string"}, "content": {"type": "string"}},
            "required": ["role", "content"],
        },
    },
    "spans": {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "start": {"type": "integer"},
                "end": {"type": "integer"},
                "label": {"type": "string"},
            },
            "required": ["start", "end", "label"],
        },
    },
}


NONE = "none"
"""What stands for no label at all where there may be several."""

_BETWEEN = ", "


def summary(labels: Iterable[Any]) -> str:
    """Several labels, or none, as one: each once, in the order of the alphabet."""
    return _BETWEEN.join(sorted({str(label) for label in labels})) or NONE


def labels_in(text: str) -> tuple[str, ...]:
    """The labels that ``summary`` made a text of; ``NONE`` alone where it stands for none."""
    return tuple(text.split(_BETWEEN))


def received(fields: Sequence[ExampleField], example: Mapping[str, Any]) -> Mapping[str, Any]:
    """An example from outside as tasks take it; see ``ExampleField.received``. The same object where all is plain."""
    taken = {field.name: field for field in fields if not field.plain}
    if not taken:
        return example
    return {
        name: taken[name].received(value) if name in taken and value is not None else value
        for name, value in example.items()
    }


def embedded(fields: Sequence[ExampleField], example: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """An example of this machine, whose values are paths below ``folder``, as if it came from outside.

    Raises:
        InputError: a file cannot be used.
    """
    local = located(fields, example, folder)
    paths = {name: Path(value) for name, value in _references(fields, local) if not value.startswith("data:")}
    return received(fields, {**local, **paths})


def located(fields: Sequence[ExampleField], example: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """The example with paths that are relative taken to be below ``folder``."""
    found = [(name, value) for name, value in _references(fields, example) if not value.startswith("data:")]
    return {**example, **{name: str(folder / Path(value).expanduser()) for name, value in found}} if found else example


def _references(fields: Sequence[ExampleField], example: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = [field.name for field in fields if not field.plain]
    return [(name, example[name]) for name in names if isinstance(example.get(name), str)]


def without_references(fields: Sequence[ExampleField], example: Mapping[str, Any]) -> dict[str, Any]:
    """The example without values that only say where something lies; ``content_digest`` covers that."""
    left_out = {field.name for field in fields if not field.plain}
    return {name: value for name, value in example.items() if name not in left_out}


def picture_of(fields: Sequence[ExampleField], example: Mapping[str, Any]) -> tuple[bytes, str] | None:
    """The file of an example's picture, with its media type; ``None`` where it has none that is more than a path."""
    for field in fields:
        value = example.get(field.name)
        if field.kind == "image" and isinstance(value, str) and value.startswith("data:"):
            return file_bytes(value), media_type(value)
    return None


def characters(value: Any) -> int:
    """Characters in a value that somebody sent, however deep they lie, for limits of size."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(characters, value.values()))
    return sum(map(characters, value)) if isinstance(value, list | tuple) else 0


def input_fields(fields: Sequence[ExampleField]) -> list[ExampleField]:
    """The fields that a query must have."""
    return [field for field in fields if field.role == "input"]


def target_field(fields: Sequence[ExampleField]) -> ExampleField | None:
    """The field that training teaches; ``None`` where there is none (a language model on plain text)."""
    return next((field for field in fields if field.role == "target"), None)


def readable_field(fields: Sequence[ExampleField]) -> ExampleField | None:
    """The one input that is text; ``None`` where none or several are."""
    found = [field for field in input_fields(fields) if field.readable]
    return found[0] if len(found) == 1 else None
