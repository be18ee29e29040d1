"""The part ``file_sums``: SHA-256 of every file that a version was built with, and of its manifest.

``content_digest`` shows that two indexes hold the same examples and vectors, whatever files these are stored in; the
sums show that the files are still those that were written, and which file is not. The manifest has the sums of parts.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from influence_engine.digests import file_digest, json_digest, verify_folder
from influence_engine.errors import DigestMismatchError
from influence_engine.files import read_json, write_json
from influence_engine.index.manifest import MANIFEST, Manifest
from influence_engine.index.parts import PARTS, Need, PartContext, PartCost
from influence_engine.progress import Progress, silent

NAME = "file_sums"
SUMS = "sums.json"
SUMMING = "summing files"
VERIFYING = "verifying files"

MADE_LATER = ("replay.safetensors", "calibration.json", "reference.json")
"""Files in a version's folder that are not of the build: they are replaced during the version's life."""

_PROBED = 2**24
"""Bytes that are read to predict how long reading all files will take."""

_A_FILE = 128
"""Bytes in ``sums.json`` for each file, about."""


class FileSums:
    """The part ``file_sums``; it is made from the files of the build alone."""

    name = NAME
    version = 1
    needs: frozenset[Need] = frozenset()

    def cost(self, version: Path) -> PartCost:
        """Predicts the cost from how fast the first megabytes of the largest file are summed."""
        sizes = {name: (version / name).stat().st_size for name in built_files(version)}
        total, largest = sum(sizes.values()), max(sizes, key=lambda name: sizes[name])
        with (version / largest).open("rb") as file:
            began = time.perf_counter()
            probed = file.read(_PROBED)
            hashlib.sha256(probed).digest()
        return PartCost((time.perf_counter() - began) * total / len(probed), total, _A_FILE * len(sizes))

    def add(self, version: Path, into: Path, context: PartContext) -> None:
        """Writes ``sums.json``: ``files`` by their path in the version's folder, and ``manifest`` without its parts."""
        names = _reporting(built_files(version), SUMMING, context.progress)
        files = {name: file_digest(version / name) for name in names}
        write_json(into / SUMS, {"files": files, "manifest": _manifest_digest(version)})


def built_files(version: Path) -> list[str]:
    """Paths in the version's folder of the files that its build wrote, the manifest left out."""
    found = [path.relative_to(version) for path in version.rglob("*") if path.is_file()]
    return sorted(
        path.as_posix()
        for path in found
        if path.parts[0] != PARTS and path.as_posix() not in (MANIFEST, *MADE_LATER) and path.suffix != ".partial"
    )


def verify_files(version: Path, progress: Progress = silent) -> bool:
    """Reads every file of a version whose digest is known, several at a time, and compares the digests.

    A version without the part ``file_sums`` has a digest of its encoder and its parts only; its rows have
    ``content_digest``.

    Returns:
        Whether that was every file.

    Raises:
        DigestMismatchError: a file is missing, has changed, or is not of this version; the message names it.
        IndexFormatError: the manifest or the sums cannot be read.
    """
    while True:
        manifest = Manifest.read(version / MANIFEST)
        try:
            return _verify(version, manifest, progress)
        except DigestMismatchError:
            if Manifest.read(version / MANIFEST).parts == manifest.parts:
                raise
            # A part was replaced meanwhile.


def _verify(version: Path, manifest: Manifest, progress: Progress) -> bool:
    expected = {**manifest.files}
    for part in manifest.parts.values():
        expected |= part.files
    sums_file = _sums_file(manifest)
    if sums_file is not None:
        verify_folder(version, {sums_file: expected[sums_file]})
    sums: dict[str, Any] | None = None if sums_file is None else read_json(version / sums_file)
    if sums is not None:
        expected |= sums["files"]
    done = iter(range(1, len(expected) + 1))
    verify_folder(version, expected, each=lambda name: progress(VERIFYING, next(done), len(expected), name))
    if sums is None:
        return False
    strangers = [name for name in built_files(version) if name not in sums["files"]]
    if strangers:
        raise DigestMismatchError(
            f"{version / strangers[0]} is not of this version: it was not there when the version was built. "
            "Remove it, or restore the version.",
            field=str(version / strangers[0]),
        )
    if (found := _manifest_digest(version)) != sums["manifest"]:
        raise DigestMismatchError(
            f"{version / MANIFEST} has changed since it was written: without its parts its digest is {found}, the "
            f"version's {NAME} say {sums['manifest']}. Restore the file, or build the index again.",
            field=str(version / MANIFEST),
        )
    return True


def _sums_file(manifest: Manifest) -> str | None:
    """Path of ``sums.json`` in the version's folder; None where there is none in the form that this code knows."""
    part = manifest.parts.get(NAME)
    if part is None or part.version != FileSums.version:
        return None
    return next(name for name in part.files if Path(name).name == SUMS)


def _manifest_digest(version: Path) -> str:
    """Digest of the manifest as it is on disk, without its parts, which are added later."""
    return json_digest({name: value for name, value in read_json(version / MANIFEST).items() if name != "parts"})


def _reporting(names: Sequence[str], stage: str, progress: Progress) -> Iterator[str]:
    """The names, with progress reported before each."""
    for number, name in enumerate(names):
        progress(stage, number, len(names), name)
        yield name
    progress(stage, len(names), len(names))
