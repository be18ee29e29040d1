"""Work in the background that gives way to everything else on the machine."""

from __future__ import annotations

import contextlib
import os


def lowest_priority() -> None:
    """Lets everything else on the machine go first; call it before this process starts threads, which inherit it."""
    os.nice(19)
    if hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
