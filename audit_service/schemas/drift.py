"""Requests of ``/audit/drift``."""

from __future__ import annotations

from audit_service.schemas.common import ModelRequest


class DriftRequest(ModelRequest):
    """Asks what has moved."""
