"""Adopts a model that was trained elsewhere (``init``): writes a config for its checkpoint and data, and a service."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from audit_service.config import load_config
from audit_service.workflows.adoption.checkpoint import Checkpoint, inspect_checkpoint
from audit_service.workflows.adoption.columns import Columns, inspect_columns
from audit_service.workflows.adoption.config_file import config_text, name_of, service_files
from audit_service.workflows.adoption.service_file import add_audit
from influence_engine.errors import SettingsError
from influence_engine.files import write_text
from influence_engine.names import listing
from influence_engine.progress import Progress

NO_RECORD = (
    "no: the training was not recorded. Train with `bento-audit finetune`, or with RecordingCallback in the Trainer "
    "of transformers; or measure on a replayable surrogate: `bento-audit finetune --twin`"
)


@dataclass(frozen=True)
class Request:
    """The arguments of ``init``.

    Attributes:
        model: Folder of the fine-tuned checkpoint.
        data: File or folder of its training examples.
        base: Folder or hub id of the model that it was fine-tuned from.
        service: Source file of a BentoML service that serves it already.
        name: Name of the config; that of the checkpoint's folder where it is None.
        text: Column of the text; guessed where it is None.
        label: Column of the label; guessed where it is None.
        id: Column of a unique id; guessed where it is None.
        labels: Names of the labels in the order of the model's outputs; the checkpoint's where it is None.
        overwrite: Whether existing files are replaced.
    """

    model: Path
    data: Path
    base: str | None = None
    service: Path | None = None
    name: str | None = None
    text: str | None = None
    label: str | None = None
    id: str | None = None
    labels: tuple[str, ...] | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Adoption:
    """The result of ``init``.

    Attributes:
        name: The config's name.
        checkpoint: The model.
        labels: Names of the model's labels, in the order of its outputs.
        columns: The data file's columns.
        tiers: For each kind of explanation, whether there can be any, and why not.
        written: Files that were written.
        service_diff: Unified diff that adds the audit to the service named, or None.
        service_clear: Whether that service says which field of its answer holds the label; otherwise the diff has a
            ``?`` there.
    """

    name: str
    checkpoint: Checkpoint
    labels: tuple[str, ...]
    columns: Columns
    tiers: Mapping[str, str]
    written: tuple[Path, ...]
    service_diff: str | None
    service_clear: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The result as a JSON value."""
        return {
            "name": self.name,
            "model": {**asdict(self.checkpoint), "folder": str(self.checkpoint.folder)},
            "labels": list(self.labels),
            "columns": asdict(self.columns),
            "tiers": dict(self.tiers),
            "written": [str(path) for path in self.written],
            "service_diff": self.service_diff,
            "service_clear": self.service_clear,
        }


def adopt(request: Request, root: Path, progress: Progress) -> Adoption:
    """Inspects model and data, then writes the config and, where none is named, a service below ``root``.

    Nothing is written unless everything has been found to be in order.

    Raises:
        SettingsError: something cannot be guessed, does not fit, or would be overwritten.
        ModelError: the checkpoint cannot be adopted.
        DataError: the data file cannot be read.
    """
    name = _name(request)
    config_file = root / "configs" / f"{name}.yaml"
    if config_file.exists() and not request.overwrite:
        raise SettingsError(f"{config_file} exists; choose another --name, or --overwrite it", field="name")
    progress("inspecting the checkpoint", 0, 1)
    checkpoint = inspect_checkpoint(request.model)
    progress("inspecting the checkpoint", 1, 1, checkpoint.architecture)
    labels = _labels(request, checkpoint)
    columns = inspect_columns(request.data, labels, text=request.text, label=request.label, id=request.id)
    diff, clear = (None, True) if request.service is None else _service_diff(request.service, name)
    write_text(config_file, config_text(name, checkpoint, labels, request.data, columns, request.base, root))
    load_config(config_file)
    written = [config_file]
    if request.service is None:
        for file, text in service_files(name).items():
            path = root / "bentos" / name / file
            if not path.exists() or request.overwrite:
                write_text(path, text)
                written.append(path)
    shown = tuple(path.relative_to(root) for path in written)
    return Adoption(name, checkpoint, labels, columns, _tiers(request, checkpoint), shown, diff, clear)


def _name(request: Request) -> str:
    name = request.name or name_of(request.model)
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
        raise SettingsError(
            f"the name {name!r} must begin with a letter and hold small letters, digits, - and _", field="name"
        )
    return name


def _labels(request: Request, checkpoint: Checkpoint) -> tuple[str, ...]:
    labels = request.labels or checkpoint.labels
    if len(labels) != len(checkpoint.labels) or len(set(labels)) != len(labels):
        raise SettingsError(
            f"the model has {len(checkpoint.labels)} outputs ({listing(checkpoint.labels)}); --labels must give each a "
            f"name of its own, found {listing(labels)}",
            field="labels",
        )
    return labels


def _service_diff(service: Path, config: str) -> tuple[str, bool]:
    if not service.is_file():
        raise SettingsError(f"there is no service file {service}", field="service")
    source = service.read_text(encoding="utf-8")
    edited = add_audit(source, config=config, name=str(service))
    before, after = source.splitlines(keepends=True), edited.source.splitlines(keepends=True)
    return "".join(difflib.unified_diff(before, after, str(service), str(service), n=1)), edited.clear


def _tiers(request: Request, checkpoint: Checkpoint) -> dict[str, str]:
    share = f", without {checkpoint.share_left_out:.1%} of the parameters: their layers have no per-example gradients"
    with_base = "yes; a base without a head of its own gets a fresh one"
    without_base = "no: say what the model was fine-tuned from with --base"
    return {
        "estimated": f"yes, after `bento-audit index build`{share if checkpoint.left_out else ''}",
        "replayed": NO_RECORD,
        "measured": NO_RECORD,
        "base model's answer": with_base if request.base else without_base,
    }
