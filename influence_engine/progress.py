"""Progress of long work, without choosing how it is shown."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called as work goes on; the command line draws a bar from it, tests count it, a server logs it."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Reports that ``done`` of ``total`` units of ``stage`` are finished; ``note`` is a short remark (a loss)."""


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """The default: shows nothing."""
