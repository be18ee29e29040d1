"""Verifies the files of a config's index, and upgrades it with the parts that came after it was built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from audit_service.artifacts.model_files import model_digests
from audit_service.config import AuditConfig
from audit_service.workspace import Workspace
from influence_engine.errors import DigestMismatchError
from influence_engine.index import InfluenceIndex, Manifest, current_version
from influence_engine.index.building.pipeline import TABLE, VERSIONS
from influence_engine.index.file_sums import verify_files
from influence_engine.index.known_parts import KNOWN_PARTS
from influence_engine.index.manifest import MANIFEST
from influence_engine.index.parts import IndexPart, Need, PartContext
from influence_engine.index.store import ExampleTable
from influence_engine.index.upgrade import plan_upgrade, upgrade
from influence_engine.progress import Progress
from influence_engine.training.identity import first_difference


@dataclass(frozen=True)
class Upgrade:
    """The parts of an index's current version, and those that an upgrade added or would add.

    Attributes:
        folder: Folder of the version.
        parts: The parts that it has now, by name: ``version``, ``made_by`` and ``created``.
        added: Names of the parts that were added.
        missing: Of a plan: parts that would be added, each with ``needs``, ``seconds``, ``read_bytes``, ``disk_bytes``.
    """

    folder: Path
    parts: dict[str, dict[str, Any]]
    added: list[str]
    missing: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """The upgrade as a JSON value."""
        return {"folder": str(self.folder), "parts": self.parts, "added": self.added, "missing": self.missing}


def verify_index(config: AuditConfig, progress: Progress) -> InfluenceIndex:
    """Reads every file and row of the config's index again, and checks that it is of the config's model.

    Raises:
        InfluenceError: something has changed, is missing, or is another model's; the message names it.
    """
    folder = config.index_folder
    try:
        index = InfluenceIndex.open(folder, model_digest=model_digests(config)["model"])
    except Exception:
        # A damaged file may not be readable at all, and the error that follows need not name it.
        verify_files(folder / VERSIONS / current_version(folder), progress)
        raise
    index.verify(progress)
    return index


def planned_upgrade(config: AuditConfig, parts: Sequence[IndexPart] = KNOWN_PARTS) -> Upgrade:
    """The parts that ``upgrade_index`` would add to the config's index, with their cost.

    Raises:
        IndexFormatError: there is no index, or not of a format known here.
    """
    missing = [
        {"part": part.name, "version": part.version, "needs": sorted(part.needs), **vars(cost)}
        for part, cost in plan_upgrade(config.index_folder, parts)
    ]
    folder = config.index_folder / VERSIONS / current_version(config.index_folder)
    return Upgrade(folder, _parts_of(folder), [], missing)


def upgrade_index(workspace: Workspace, parts: Sequence[IndexPart] = KNOWN_PARTS) -> Upgrade:
    """Adds to the config's index the parts that came after it was built; one that has them all is left as it is.

    Raises:
        InfluenceError: there is no index, or model or training data are not those that it was built from.
        OSError: it cannot be written to.
    """
    folder, added = upgrade(workspace.config.index_folder, partial(_context, workspace), parts)
    return Upgrade(folder, _parts_of(folder), added, [])


def _parts_of(version: Path) -> dict[str, dict[str, Any]]:
    entries = Manifest.read(version / MANIFEST).parts.items()
    return {name: entry.model_dump(mode="json", include={"version", "made_by", "created"}) for name, entry in entries}


def _context(workspace: Workspace, needs: frozenset[Need], version: Path) -> PartContext:
    """The model and training examples that parts need, after checking that the index was built from them."""
    if not needs:
        return PartContext(progress=workspace.progress)
    digests = Manifest.read(version / MANIFEST).digests
    if workspace.model.digests["model"] != digests["model"]:
        raise DigestMismatchError(
            f"the index in {version} is of another model than {workspace.config.name!r} now has. Build an index for "
            f"it: bento-audit index build {workspace.config.spelled}",
            field=str(version),
        )
    by_id = {str(example["example_id"]): example for example in workspace.train}
    if first_difference(digests, workspace.task, workspace.train) is not None:
        raise DigestMismatchError(
            f"the training data of {workspace.config.name!r} are not those that the index in {version} was built from; "
            f"restore them, or build the index again: bento-audit index build {workspace.config.spelled}",
            field="data.train",
        )
    order = ExampleTable(version / TABLE).column("example_id")
    examples = [by_id[example_id] for example_id in order]
    return PartContext(workspace.model.model, workspace.task, examples, workspace.progress)
