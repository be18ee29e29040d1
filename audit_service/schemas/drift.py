"""Requests of ``/audit/drift``."""

from __future__ import annotations

from audit_service.schemas.common import Request


class DriftRequest(Request):
    """Asks what has moved; there is nothing to choose."""
