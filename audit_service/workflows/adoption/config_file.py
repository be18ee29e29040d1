"""The text of the config and of the service that ``init`` writes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import yaml

from audit_service.workflows.adoption.checkpoint import Checkpoint
from audit_service.workflows.adoption.columns import Columns

TEMPLATES = resources.files("audit_service.workflows.adoption") / "templates"


def config_text(
    name: str, checkpoint: Checkpoint, labels: Sequence[str], data: Path, columns: Columns, base: str | None, root: Path
) -> str:
    """The YAML of a config.

    Args:
        name: The config's name.
        checkpoint: The model.
        labels: Names of the model's labels, in the order of its outputs.
        data: The file of its training examples.
        columns: The columns of that file.
        base: The base model's folder or hub id, if it is known.
        root: The project's folder; paths below it are written relative to it.
    """
    fields = {field: column for field, column in columns.names.items() if field != column}
    train: dict[str, Any] = {columns.kind: _written(data, root)}
    if fields:
        train["columns"] = fields
    if columns.labels:
        train["labels"] = dict(columns.labels)
    sections: dict[str, Any] = {
        "name": name,
        "task": {"type": "text_classification", "labels": list(labels), "max_length": checkpoint.max_length},
        "model": {"path": _written(checkpoint.folder, root)},
    }
    if base is not None:
        sections["base_model"] = {"path": _written(Path(base), root)} if Path(base).is_dir() else {"hub": base}
    sections["data"] = {"train": train}
    if checkpoint.training:
        sections["finetune"] = dict(checkpoint.training)
    if checkpoint.left_out:
        sections["index"] = {"unsupported_layers": "leave_out"}
    text = yaml.safe_dump(sections, sort_keys=False, allow_unicode=True, width=120)
    return fill("config.yaml", name=name, architecture=checkpoint.architecture, sections=text.rstrip("\n"))


def fill(template: str, **values: str) -> str:
    """The text of a template with ``$name`` replaced by values."""
    text = (TEMPLATES / template).read_text(encoding="utf-8")
    return Template(text).substitute(values)


def service_files(name: str) -> Mapping[str, str]:
    """The files of a bento that serves the model by ONNX Runtime and explains it, by their names."""
    values = {"name": name, "service": class_name(name), "bento": name.replace("-", "_")}
    return {
        "service.py": fill("service.py.template", **values),
        "bentofile.yaml": fill("bentofile.yaml.template", **values),
    }


def class_name(name: str) -> str:
    """The class name for a config's name: ``support-tickets`` -> ``SupportTickets``."""
    return "".join(word[:1].upper() + word[1:] for word in re.split(r"[-_]", name) if word)


def name_of(folder: Path) -> str:
    """A config's name for a model's folder: letters, digits, ``-`` and ``_``, a letter first."""
    name = re.sub(r"[^a-z0-9_-]+", "-", folder.resolve().name.lower()).strip("-_")
    return name if re.match(r"[a-z]", name) else f"model-{name}".rstrip("-")


def _written(path: Path, root: Path) -> str:
    resolved = path.resolve()
    return resolved.relative_to(root).as_posix() if resolved.is_relative_to(root) else resolved.as_posix()
