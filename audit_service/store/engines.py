"""Connections to SQLite files and PostgreSQL servers, pooled, each set up the way the stores need it.

SQLite: a rollback journal (a write-ahead log can corrupt under several connections before SQLite 3.51.3), what is
deleted is overwritten, and transactions take the write lock when they begin, so that none fails half-way. PostgreSQL:
through psycopg 3, with limits on how long anything waits.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DisconnectionError

from audit_service.store.location import private_folder
from influence_engine.errors import SettingsError

BEGIN = "begin"
"""Execution option of an engine: how a transaction on SQLite begins; without it every statement stands alone."""

CONNECT_TIMEOUT_S = 5
LOCK_TIMEOUT_S = 5
FORGOTTEN_S = 60
"""After which PostgreSQL ends a transaction whose process has been stopped, and frees its locks."""

_servers: dict[tuple[int, str], Engine] = {}
_making = threading.Lock()


def sqlite_engine(path: Path, synchronous: Literal["NORMAL", "FULL"], timeout_s: float) -> Engine:
    """Connections to one file, which is made when the first one opens, for its owner only."""
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": timeout_s, "check_same_thread": False, "isolation_level": None},
        hide_parameters=True,
        poolclass=QueuePool,
        pool_size=4,
        max_overflow=-1,
    )

    def make_private(dialect: Any, record: Any, arguments: Any, options: Any) -> None:
        private_folder(path.parent)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))

    def set_up(connection: sqlite3.Connection, record: Any) -> None:
        connection.execute("PRAGMA journal_mode = TRUNCATE")  # a rollback journal, without a new file each time
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA secure_delete = ON")
        record.info["file"] = _identity(path)

    def check_out(connection: sqlite3.Connection, record: Any, proxy: Any) -> None:
        # A file that was removed or replaced would go on taking what is written, and nobody would ever see it again.
        if record.info["file"] != _identity(path):
            raise DisconnectionError(f"{path} is another file than it was")

    event.listen(engine, "do_connect", make_private)
    event.listen(engine, "connect", set_up)
    event.listen(engine, "checkout", check_out)
    event.listen(engine, "begin", _begin)
    return engine


def server_engine(address: str) -> Engine:
    """Connections to a PostgreSQL database: one pool a process, whatever is kept there.

    Raises:
        SettingsError: the address cannot be read, or the driver is not installed; never with the password.
    """
    with _making:
        key = (os.getpid(), address)  # a process that was forked must not use its parent's connections
        if key not in _servers:
            _servers[key] = _server_engine(_parsed(address))
        return _servers[key]


def _server_engine(url: URL) -> Engine:
    limits = f"-c lock_timeout={LOCK_TIMEOUT_S}s -c idle_in_transaction_session_timeout={FORGOTTEN_S}s"
    given = url.query.get("options", "")
    options = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "tcp_user_timeout": 1000 * CONNECT_TIMEOUT_S,
        "application_name": "bento-audit",
    }
    try:
        return create_engine(
            url,
            connect_args={
                **{name: value for name, value in options.items() if name not in url.query},
                "options": f"{limits} {given if isinstance(given, str) else ' '.join(given)}".strip(),
            },
            hide_parameters=True,
            pool_pre_ping=True,  # a server that was restarted is found before anything is lost on it
            pool_size=5,
            max_overflow=10,
            pool_timeout=CONNECT_TIMEOUT_S,
        )
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"state.url needs the package {error.name}: pip install 'bento-audit[postgres]'", field="state.url"
        ) from None


def _parsed(address: str) -> URL:
    try:
        url = make_url(address)
    except (ArgumentError, ValueError):  # whose messages may show the password
        raise SettingsError(
            "state.url cannot be read; it should be postgresql+psycopg://user:password@host:5432/database, with "
            "special characters in the password as %-codes",
            field="state.url",
        ) from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername != "postgresql+psycopg":
        raise SettingsError(
            f"state.url names {url.drivername!r}; it should begin with postgresql+psycopg://", field="state.url"
        )
    return url


def _begin(connection: Connection) -> None:
    how = connection.get_execution_options().get(BEGIN)
    if how is not None:
        _sqlite(connection).execute(f"BEGIN {how}")


@contextlib.contextmanager
def patient(connection: Connection, timeout_s: float, usual_s: float) -> Iterator[None]:
    """Lets a SQLite connection wait longer for other processes than it usually does."""
    opened = _sqlite(connection)
    opened.execute(f"PRAGMA busy_timeout = {round(1000 * timeout_s)}")
    try:
        yield
    finally:
        opened.execute(f"PRAGMA busy_timeout = {round(1000 * usual_s)}")


def _sqlite(connection: Connection) -> sqlite3.Connection:
    return cast(sqlite3.Connection, connection.connection.dbapi_connection)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
