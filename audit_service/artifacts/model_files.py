"""The fine-tuned and base models that are explained: of a recorded run, an adopted checkpoint, or a Bento model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from audit_service.artifacts.processors import known_head, processor_in
from audit_service.config import AuditConfig
from influence_engine.errors import DigestMismatchError
from influence_engine.files import read_json, write_json
from influence_engine.models.adapter_base import adapter_base_digest
from influence_engine.models.loading import load_base, load_model, model_digest, save_model
from influence_engine.models.trainable import freeze_unchanged, set_trainable
from influence_engine.training.record import MODEL, Run

ABOUT = "served.json"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A fine-tuned model with what it came from.

    Attributes:
        model: The fine-tuned model, in evaluation mode on the CPU.
        base: The same modules before fine-tuning, or ``None`` where no base is known.
        processor: What turns its raw inputs into tensors, or ``None``.
        digests: ``model``, and of a recorded run those of ``Run.digests``.
        tag: What answers call the model.
    """

    model: nn.Module
    base: nn.Module | None
    processor: Any
    digests: dict[str, str | None]
    tag: str


def recorded_model(config: AuditConfig, run: Run) -> ServedModel:
    """The model of a recorded run of a config; raises what ``Run.load_model`` raises."""
    processor = processor_in(config, run.folder / MODEL)
    model = run.load_model()
    return ServedModel(model, run.base_beside(model), processor, run.digests, config.name)


def adopted_model(config: AuditConfig) -> ServedModel:
    """The checkpoint that a config names instead of a run.

    Raises:
        ConfigError: its folder does not exist.
        ModelError: it cannot be loaded.
    """
    folder = config.model_folder()
    assert folder is not None  # the caller has looked
    processor = processor_in(config, folder)
    head = known_head(config.task_object(processor))
    model = load_model(folder, head)
    base, location = None, config.base_model_location()
    if config.base_model is not None and location is not None and head is not None:
        base = load_base(location, head, revision=config.base_model.revision)
        freeze_unchanged(model, base)
    return ServedModel(model, base, processor, {"model": model_digest(model)}, config.name)


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
    save_model(served.model, folder / "fine_tuned", processor=served.processor)
    if served.base is not None:
        under = adapter_base_digest(served.base)
        shared = under is not None and under == adapter_base_digest(served.model)
        save_model(served.base, folder / "base", base_of=folder / "fine_tuned" if shared else None)
    trainable = [name for name, parameter in served.model.named_parameters() if parameter.requires_grad]
    write_json(folder / ABOUT, {"digests": served.digests, "trainable": trainable})


def load_model_folder(config: AuditConfig, folder: str | os.PathLike[str], tag: str) -> ServedModel:
    """Loads what ``save_model_folder`` wrote.

    Args:
        config: Whose model it is; its task says which processor goes with it.
        folder: Where.
        tag: What answers call the model.

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
    return ServedModel(model, base, processor_in(config, folder / "fine_tuned"), digests, tag)
