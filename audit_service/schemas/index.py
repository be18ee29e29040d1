"""Request and response of ``/audit/index``."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from audit_service.schemas.common import IndexIdentity, ModelIdentity, ModelRequest
from audit_service.schemas.explain import PendingPart


class IndexRequest(ModelRequest):
    """Asks what is loaded."""


class RecordState(BaseModel):
    """Whether predictions are put on record by the worker that answers."""

    waiting: int = Field(description="Predictions that are not written yet.")
    reason: str | None = Field(description="Why the last attempt to write failed; null where it did not.")


class IndexResponse(BaseModel):
    """What the engine has loaded, or why it has not."""

    state: Literal["loading", "ready", "failed"]
    reason: str | None = Field(
        description="Why nothing could be loaded, or not what is newer; null where nothing is wrong."
    )
    model: ModelIdentity | None = Field(None, description="Left out until one is loaded, as the two below.")
    index: IndexIdentity | None = None
    coming: list[PendingPart] = Field([], description="What is being made for the index now.")
    record: RecordState
