"""The folder of an ONNX export: its files, and whether they are those that were exported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from influence_engine.digests import verify_folder
from influence_engine.errors import DigestMismatchError, RecordError
from influence_engine.files import read_json
from influence_engine.tasks import Task, matches_task_digest

FORMAT = 2
MANIFEST = "manifest.json"
MODEL = "model.onnx"
PROCESSOR = "tokenizer"


def read_export(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of an export, after checking every file against it.

    Raises:
        RecordError: there is no export, or one of an unknown format.
        DigestMismatchError: a file has changed.
    """
    manifest: dict[str, Any] = read_json(Path(folder) / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise RecordError(
            f"{Path(folder) / MANIFEST} has format {manifest.get('format')!r}, this version reads {FORMAT}; "
            "export again: bento-audit index build",
            field=str(folder),
        )
    verify_folder(folder, manifest["files"])
    return manifest


def is_current(folder: str | os.PathLike[str], task: Task, model_digest: str) -> bool:
    """Whether ``folder`` holds a whole export of this model for this task."""
    try:
        manifest = read_export(folder)
    except (RecordError, DigestMismatchError):
        return False
    return manifest["model_digest"] == model_digest and matches_task_digest(task, manifest["task_digest"])
