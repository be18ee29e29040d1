"""Request of ``/audit/thumbnail``, which answers a picture instead of JSON."""

from __future__ import annotations

from pydantic import Field

from audit_service.schemas.common import ModelRequest, Request


class ThumbnailRequest(ModelRequest):
    """Which training example to show."""

    example_handle: str = Field(strict=True, max_length=128, description="As an explanation names it.")


class EngineThumbnailRequest(Request):
    """The same, as a service asks the engine."""

    config: str
    example_handle: str = Field(max_length=128)
