"""What an API's description says of values that an endpoint reads one by one, each with an error of its own."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, GetJsonSchemaHandler


class DescribedAs:
    """An annotation: described as a model, though what is read may be anything.

    Args:
        model: The model that the endpoint holds each value against.
    """

    def __init__(self, model: type[BaseModel]) -> None:
        self._model = model

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The model's schema in place of the value's own."""
        found: dict[str, Any] = handler(self._model.__pydantic_core_schema__)
        return found
