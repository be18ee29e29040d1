"""``Finding``: the result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "missing", "broken"]
"""``note``: works, but worth knowing. ``missing``: not made yet, the advice says how. ``broken``: has to be mended."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        what: The thing that was checked.
        state: Whether it is in order.
        found: What the check found, in words.
        advice: What to do; None where nothing has to be done.
    """

    what: str
    state: State
    found: str
    advice: str | None = None
