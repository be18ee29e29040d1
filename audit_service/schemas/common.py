"""What several endpoints share: limits, options, and the identity of what answered."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_TOP_K = 100
MAX_BATCH = 100
MAX_GROUPINGS = 8
Polarity = Literal["both", "each", "proponents", "opponents"]
Tier = Literal["best", "estimated", "refined", "replayed", "measured"]
Part = Literal["examples", "groups", "modules"]


class Request(BaseModel):
    """Base of what comes from outside: unknown fields are refused, and error messages never repeat the input."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Target(Request):
    """What is to be explained, instead of what was predicted."""

    label: str = Field(strict=True, description="Name of the label whose log-odds are explained.")


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

    code: str
    message: str
    field: str | None = None
