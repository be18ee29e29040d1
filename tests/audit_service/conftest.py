"""Places for state, each in a folder of its own: SQLite files, and a schema of a real PostgreSQL server."""

from __future__ import annotations

from pathlib import Path

import pytest

from audit_service.store.location import StateLocation
from tests.postgres import PostgresServer, new_namespace


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StateLocation:
    """Where a test keeps its state, on each database."""
    if request.param == "sqlite":
        return StateLocation(tmp_path / "state")
    return on_server(request.getfixturevalue("postgres"), tmp_path)


@pytest.fixture
def server_place(postgres: PostgresServer, tmp_path: Path) -> StateLocation:
    """Where a test keeps its state, on the server."""
    return on_server(postgres, tmp_path)


def on_server(postgres: PostgresServer, folder: Path) -> StateLocation:
    """A schema of its own, and a folder for the keys."""
    return StateLocation(folder / "state", url=postgres.url(), namespace=new_namespace())
