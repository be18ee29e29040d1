"""The tokenizer or image processor that a config's task is made with."""

from __future__ import annotations

import os
from typing import Any

from audit_service.config import AuditConfig
from influence_engine.errors import SettingsError
from influence_engine.models.loading import load_processor
from influence_engine.tasks import Head, Task, head_of


def processor_in(config: AuditConfig, source: str | os.PathLike[str], *, revision: str | None = None) -> Any:
    """What was saved with a model, as the config's task wants it; ``None`` for a task that wants nothing.

    Args:
        config: Whose task.
        source: Folder of the model, or its id on the hub.
        revision: Branch, tag or commit on the hub.

    Raises:
        ConfigError: a task of one's own cannot be imported.
        ModelError: there is no such processor.
    """
    kind = config.processor_class()
    return None if kind is None else load_processor(source, kind, revision=revision)


def known_head(task: Task) -> Head | None:
    """How a base model is loaded for a task; ``None`` where the task does not say."""
    try:
        return head_of(task)
    except SettingsError:
        return None
