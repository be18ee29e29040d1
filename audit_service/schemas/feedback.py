"""Request and response of ``/audit/feedback``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from audit_service.schemas.common import ErrorBody, ModelRequest, Name, Request
from audit_service.schemas.described import DescribedAs

MAX_FEEDBACK = 1_000


class FeedbackItem(Request):
    """The true label of one prediction."""

    prediction_id: str = Field(strict=True, min_length=1, max_length=128)
    label: Name = Field(min_length=1, description="What was right.")
    groups: dict[Name, Name] = Field(
        default_factory=dict, max_length=16, description="Groups it belongs to, such as {'region': 'north'}."
    )


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
