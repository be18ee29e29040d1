"""Locks that outlive a transaction's statements, named alike by every process."""

from __future__ import annotations

import hashlib


def lock_number(namespace: str, name: str) -> int:
    """The number of a PostgreSQL advisory lock: 63 bits of a digest of the names."""
    digest = hashlib.sha256(f"bento-audit\0{namespace}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
