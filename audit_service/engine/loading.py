"""Opens model and index of one config, ready to explain; the command line's ``explain`` and the engine share it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audit_service.bundle import find, load_served
from audit_service.config import AuditConfig
from influence_engine.attribution import Attributor
from influence_engine.index import InfluenceIndex
from influence_engine.index.build import CURRENT, VERSIONS
from influence_engine.index.index import BASIS, CALIBRATION


@dataclass(frozen=True, slots=True)
class Loaded:
    """Everything that an explanation needs.

    Attributes:
        config: What it was loaded for.
        attributor: Explains.
        task: The model's task.
        model: ``{"tag", "digest"}`` for answers.
        index: ``{"tag", "digest", "method", "rows"}`` for answers.
    """

    config: AuditConfig
    attributor: Attributor
    task: Any
    model: dict[str, Any]
    index: dict[str, Any]


def load(config: AuditConfig, *, device: str = "auto") -> Loaded:
    """Loads model, base, tokenizer and index, and checks that they belong together.

    Raises:
        InfluenceError: something is missing, has changed, or does not belong together.
    """
    served = load_served(config)
    task = config.task_object(served.tokenizer)
    found = find(config, "index")
    index = InfluenceIndex.open(found.folder, model_digest=served.digests["model"], device=device)
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
