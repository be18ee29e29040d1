"""Requests of ``/audit/feedback``."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from audit_service.schemas.common import ModelRequest, Name, Request

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

    items: list[dict[str, Any]] = Field(
        min_length=1, max_length=MAX_FEEDBACK, description="Each with prediction_id, label and, if wanted, groups."
    )
