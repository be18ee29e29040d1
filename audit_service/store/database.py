"""SQLite as the stores here use it: several processes, a rollback journal, nothing left of what is deleted."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Literal


def open_database(
    path: Path,
    schema: str,
    *,
    synchronous: Literal["NORMAL", "FULL"],
    timeout_s: float,
    one_thread: bool = True,
) -> sqlite3.Connection:
    """A connection to the file at ``path``, which is made if it is missing; every statement commits by itself.

    Args:
        path: The file; its folder is made, for its owner only.
        schema: Statements that change nothing where they have been executed before.
        synchronous: ``FULL`` survives a power cut with what was acknowledged, ``NORMAL`` a crash of the process.
        timeout_s: How long to wait for another process.
        one_thread: Refuse other threads than the one that opened it.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    connection = sqlite3.connect(path, timeout=timeout_s, isolation_level=None, check_same_thread=one_thread)
    try:
        connection.execute("PRAGMA journal_mode = TRUNCATE")  # a rollback journal, without a new file each time
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA secure_delete = ON")
        connection.executescript(schema)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of it, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
