"""Requests of the engine's own endpoints, ``/explain``, ``/selected`` and ``/status``, which audited services ask."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from audit_service.schemas.common import MAX_BATCH, MAX_GROUPINGS, MAX_TOP_K, Part, Polarity, Request, Tier


class EngineItem(BaseModel):
    """One explanation asked of the engine; the service has resolved ids and checked shapes."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    input: dict[str, Any]
    target: dict[str, Any] | None = Field(None, description="Passed to the task's `aim`.")
    top_k: int = Field(10, ge=1, le=MAX_TOP_K)
    polarity: Polarity = "both"
    tier: Tier = "best"
    include: list[Part] = ["examples", "groups", "modules"]
    group_by: list[str] = Field(["label", "source"], max_length=MAX_GROUPINGS)
    recorded: dict[str, Any] | None = Field(None, description="The prediction on record, for the parity check.")


class EngineRequest(BaseModel):
    """What a service sends to the engine. ``config`` names the model: one engine may serve several services."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    config: str
    items: list[EngineItem] = Field(min_length=1, max_length=MAX_BATCH)
    deadline_s: float = Field(gt=0, le=600, description="Seconds after which the service no longer waits.")


class StatusRequest(Request):
    """Asks what is loaded."""

    config: str | None = None


class SelectionRequest(Request):
    """Asks whether training examples are there: those of a group, or some by their handles."""

    config: str
    group: dict[str, str] | None = Field(None, min_length=1, max_length=1)
    examples: list[str] | None = Field(None, max_length=10_000)
