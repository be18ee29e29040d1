"""Where a config keeps what changes while it serves: predictions, jobs and keys."""

from __future__ import annotations

from pathlib import Path

from audit_service import bentoml_internals
from audit_service.config import AuditConfig
from audit_service.store.location import StateLocation


def state_folder(config: AuditConfig) -> Path:
    """Where predictions lie: the config's folder, but never inside a bento, which is read-only and replaced."""
    inside = config.state_folder.is_relative_to(config.root) and (config.root.parent / "bento.yaml").is_file()
    if not inside:
        return config.state_folder
    return bentoml_internals.home() / "audit" / config.name


def state_location(config: AuditConfig) -> StateLocation:
    """Where predictions and jobs lie: in the folder of the state, or on the server that the config names."""
    return StateLocation(state_folder(config), url=config.state.address(), namespace=config.name)
