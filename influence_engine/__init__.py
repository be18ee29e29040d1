"""Which training examples, and which changes to the base model, made a prediction.

The names below are loaded when they are first used, so that importing the package costs nothing. ``__version__`` is
that of the installed distribution; within a bento, which carries the code and no distribution, it is ``0+unknown``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str

    from influence_engine.attribution.attributor import Attributor
    from influence_engine.attribution.result import Attribution
    from influence_engine.index import IndexSettings, InfluenceIndex
    from influence_engine.tasks import Task, TextClassification
    from influence_engine.training import FinetuneSettings, Run, finetune

_HOMES = {
    "Attribution": "influence_engine.attribution.result",
    "Attributor": "influence_engine.attribution.attributor",
    "FinetuneSettings": "influence_engine.training",
    "IndexSettings": "influence_engine.index",
    "InfluenceIndex": "influence_engine.index",
    "Run": "influence_engine.training",
    "Task": "influence_engine.tasks",
    "TextClassification": "influence_engine.tasks",
    "finetune": "influence_engine.training",
}

__all__ = [
    "Attribution",
    "Attributor",
    "FinetuneSettings",
    "IndexSettings",
    "InfluenceIndex",
    "Run",
    "Task",
    "TextClassification",
    "finetune",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def _version() -> str:
    # Imported here, not above: it takes as long as the rest of the command line's start.
    from importlib import metadata

    try:
        return metadata.version("bento-audit")
    except metadata.PackageNotFoundError:
        return "0+unknown"
