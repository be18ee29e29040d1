"""Request and response of ``/audit/feedback``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator
from pydantic_core import PydanticCustomError

from audit_service.schemas.common import MAX_NAME, ErrorBody, ModelRequest, Name, Request
from audit_service.schemas.described import DescribedAs

MAX_FEEDBACK = 1_000
MAX_LABELS = 1_000


class FeedbackItem(Request):
    """The true label of one prediction."""

    prediction_id: str = Field(strict=True, min_length=1, max_length=128)
    label: Name | list[Name] = Field(
        description="What was right; of a prediction that may have several labels, such as types of entities, their "
        "list, empty where none was."
    )
    groups: dict[Name, Name] = Field(
        default_factory=dict, max_length=16, description="Groups it belongs to, such as {'region': 'north'}."
    )

    @field_validator("label", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        several = isinstance(value, list)
        labels = value if several else [value]
        # One error for the whole: a union would answer with one for each of its members.
        if len(labels) > MAX_LABELS or not all(isinstance(one, str) and 1 <= len(one) <= MAX_NAME for one in labels):
            raise PydanticCustomError("no_label", f"should be a text of 1 to {MAX_NAME} characters, or a list of such")
        return value


class FeedbackRequest(ModelRequest):
    """True labels that have arrived; days later, in bulk."""

    items: list[Annotated[dict[str, Any], DescribedAs(FeedbackItem)]] = Field(
        min_length=1, max_length=MAX_FEEDBACK, description="Each with prediction_id, label and, if wanted, groups."
    )


class FeedbackFate(BaseModel):
    """What became of one item."""

    fate: Literal["recorded", "repeated", "changed"] = Field(
        description="``repeated``: the same label was known; ``changed``: another one was, and is replaced."
    )


class FeedbackResponse(BaseModel):
    """What became of each item, in their order, and how many of each there are."""

    items: list[FeedbackFate | ErrorBody]
    recorded: int
    repeated: int
    changed: int
    refused: int = Field(description="Items that have an error.")
