"""Adds later parts to an index that older code built, without training or indexing again."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from influence_engine.index.building.pipeline import VERSIONS, current_version
from influence_engine.index.known_parts import KNOWN_PARTS
from influence_engine.index.manifest import MANIFEST, Manifest
from influence_engine.index.parts import IndexPart, Need, PartContext, PartCost, add_parts, missing_parts

GetContext = Callable[[frozenset[Need], Path], PartContext]
"""Loads the inputs that parts need for the version in a folder; called only where a part is missing."""


def plan_upgrade(
    path: str | os.PathLike[str], parts: Sequence[IndexPart] = KNOWN_PARTS
) -> list[tuple[IndexPart, PartCost]]:
    """The parts that the current version of an index lacks, each with the predicted cost of adding it.

    Raises:
        IndexFormatError: there is no index, or not of a format known here.
    """
    version = Path(path) / VERSIONS / current_version(path)
    return [(part, part.cost(version)) for part in missing_parts(Manifest.read(version / MANIFEST), parts)]


def upgrade(
    path: str | os.PathLike[str], context: GetContext, parts: Sequence[IndexPart] = KNOWN_PARTS
) -> tuple[Path, list[str]]:
    """Adds the parts that the current version of an index lacks.

    Args:
        path: Folder of the index.
        context: Loads the inputs that the parts need.
        parts: The parts that the version is to have.

    Returns:
        The version's folder and the names of the parts added, none where all were there.

    Raises:
        IndexFormatError: there is no index, or not of a format known here.
        OSError: the version cannot be written to.
    """
    version = Path(path) / VERSIONS / current_version(path)
    missing = missing_parts(Manifest.read(version / MANIFEST), parts)
    if not missing:
        return version, []
    needs = frozenset[Need]().union(*(part.needs for part in missing))
    return version, add_parts(version, missing, context(needs, version))
