"""Names in error messages: what was meant, and what there is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SHOWN = 20
"""At most this many known names are listed in a message."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` was probably meant to be, or None where nothing is close."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def listing(names: Iterable[str]) -> str:
    """Names in quotes, separated by commas; a long list is cut, and says so."""
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "") if names else "(none)"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` with a space before it, or nothing."""
    close = nearest(name, known)
    return f" Did you mean {close!r}?" if close is not None else ""
