"""Requests of ``/audit/feedback``."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from audit_service.schemas.common import MAX_NAME, ModelRequest, Name, Request

MAX_FEEDBACK = 1_000


class FeedbackItem(Request):
    """The true label of one prediction."""

    prediction_id: str = Field(strict=True, min_length=1, max_length=128)
    label: str | list[str] = Field(
        description="What was right; of a prediction that may have several labels, such as types of entities, their "
        "list, empty where none was."
    )

    @field_validator("label")
    @classmethod
    def _short(cls, value: str | list[str]) -> str | list[str]:
        for label in [value] if isinstance(value, str) else value:
            if not 1 <= len(label) <= MAX_NAME:
                raise PydanticCustomError("label_length", f"a label has 1 to {MAX_NAME} characters")
        return value

    groups: dict[Name, Name] = Field(
        default_factory=dict, max_length=16, description="Groups it belongs to, such as {'region': 'north'}."
    )


class FeedbackRequest(ModelRequest):
    """True labels that have arrived; days later, in bulk."""

    items: list[dict[str, Any]] = Field(
        min_length=1, max_length=MAX_FEEDBACK, description="Each with prediction_id, label and, if wanted, groups."
    )
