"""Writes the pictures of an explanation's training examples to a folder, for tasks whose examples have some."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audit_service.engine.pictures import picture_of_example
from audit_service.workspace import Workspace
from influence_engine.errors import SettingsError
from influence_engine.tasks import input_fields


def write_pictures(workspace: Workspace, answer: Mapping[str, Any], folder: Path) -> int:
    """Writes one file an example, named by rank, polarity and handle; returns how many.

    Args:
        workspace: Workspace of the index.
        answer: An explanation as ``/audit/explain`` answers it.
        folder: Made if it is missing.

    Raises:
        SettingsError: the task's examples have no pictures.
    """
    if not any(field.viewable for field in input_fields(workspace.fields)):
        raise SettingsError(
            f"{workspace.config.name} has no pictures to write: its examples are not pictures", field="pictures"
        )
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for example in answer.get("examples") or []:
        found = picture_of_example(workspace.task, workspace.index, example["example_handle"])
        if found is not None:
            raw, kind = found
            name = f"{example['polarity']}-{example['rank']:02d}-{example['example_handle']}.{kind.rpartition('/')[2]}"
            (folder / name).write_bytes(raw)
            written += 1
    return written
