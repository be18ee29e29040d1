"""Requests of ``/audit/index``."""

from __future__ import annotations

from audit_service.schemas.common import Request


class IndexRequest(Request):
    """Asks what is loaded; there is nothing to choose."""
