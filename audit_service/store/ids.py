"""Ids that carry their time (UUID version 7), so that new rows land at the end of an index."""

from __future__ import annotations

import os
import time
import uuid


def new_id() -> str:
    """A fresh UUID version 7 (RFC 9562): 48 bits of Unix time in milliseconds, then 74 random bits."""
    random = int.from_bytes(os.urandom(10), "big")
    return _with_version(time.time_ns() // 1_000_000, random, 7)


def derived_id(digest: bytes) -> str:
    """The UUID version 8 made of a digest's first 16 bytes: the same digest always gives the same id."""
    value = int.from_bytes(digest[:16], "big")
    return _with_version(value >> 80, value, 8)


def id_age_s(value: str) -> float | None:
    """Seconds since an id of ``new_id`` was made, or ``None`` if it is not one."""
    try:
        parsed = uuid.UUID(value)
    except ValueError:
        return None
    return time.time() - (parsed.int >> 80) / 1000 if parsed.version == 7 else None


def _with_version(top: int, rest: int, version: int) -> str:
    value = (top & (1 << 48) - 1) << 80 | rest & (1 << 80) - 1
    value = value & ~(0xF << 76) | version << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
