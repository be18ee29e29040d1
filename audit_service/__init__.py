"""The plugin: audits for models served with BentoML.

The names below are loaded when they are first used, so that the command line starts quickly; ``__version__`` is
``influence_engine.__version__``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str

    from audit_service.schemas import (
        EntityPrediction,
        ExplainRequest,
        ExplainResponse,
        Prediction,
        TextInput,
        Upload,
    )
    from audit_service.service import AuditMixin, InfluenceEngine
    from audit_service.serving.audited import audited

_HOMES = {
    "AuditMixin": "audit_service.service",
    "EntityPrediction": "audit_service.schemas",
    "ExplainRequest": "audit_service.schemas",
    "ExplainResponse": "audit_service.schemas",
    "InfluenceEngine": "audit_service.service",
    "Prediction": "audit_service.schemas",
    "TextInput": "audit_service.schemas",
    "Upload": "audit_service.schemas",
    "audited": "audit_service.serving.audited",
    "__version__": "influence_engine",
}

__all__ = [
    "AuditMixin",
    "EntityPrediction",
    "ExplainRequest",
    "ExplainResponse",
    "InfluenceEngine",
    "Prediction",
    "TextInput",
    "Upload",
    "audited",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
