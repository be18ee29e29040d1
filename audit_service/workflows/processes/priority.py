"""Work in the background that gives way to everything else on the machine."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

AUTOGROUP = Path("/proc/self/autogroup")
"""Linux may share processors out by session; priorities then count within a session, and this file holds its own."""


def lowest_priority() -> None:
    """Lets everything else on the machine go first; call it before this process starts threads, which inherit it."""
    os.nice(19)
    if hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    if os.getsid(0) == os.getpid():  # of a session that others share, it is not ours to change
        with contextlib.suppress(OSError):
            AUTOGROUP.write_text("19", encoding="ascii")
