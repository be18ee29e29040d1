"""Where a service keeps what changes: a folder, and perhaps a database server."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StateLocation:
    """Where the state of one config lies.

    Attributes:
        folder: The keys always lie here, and the SQLite files where there is no server.
        url: The address of a PostgreSQL database, ``postgresql+psycopg://user:password@host/database``.
        namespace: The PostgreSQL schema with the tables, so that several configs share a database; it is made where
            it is missing.
    """

    folder: Path
    url: str | None = field(default=None, repr=False)  # a password may be in it
    namespace: str | None = None

    @classmethod
    def of(cls, place: StateLocation | str | os.PathLike[str]) -> StateLocation:
        """The location that ``place`` is, or the folder that it names."""
        return place if isinstance(place, StateLocation) else cls(Path(place))
