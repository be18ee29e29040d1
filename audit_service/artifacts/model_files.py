"""The fine-tuned and base models that are explained: of a recorded run, an adopted checkpoint, or a Bento model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from audit_service.config import AuditConfig
from influence_engine.errors import DigestMismatchError
from influence_engine.files import read_json, write_json
from influence_engine.models.loading import (
    freeze_unchanged,
    load_base,
    load_model,
    load_tokenizer,
    model_digest,
    save_model,
    set_trainable,
)
from influence_engine.training import Run

ABOUT = "served.json"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A fine-tuned model with what it came from.

    Attributes:
        model: The fine-tuned model, in evaluation mode on the CPU.
        base: The same modules before fine-tuning, or ``None`` where no base is known.
        tokenizer: Its tokenizer, or ``None``.
        digests: ``model``, and of a recorded run also ``base``, ``tokenizer``, ``data`` and ``task``.
        tag: What answers call the model.
    """

    model: nn.Module
    base: nn.Module | None
    tokenizer: Any
    digests: dict[str, str | None]
    tag: str


def recorded_model(run: Run, tag: str) -> ServedModel:
    """The model of a recorded run; raises what ``Run.load_model`` raises."""
    return ServedModel(run.load_model(), run.load_base(), run.load_tokenizer(), run.digests, tag)


def adopted_model(config: AuditConfig) -> ServedModel:
    """The checkpoint that a config names instead of a run.

    Raises:
        ConfigError: its folder does not exist.
        ModelError: it cannot be loaded.
    """
    folder, labels = config.model_folder(), config.task.labels or None
    assert folder is not None  # the caller has looked
    model = load_model(folder, labels=labels)
    base, location = None, config.base_model_location()
    if config.base_model is not None and location is not None and labels is not None:
        base = load_base(location, labels=labels, revision=config.base_model.revision)
        freeze_unchanged(model, base)
    return ServedModel(model, base, load_tokenizer(folder), {"model": model_digest(model)}, config.name)


def model_digests(config: AuditConfig) -> dict[str, str | None]:
    """Digests of the config's trained model, without loading it where it has a record."""
    if config.model is None:
        return Run.open(config.run_folder, verify=False).digests
    folder = config.model_folder()
    assert folder is not None
    return {"model": model_digest(load_model(folder))}


def save_model_folder(served: ServedModel, folder: str | os.PathLike[str]) -> None:
    """Writes what serving needs of a model: without the checkpoints of its training."""
    folder = Path(folder)
    save_model(served.model, folder / "fine_tuned", tokenizer=served.tokenizer)
    if served.base is not None:
        save_model(served.base, folder / "base")
    trainable = [name for name, parameter in served.model.named_parameters() if parameter.requires_grad]
    write_json(folder / ABOUT, {"digests": served.digests, "trainable": trainable})


def load_model_folder(folder: str | os.PathLike[str], tag: str) -> ServedModel:
    """Loads what ``save_model_folder`` wrote.

    Raises:
        DigestMismatchError: the weights are not those that were saved.
        RecordError: a file is missing.
    """
    folder = Path(folder)
    about = read_json(folder / ABOUT)
    digests: dict[str, str | None] = about["digests"]
    model = load_model(folder / "fine_tuned")
    found = model_digest(model)
    if found != digests["model"]:
        raise DigestMismatchError(
            f"{folder / 'fine_tuned'} has weights with digest {found}, its {ABOUT} says {digests['model']}",
            field=str(folder),
        )
    set_trainable(model, about["trainable"])
    base = load_model(folder / "base") if (folder / "base").is_dir() else None
    return ServedModel(model, base, load_tokenizer(folder / "fine_tuned"), digests, tag)
