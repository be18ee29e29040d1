"""Puts what came from outside into words that may be answered, logged and kept: short, in one line, without paths."""

from __future__ import annotations

import os
import re

MOST_SAID = 2_000
"""Characters that a message may have; it may quote what was sent."""

MOST_NAMED = 200
"""Characters that a name may have, such as that of a field."""

_PATH = re.compile(r"(?<![\w/.:])/[^\s'\"`,;:()<>|]+")


def said(text: str, most: int = MOST_SAID) -> str:
    """A text as it may be answered or logged.

    Control characters, which would forge lines or colour a terminal, are written as escapes; what is longer than
    ``most`` characters is cut in the middle, and says so.
    """
    shown = text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 4 :]}"
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in shown)


def without_folders(text: str) -> str:
    """A message without the places of this machine: of an absolute path, what comes last stays.

    An address of an endpoint such as ``/audit/explain`` is no path: nothing of its first name lies in the root folder.
    """

    def shortened(found: re.Match[str]) -> str:
        path = found[0]
        first = path.split("/", 2)[1]
        if not first or not os.path.exists("/" + first):
            return path
        return os.path.join("...", *path.rstrip("/").split("/")[-2:])

    return _PATH.sub(shortened, text)
