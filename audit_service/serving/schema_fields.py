"""Names of the fields at a place of a request's schema, for messages about an unknown one."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel, RootModel

Shape = type[BaseModel]


def field_names(shape: Shape | None, place: Iterable[int | str] = ()) -> list[str]:
    """The fields of the object at ``place``.

    Args:
        shape: The whole request's schema; None where there is none.
        place: Names of fields and numbers of list items that lead to the object, as in ``loc`` of pydantic's errors;
            a part that is no field there (``root``, the tag of a union) leads nowhere else.
    """
    shapes = [] if shape is None else list(_shapes_in(shape))
    for part in place:
        inner = [one.model_fields[str(part)].annotation for one in shapes if str(part) in one.model_fields]
        if inner:
            shapes = [found for annotation in inner for found in _shapes_in(annotation)]
    return list(dict.fromkeys(name for one in shapes for name in one.model_fields))


def _shapes_in(annotation: Any) -> Iterator[Shape]:
    """The objects that an annotation allows, also in a list or an optional."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if issubclass(annotation, RootModel):
            yield from _shapes_in(annotation.model_fields["root"].annotation)
        else:
            yield annotation
    for argument in typing.get_args(annotation):
        yield from _shapes_in(argument)
