"""Optional parts of an index version: written by a build, or added to an older version without building it again.

A part lies in ``parts/NAME-VERSION/`` of the version's folder and is listed in the manifest, with the SHA-256 of its
files. It is written aside, renamed, and then listed, so that a version has a part or has it not, whenever the work is
killed. The version keeps its name, its vectors and its digests: whatever serves it goes on undisturbed, and takes the
part up when it opens the version the next time.

What is replaced during a version's life (the replay basis, the calibration) stays where it always was, beside the
vectors, and is listed as a part of that name.
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
"""What a part may need that is not in the version's folder: fields of ``PartContext``."""


@dataclass(frozen=True)
class PartContext:
    """What a version's files do not hold; only what a part ``needs`` is there.

    Attributes:
        model: The fine-tuned model of the index.
        task: Its task.
        examples: The training examples.
        progress: Told how far the work is.
    """

    model: nn.Module | None = None
    task: Task | None = None
    examples: Sequence[Example] = ()
    progress: Progress = silent


@dataclass(frozen=True)
class PartCost:
    """What adding a part will take, said before it begins.

    Attributes:
        seconds: About.
        read_bytes: Of the version's files.
        disk_bytes: Of the part.
    """

    seconds: float
    read_bytes: int
    disk_bytes: int


class IndexPart(Protocol):
    """A part that this code can add to an existing version.

    Attributes:
        name: In the manifest.
        version: Of its format; an older one is replaced, a newer one left alone.
        needs: What ``PartContext`` has to hold.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int: ...

    @property
    def needs(self) -> frozenset[Need]: ...

    def cost(self, version: Path) -> PartCost:
        """What adding it to the version in this folder will take."""

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
    # As it lies there, not as this code reads it: whatever else is in the manifest stays as it was written.
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
