"""Requests of ``/audit/index``."""

from __future__ import annotations

from audit_service.schemas.common import ModelRequest


class IndexRequest(ModelRequest):
    """Asks what is loaded."""
