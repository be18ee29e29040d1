"""Versions of the tables: read when a database is opened, older ones brought up to date, newer ones refused."""

from __future__ import annotations

import threading
from contextlib import ExitStack

from sqlalchemy import Column, Connection, Engine, MetaData, String, Table, func, inspect, select
from sqlalchemy.schema import CreateSchema

from audit_service.errors import StateSchemaError
from audit_service.store.engines import patient
from audit_service.store.locks import lock_number
from audit_service.store.tables import MIGRATIONS, StoreSchema

PATIENCE_S = 60.0
"""How long to wait for another process that is migrating."""

_migrating = threading.Lock()  # Alembic keeps what it works on in global variables


def version_table(schema: StoreSchema) -> str:
    """The table that holds the version."""
    return f"{schema.name}_schema_version"


def version_of(connection: Connection, schema: StoreSchema, namespace: str | None) -> str | None:
    """The version on record; ``None`` for a new database and for one from before versions were written down."""
    name = version_table(schema)
    if not inspect(connection).has_table(name, schema=namespace):
        return None
    table = Table(name, MetaData(), Column("version_num", String))
    return connection.scalar(select(table.c.version_num))


def migrate(engine: Engine, schema: StoreSchema, namespace: str | None, where: str) -> None:
    """Makes the tables, or changes those of an older version, whoever else starts at the same moment.

    All of it is one transaction: where it fails, the disk is full or the process is killed, everything is as before.

    Args:
        engine: One whose transactions lock.
        schema: The tables.
        namespace: The PostgreSQL schema that they are in.
        where: What to call the place in messages.

    Raises:
        StateSchemaError: the tables are of a newer version, or somebody else's.
    """
    with _migrating, engine.connect() as connection, ExitStack() as stack:
        if namespace is None:
            stack.enter_context(patient(connection, PATIENCE_S, schema.timeout_s))
        with connection.begin():
            if namespace is not None:
                _lock(connection, namespace)
            found = version_of(connection, schema, namespace)
            if found == schema.version:  # another process was quicker
                return
            if found is not None and found not in schema.versions:
                raise StateSchemaError(
                    f"the {schema.name} in {where} have version {found} of their tables, and this bento-audit knows "
                    f"{' to '.join(dict.fromkeys((schema.versions[0], schema.version)))}: a newer one has written "
                    "them. Nothing has been read; upgrade bento-audit, or name another place for the state"
                )
            _upgrade(connection, schema, namespace)


def _lock(connection: Connection, namespace: str) -> None:
    connection.execute(select(func.set_config("lock_timeout", f"{round(1000 * PATIENCE_S)}", True)))
    # Before the schema is there two stores may want to make it: they wait for each other, too.
    connection.execute(select(func.pg_advisory_xact_lock(lock_number(namespace, "migrations"))))
    if not inspect(connection).has_schema(namespace):
        connection.execute(CreateSchema(namespace))
    # Alembic names no schema where it changes a table; until the transaction ends this is the one that is meant.
    connection.execute(select(func.set_config("search_path", f'"{namespace}"', True)))


def _upgrade(connection: Connection, schema: StoreSchema, namespace: str | None) -> None:
    from alembic import command  # a tenth of a second that is only needed here
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", _escaped(MIGRATIONS))
    config.set_main_option("version_locations", _escaped(schema.migrations))
    config.set_main_option("path_separator", "newline")
    config.attributes.update(connection=connection, namespace=namespace, version_table=version_table(schema))
    command.upgrade(config, "head")


def _escaped(path: object) -> str:
    return str(path).replace("%", "%%")
