"""What several endpoints share: limits, options, and the identity of what answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, StringConstraints, model_validator
from pydantic_core import CoreSchema, PydanticCustomError

MAX_TOP_K = 100
MAX_BATCH = 100
MAX_GROUPINGS = 8
MAX_NAME = 1_024
Name = Annotated[str, StringConstraints(strict=True, max_length=MAX_NAME)]
"""A label, a column, a group or a handle."""

Polarity = Literal["both", "each", "proponents", "opponents"]
Tier = Literal["best", "estimated", "refined", "replayed", "measured"]
Part = Literal["examples", "groups", "modules", "parts"]


class Request(BaseModel):
    """Base of what comes from outside: unknown fields are refused, and error messages never repeat the input."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class ModelRequest(Request):
    """Base of what is asked about one of the models that a service is audited for."""

    config: str | None = Field(
        None,
        strict=True,
        max_length=128,
        description="The model, by the name of its config; left out, that of the prediction, or the service's own.",
    )


class Target(Request):
    """What is to be explained, instead of what was predicted: a label's name, or an object; which of its fields mean
    something is the task's affair."""

    label: Name | None = Field(None, description="A label, of the whole or of the span.")
    span: tuple[int, int] | None = Field(None, description="First character of a part of the input, and one past it.")
    tokens: list[int] | None = Field(None, max_length=4096, description="Positions of tokens.")
    answer: str | None = Field(None, strict=True, max_length=100_000, description="A text that the model might give.")

    @model_validator(mode="before")
    @classmethod
    def _label_alone(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"label": value}
        if not isinstance(value, (Mapping, cls)):
            raise PydanticCustomError(
                "target_type",
                "name a label, 'NAME', or an object such as {'label': 'NAME'}; its fields are {fields}",
                {"fields": ", ".join(cls.model_fields)},
            )
        return value

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """A label's name, or the object."""
        described = handler.resolve_ref_schema(handler(schema))
        shape = {key: described.pop(key) for key in list(described) if key not in ("title", "description")}
        label = {"type": "string", "maxLength": MAX_NAME, "description": "A label, by its name."}
        described["anyOf"] = [{**shape, "minProperties": 1}, label]
        return described

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.model_fields_set:
            raise PydanticCustomError("no_target", "name a target, such as {'label': ...}")
        return self

    def named(self) -> str | dict[str, Any]:
        """Only what was given, as tasks take it: a label alone by its name."""
        given = self.model_dump(mode="json", exclude_none=True)
        return str(given["label"]) if set(given) == {"label"} else given


class ModelIdentity(BaseModel):
    """Which model answered."""

    tag: str
    digest: str


class IndexIdentity(BaseModel):
    """Which index answered."""

    tag: str
    digest: str
    method: str = Field(
        description="``unrolled``: along the recorded steps; ``segments``: along a few long ones from the base model's "
        "weights; ``final``: one step at the final weights."
    )
    rows: int = Field(description="Training examples in the index.")


class ErrorDetail(BaseModel):
    """What was wrong, and what would be right."""

    code: str = Field(description="The kind of mistake: the same everywhere.")
    message: str
    field: str | None = Field(None, description="What it is about, where that has a name.")


class ErrorBody(BaseModel):
    """Every error."""

    error: ErrorDetail


def exactly_one(*names: str) -> dict[str, Any]:
    """Says in JSON Schema that exactly one of some fields is there and not null."""
    given = [{"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in names]
    return {"oneOf": given}
