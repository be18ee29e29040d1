"""Opens model and index of one config, ready to explain; the command line's ``explain`` and the engine share it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audit_service.artifacts.bento_models import find, load_served
from audit_service.config import AuditConfig
from audit_service.monitoring.recorders import EngineMetrics
from influence_engine.attribution.attributor import Attributor
from influence_engine.data import load_examples
from influence_engine.errors import InfluenceError
from influence_engine.index import InfluenceIndex
from influence_engine.index.building.pipeline import CURRENT, VERSIONS
from influence_engine.index.index import BASIS, CALIBRATION

logger = logging.getLogger(__name__)


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


def load(config: AuditConfig, *, device: str = "auto") -> Loaded:
    """Loads model, base, tokenizer and index, and checks that they belong together.

    Raises:
        InfluenceError: something is missing, has changed, or does not belong together.
    """
    served = load_served(config)
    task = config.task_object(served.tokenizer)
    found = find(config, "index")
    index = InfluenceIndex.open(
        found.folder, model_digest=served.digests["model"], key=index_key(config), device=device
    )
    if index.store_examples == "none":
        _resolve(index, config, task)
    attributor = Attributor(served.model, task, index, base_model=served.base, device=device)
    return Loaded(
        config=config,
        attributor=attributor,
        task=task,
        model={"tag": served.tag, "digest": served.digests["model"]},
        index={
            "tag": found.tag,
            "digest": index.manifest.build_digest,
            "method": index.manifest.approximation,
            "rows": index.manifest.rows,
        },
    )


def index_key(config: AuditConfig) -> bytes | None:
    """The key that an encrypted index is read with; None where the reader has none, and sees no texts."""
    path = config.index_key_file
    return path.read_bytes() if path.is_file() else None


def _resolve(index: InfluenceIndex, config: AuditConfig, task: Any) -> None:
    """Texts come from the data's own source, as far as this reader may read it."""
    try:
        index.resolve_from(load_examples(config.data.train, task, config.root).examples)
    except (InfluenceError, OSError) as error:
        logger.warning("training texts are not shown: their source cannot be read (%s)", error)


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
