"""One store's database, opened when it is first needed: SQLite in the state folder, or PostgreSQL by URL.

Stores say what they do in SQLAlchemy Core, once for both. Several processes use one database at a time; each
connection is checked for the version of its tables before anything is read from it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Table, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from audit_service.errors import ServiceError, StoreUnavailableError
from audit_service.store.engines import BEGIN, server_engine, sqlite_engine
from audit_service.store.location import StateLocation
from audit_service.store.locks import lock_number
from audit_service.store.schema_version import migrate, version_of
from audit_service.store.tables import StoreSchema
from influence_engine.errors import SettingsError

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 5
LONGEST_NAMESPACE = 63
"""PostgreSQL cuts longer names off, and two configs would share their tables."""


class _Engines(NamedTuple):
    pid: int
    reading: Engine
    writing: Engine


class Database:
    """The tables of one store.

    Args:
        location: Where they lie; nothing is opened before it is needed.
        schema: Which tables.
    """

    def __init__(self, location: StateLocation, schema: StoreSchema) -> None:
        self.location = location
        self.schema = schema
        self._opened: _Engines | None = None
        self._opening = threading.Lock()
        self._checked = f"{location.namespace}/{schema.name}/{schema.version}"
        self._ready = False

    @property
    def where(self) -> str:
        """The place in words, without a password."""
        if self.location.url is None:
            return str(self.location.folder / f"{self.schema.name}.sqlite")
        url = self._engines().writing.url
        return f"{url.host or 'localhost'}/{url.database} ({self.location.namespace})"

    def open(self) -> None:
        """Opens it, and makes or migrates its tables.

        Raises:
            StoreUnavailableError: it cannot be reached, written, or another process holds it.
            StateSchemaError: the tables are of a version that this program does not know.
            SettingsError: its address is none.
        """
        with self.reading(f"the {self.schema.name} cannot be opened"):
            pass

    def version(self) -> str | None:
        """The version of the tables that are there, which are left as they are; ``None`` where there are none.

        Raises:
            StoreUnavailableError: the database cannot be reached or read.
            SettingsError: its address is none.
        """
        with self._saying(f"the {self.schema.name} cannot be opened"), self._engines().reading.connect() as connection:
            return version_of(connection, self.schema, self._namespace)

    @contextlib.contextmanager
    def reading(self, failure: str) -> Iterator[Connection]:
        """A connection on which every statement stands by itself.

        Args:
            failure: What to say if it fails.

        Raises:
            StoreUnavailableError: what goes wrong with the database within the context.
        """
        with self._saying(failure), self._engines().reading.connect() as connection:
            self._check(connection)
            yield connection

    @contextlib.contextmanager
    def writing(self, failure: str, *, alone: bool = False) -> Iterator[Connection]:
        """A transaction: all of it, or nothing; it is on disk when the context ends.

        Args:
            failure: What to say if it fails.
            alone: No other transaction of this kind on these tables runs meanwhile. On SQLite none ever does.

        Raises:
            StoreUnavailableError: what goes wrong with the database within the context.
        """
        with self._saying(failure), self._engines().writing.connect() as connection:
            self._check(connection)
            with connection.begin():
                if alone and connection.dialect.name == "postgresql":
                    connection.execute(select(func.pg_advisory_xact_lock(self._lock_number("alone"))))
                yield connection

    @contextlib.contextmanager
    def holding(self, name: str, failure: str) -> Iterator[bool]:
        """Whether this process alone holds a server's lock of this name, while the context lasts.

        Raises:
            StoreUnavailableError: the server cannot be asked.
        """
        number = self._lock_number(name)
        with contextlib.ExitStack() as stack:
            with self._saying(failure):  # and not of what is done meanwhile
                connection = stack.enter_context(self._engines().reading.connect())
                held = bool(connection.scalar(select(func.pg_try_advisory_lock(number))))
            try:
                yield held
            finally:
                if held:
                    with contextlib.suppress(SQLAlchemyError):  # a connection that broke has let go of it
                        connection.execute(select(func.pg_advisory_unlock(number)))

    def close(self) -> None:
        """Gives connections back; the next use opens it again."""
        with self._opening:
            opened, self._opened = self._opened, None
        if opened is not None and self.location.url is None and opened.pid == os.getpid():
            opened.writing.dispose()

    def _engines(self) -> _Engines:
        opened = self._opened
        if opened is not None and opened.pid == os.getpid():
            return opened
        with self._opening:
            self._opened = self._open_engines()
            return self._opened

    def _open_engines(self) -> _Engines:
        location, schema = self.location, self.schema
        if location.url is None:
            path = location.folder / f"{schema.name}.sqlite"
            engine = sqlite_engine(path, schema.synchronous, schema.timeout_s)
            return _Engines(os.getpid(), engine, engine.execution_options(**{BEGIN: "IMMEDIATE"}))
        namespace = location.namespace or ""
        if not 0 < len(namespace.encode()) <= LONGEST_NAMESPACE:
            raise SettingsError(
                f"{namespace!r} names the tables on the database server, and may have 1 to {LONGEST_NAMESPACE} letters",
                field="name",
            )
        engine = server_engine(location.url).execution_options(schema_translate_map={None: namespace})
        return _Engines(os.getpid(), engine.execution_options(isolation_level="AUTOCOMMIT"), engine)

    def _check(self, connection: Connection) -> None:
        if self._ready and self._checked in connection.info:  # the pool may be older than this object
            return
        engines, namespace = self._engines(), self._namespace
        with engines.reading.connect() as other:
            version = version_of(other, self.schema, namespace)
        if version != self.schema.version:
            migrate(engines.writing, self.schema, namespace, self.where)
            if namespace is None and version is None:  # a file of the time before versions may be open to all
                with contextlib.suppress(OSError):
                    (self.location.folder / f"{self.schema.name}.sqlite").chmod(0o600)
        connection.info[self._checked] = self._ready = True

    @property
    def _namespace(self) -> str | None:
        return self.location.namespace if self.location.url is not None else None

    def _lock_number(self, name: str) -> int:
        return lock_number(self.location.namespace or "", f"{self.schema.name}/{name}")

    @contextlib.contextmanager
    def _saying(self, failure: str) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error, OSError) as error:
            logger.warning("%s: %s", failure, _reason(error))
            raise _translated(error, failure, on_server=self.location.url is not None) from error


class Insert(NamedTuple):
    """An INSERT that says what happens where the key is there already, for each database; made once, like its tables.

    Attributes:
        sqlite: In the words of SQLite.
        postgresql: In the words of PostgreSQL.
    """

    sqlite: sqlite.Insert
    postgresql: postgresql.Insert

    @classmethod
    def or_keep(cls, table: Table) -> Insert:
        """What is there stays."""
        return cls(sqlite.insert(table).on_conflict_do_nothing(), postgresql.insert(table).on_conflict_do_nothing())

    @classmethod
    def or_replace(cls, table: Table) -> Insert:
        """What is there is replaced, all columns of it."""

        def replacing(statement: Any) -> Any:
            key = [column.name for column in table.primary_key]
            given = {one.name: statement.excluded[one.name] for one in table.columns if one.name not in key}
            return statement.on_conflict_do_update(index_elements=key, set_=given)

        return cls(replacing(sqlite.insert(table)), replacing(postgresql.insert(table)))

    def into(self, connection: Connection, rows: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Inserts one row, or many; each has every column."""
        connection.execute(self.postgresql if connection.dialect.name == "postgresql" else self.sqlite, rows)


def storable(text: str) -> bool:
    """Whether both databases can hold a text: no NUL, no half of a surrogate pair."""
    if "\0" in text:
        return False
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _translated(error: Exception, failure: str, *, on_server: bool) -> ServiceError:
    if _is_locked(error):
        return StoreUnavailableError(
            f"{failure}: another process holds its lock; try again later", retry_after=RETRY_AFTER_S
        )
    if on_server:  # what a server says may name hosts and users, which a client need not know
        return StoreUnavailableError(
            f"{failure}: the database server does not answer as it should, the log says more; try again later",
            retry_after=RETRY_AFTER_S,
        )
    return StoreUnavailableError(f"{failure}: {_reason(error)}", retry_after=RETRY_AFTER_S)


def _is_locked(error: Exception) -> bool:
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.OperationalError):
        return cause.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return getattr(cause, "sqlstate", None) == "55P03"  # lock_not_available


def _reason(error: Exception) -> str:
    """The first line of what the driver says: the statement and its values stay out of logs and answers."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    lines = str(cause).splitlines()
    return lines[0] if lines else type(cause).__name__
