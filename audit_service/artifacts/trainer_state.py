"""What the Trainer of transformers left beside a model on how it was trained, and what a surrogate needs of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audit_service.config import AuditConfig

TRAINER_STATE = "trainer_state.json"


def recorded_settings(folder: Path) -> dict[str, Any]:
    """Settings of ``finetune`` that ``trainer_state.json`` in a model's folder says; none where there is no such file.

    The learning rate is the highest that was logged, which may be a little less than the highest there was.

    Args:
        folder: What ``save_pretrained`` or the Trainer wrote; the newest checkpoint in it counts, too.
    """
    checkpoints = sorted(folder.glob("checkpoint-*"), key=_step, reverse=True)
    for path in (folder / TRAINER_STATE, *(one / TRAINER_STATE for one in checkpoints)):
        if path.is_file():
            try:
                return _settings(json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, TypeError, AttributeError):
                return {}  # a proposal only: what cannot be read proposes nothing
    return {}


def surrogate_advice(config: AuditConfig) -> str:
    """Which settings to change so that a surrogate becomes more like the served model, and what to do then."""
    settings, folder = config.finetune, config.model_folder()
    found = {} if folder is None else recorded_settings(folder)
    known = f" {TRAINER_STATE} beside the model says finetune: {as_yaml(found)}." if found else ""
    return (
        f"Train it as the served model was trained: finetune.epochs (now {settings.epochs}), finetune.learning_rate "
        f"(now {settings.learning_rate:g}) and finetune.batch_size (now {settings.batch_size}) in the config.{known} "
        f"Then: bento-audit finetune {config.spelled} --twin --restart"
    )


def as_yaml(settings: Mapping[str, Any]) -> str:
    """Settings as they are written in a config, in one line."""
    return "{" + ", ".join(f"{name}: {value:g}" for name, value in settings.items()) + "}"


def _settings(state: Mapping[str, Any]) -> dict[str, Any]:
    rates = [float(entry["learning_rate"]) for entry in state.get("log_history") or () if "learning_rate" in entry]
    epochs, batch = float(state.get("num_train_epochs") or 0), int(state.get("train_batch_size") or 0)
    found: dict[str, Any] = {}
    if epochs > 0 and math.isfinite(epochs):
        found["epochs"] = math.ceil(epochs)
    if rates and 0 < max(rates) < math.inf:
        found["learning_rate"] = max(rates)
    if batch > 0:
        found["batch_size"] = batch
    return found


def _step(folder: Path) -> int:
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1
