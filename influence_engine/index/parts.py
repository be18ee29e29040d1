"""Optional parts of an index version: written by a build, or added to an older version without building it again.

A part is stored in ``parts/NAME-VERSION/`` of the version's folder and listed in the manifest, with the SHA-256 of its
files. A part is written to a temporary folder, renamed, and then listed, so that a version has either all or nothing of
a part, whenever the work is killed. The version's name, vectors and digests stay the same: a service that has the
version open goes on undisturbed, and reads the part when it opens the version the next time.

Files that are replaced during a version's life (the replay basis, the calibration) stay beside the vectors, and are
listed as parts of that name.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from torch import nn

from influence_engine.digests import file_digest, folder_digests
from influence_engine.files import read_json, remove_tree, sync_file, sync_folder, write_json
from influence_engine.index.manifest import MANIFEST, Manifest, PartEntry
from influence_engine.progress import Progress, silent
from influence_engine.tasks import Example, Task
from influence_engine.training.identity import versions

PARTS = "parts"

Need = Literal["model", "task", "examples"]
"""Inputs that a part may need beside the version's files: fields of ``PartContext``."""


@dataclass(frozen=True)
class PartContext:
    """Inputs of a part beside the version's files; only those that a part ``needs`` have to be given.

    Attributes:
        model: The fine-tuned model of the index.
        task: The model's task.
        examples: The training examples.
        progress: Called as the work goes on.
    """

    model: nn.Module | None = None
    task: Task | None = None
    examples: Sequence[Example] = ()
    progress: Progress = silent


@dataclass(frozen=True)
class PartCost:
    """The predicted cost of adding a part.

    Attributes:
        seconds: Time, about.
        read_bytes: Bytes of the version's files that are read.
        disk_bytes: Bytes of the part on disk.
    """

    seconds: float
    read_bytes: int
    disk_bytes: int


class IndexPart(Protocol):
    """A part that this code can add to an existing version.

    Attributes:
        name: Name of the part in the manifest.
        version: Version of the part's format; a part of an older format is replaced, one of a newer format left alone.
        needs: Fields of ``PartContext`` that have to be given.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int: ...

    @property
    def needs(self) -> frozenset[Need]: ...

    def cost(self, version: Path) -> PartCost:
        """The predicted cost of adding the part to the version in this folder."""

    def add(self, version: Path, into: Path, context: PartContext) -> None:
        """Writes the part's files into the empty folder ``into``; nothing else in the version may change."""


def missing_parts(manifest: Manifest, parts: Sequence[IndexPart]) -> list[IndexPart]:
    """Those of ``parts`` that the version lacks, or has in an older form."""
    found = {name: entry.version for name, entry in manifest.parts.items()}
    return [part for part in parts if found.get(part.name, 0) < part.version]


def add_parts(version: Path, parts: Sequence[IndexPart], context: PartContext) -> list[str]:
    """Adds the missing ones of ``parts`` to the version in this folder; returns their names.

    Killed at any time and called again, it ends with the same; two at once do the work once.

    Raises:
        IndexFormatError: there is no manifest of a known format.
        OSError: the folder cannot be written to.
    """
    with _changing(version):
        added = missing_parts(Manifest.read(version / MANIFEST), parts)
        for part in added:
            folder = version / PARTS / f"{part.name}-{part.version}"
            aside = folder.with_name(f".{folder.name}.partial")
            for left in (aside, folder):  # by a process that was killed
                remove_tree(left)
            aside.mkdir(parents=True)
            part.add(version, aside, context)
            for file in aside.rglob("*"):
                (sync_file if file.is_file() else sync_folder)(file)
            aside.rename(folder)
            sync_folder(folder.parent)
            files = {f"{PARTS}/{folder.name}/{name}": digest for name, digest in folder_digests(folder).items()}
            _list(version, part.name, _entry(part.version, files))
            for other in folder.parent.glob(f"{part.name}-*"):
                if other != folder and other.name.rpartition("-")[0] == part.name:
                    remove_tree(other)
    return [part.name for part in added]


def replace_part(version: Path, name: str, file: str, write: Callable[[Path], None]) -> None:
    """Lets ``write`` write a single file beside the vectors, whole or not at all, and lists it as part ``name``.

    A version that is killed in between has the file, old or new, and no entry for it: nothing says that it is wrong.
    """
    with _changing(version):
        _list(version, name, None)
        write(version / file)
        _list(version, name, _entry(1, {file: file_digest(version / file)}))


def _list(version: Path, name: str, entry: PartEntry | None) -> None:
    # The raw JSON, not what this code reads of it: unknown entries of the manifest stay as they were written.
    manifest = read_json(version / MANIFEST)
    before = manifest.get("parts", {})
    parts = {other: found for other, found in before.items() if other != name}
    if entry is not None:
        parts[name] = entry.model_dump(mode="json")
    if parts != before:
        write_json(version / MANIFEST, {**manifest, "parts": parts})


def _entry(version: int, files: dict[str, str]) -> PartEntry:
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return PartEntry(version=version, files=files, made_by=versions()["bento-audit"], created=created)


@contextlib.contextmanager
def _changing(version: Path) -> Iterator[None]:
    """Lets one process after the other change a version; the system lifts the lock if this one dies."""
    descriptor = os.open(version, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
