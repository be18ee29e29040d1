"""How long work reports its progress, whoever shows it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A function that is called as work goes on: the command line draws a bar, a server logs it, a test counts it."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Reports that ``done`` of ``total`` units of ``stage`` are finished; ``note`` is a short remark (a loss)."""


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """The default ``Progress``, which shows nothing."""
