"""Model and index of one config, ready to explain; the command line's ``explain`` and the engine share it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audit_service.artifacts.bento_models import find
from audit_service.artifacts.pending import pending_parts
from audit_service.config import AuditConfig
from audit_service.workspace import Workspace
from influence_engine.attribution.attributor import Attributor
from influence_engine.garbage_collection import collection_paused
from influence_engine.index.building.pipeline import CURRENT, VERSIONS
from influence_engine.index.index import BASIS, CALIBRATION

if TYPE_CHECKING:  # the command line does without the Prometheus client
    from audit_service.monitoring.model_metrics import EngineMetrics


@dataclass(frozen=True, slots=True)
class Loaded:
    """Everything that an explanation needs.

    Attributes:
        config: What it was loaded for.
        attributor: Explains.
        task: The model's task.
        model: ``{"tag", "digest"}`` for answers.
        index: ``{"tag", "digest", "method", "rows"}`` for answers.
        metrics: Where the engine counts; ``None`` on the command line.
    """

    config: AuditConfig
    attributor: Attributor
    task: Any
    model: dict[str, Any]
    index: dict[str, Any]
    metrics: EngineMetrics | None = None

    def coming(self) -> list[dict[str, Any]]:
        """What some process is making for the index right now."""
        return [part.model_dump() for part in pending_parts(self.attributor.index.folder.parent.parent)]


def load(workspace: Workspace) -> Loaded:
    """Takes model, base, tokenizer and index from a workspace, which checks that they belong together.

    Raises:
        InfluenceError: something is missing, has changed, or does not belong together.
    """
    with collection_paused():
        config, attributor, model = workspace.config, workspace.attributor, workspace.model
    manifest = attributor.index.manifest
    return Loaded(
        config=config,
        attributor=attributor,
        task=workspace.task,
        model={"tag": model.tag, "digest": model.digests["model"]},
        index={
            "tag": find(config, "index").tag,
            "digest": manifest.build_digest,
            "method": manifest.approximation,
            "rows": manifest.rows,
        },
    )


def index_version(config: AuditConfig) -> str | None:
    """What changes when another index is current, or is given a replay basis or checked; ``None`` without a folder.

    A Bento model never changes, so there is nothing to watch there.
    """
    try:
        version = Path(config.index_folder / CURRENT).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    beside = (config.index_folder / VERSIONS / version / name for name in (BASIS, CALIBRATION))
    return " ".join([version, *(str(file.stat().st_mtime_ns) for file in beside if file.is_file())])
