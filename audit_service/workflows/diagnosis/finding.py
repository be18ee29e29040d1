"""``Finding``: the result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "missing", "broken"]
"""``note``: works, but worth knowing. ``missing``: not made yet, the advice says how. ``broken``: has to be mended."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: What it is.
        state: How it is.
        found: What was found.
        advice: What to do, unless nothing has to be done.
    """

    what: str
    state: State
    found: str
    advice: str | None = None
