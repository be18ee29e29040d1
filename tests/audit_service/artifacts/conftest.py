"""Configs of the models that commit 3ba35ab made."""

from __future__ import annotations

from pathlib import Path

from audit_service.config import AuditConfig, load_config

CONFIG = """
task: {type: text_classification, labels: [negative, positive]}
base_model: {path: base}
data: {train: {jsonl: train.jsonl}}
"""


def write_config(folder: Path, name: str) -> AuditConfig:
    """The config ``old-NAME`` of a folder that has neither run nor index."""
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / f"old-{name}.yaml").write_text(CONFIG)
    return load_config(folder / "configs" / f"old-{name}.yaml")
