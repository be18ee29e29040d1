"""Where a service keeps what changes: a folder, and perhaps a database server."""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

logger = logging.getLogger(__name__)


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


def private_folder(folder: Path) -> Path:
    """The folder, made where it is missing, and closed to everybody but its owner.

    Labels, scores, groups and logs are as private as inputs. A folder that belongs to somebody else, or that everybody
    may write to, is not this service's alone and stays as it is, which is logged: a mounted volume, ``/tmp``.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.stat()
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        if found.st_uid == os.geteuid() and not found.st_mode & stat.S_IWOTH:
            folder.chmod(stat.S_IMODE(found.st_mode) & ~(stat.S_IRWXG | stat.S_IRWXO))
            logger.info("%s is closed to other users: it holds labels, scores and keys", folder)
        else:
            logger.warning("%s can be read by other users, and holds labels, scores and keys", folder)
    return folder
