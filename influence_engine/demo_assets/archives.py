"""Chosen files out of wheels and source distributions, and nothing beside the folder they belong in."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from influence_engine.errors import DataError


def unpack(archive: Path, members: Sequence[str], into: Path) -> None:
    """Writes the chosen members of a ``.whl``, ``.zip`` or ``.tar.gz`` below ``into``, under their own paths.

    Args:
        archive: The file.
        members: Paths in the archive; one that ends in ``/`` stands for all files below it.
        into: The folder.

    Raises:
        DataError: the archive is damaged, lacks a member, or has one whose path leads out of ``into``. Links and
            devices are not files here: one that is asked for counts as lacking.
    """
    found: set[str] = set()
    try:
        for name, content in _files(archive):
            wanted = next((member for member in members if _matches(name, member)), None)
            if wanted is None:
                continue
            target = into / _safe(name, archive)
            target.parent.mkdir(parents=True, exist_ok=True)
            with content as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
            found.add(wanted)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise DataError(f"{archive} cannot be unpacked: {error}", field=str(archive)) from error
    lacking = [member for member in members if member not in found]
    if lacking:
        raise DataError(f"{archive} has no file {lacking[0]}", field=str(archive))


def _matches(name: str, member: str) -> bool:
    return name.startswith(member) if member.endswith("/") else name == member


def _safe(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise DataError(f"{archive} has a file whose path leads elsewhere: {name!r}", field=str(archive))
    return path


def _files(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Regular files of an archive, by path, opened for reading."""
    if archive.suffix in {".whl", ".zip"}:
        with zipfile.ZipFile(archive) as wheel:
            for entry in wheel.infolist():
                if not entry.is_dir():
                    yield entry.filename, wheel.open(entry)
        return
    with tarfile.open(archive, "r:*") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isfile() else None
            if content is not None:
                yield member.name, content
