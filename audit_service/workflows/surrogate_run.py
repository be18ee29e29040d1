"""A replayable twin of a model that was trained elsewhere: trained here, recorded, compared with the served one."""

from __future__ import annotations

from typing import Any

from audit_service.artifacts.model_files import load_trained_model
from audit_service.artifacts.training_data import AGREEMENT, read_training_set
from audit_service.config import AuditConfig
from audit_service.workflows.stages import base_location, finetune_recorded
from influence_engine.counterfactual import agreement
from influence_engine.errors import DataError, SettingsError
from influence_engine.files import remove_tree, write_json
from influence_engine.progress import Progress
from influence_engine.training import Run


def train_twin(config: AuditConfig, progress: Progress, *, restart: bool = False) -> tuple[Run, dict[str, Any]]:
    """Fine-tunes the config's base model on the data of the served one, with a record, and compares the two.

    Args:
        config: Of a model that was trained elsewhere; its ``finetune`` should say how that was done.
        progress: Told of every step.
        restart: Delete an earlier twin first.

    Returns:
        The twin's run, and how far it agrees with the served model.

    Raises:
        SettingsError: the model has a record of its own, or no base model is named.
        DataError: there are no held-out examples to compare the models on.
        InfluenceError: data, model or settings cannot be used, or the folder holds another run.
    """
    if config.model is None:
        raise SettingsError(
            f"{config.name!r} is trained here and recorded; only a model that was trained elsewhere has a twin",
            field="twin",
        )
    location = base_location(config, progress)
    served = load_trained_model(config)
    folder = config.model_folder()
    assert folder is not None  # it has just been loaded
    data = read_training_set(config, folder, progress)
    if data.validation is None:
        raise DataError(
            f"{config.name!r} has no held-out examples to compare the twin on; name some in data.validation",
            field="data.validation",
        )
    if restart:
        remove_tree(config.twin_folder)
    run = finetune_recorded(config, location, data, config.twin_folder / "run", progress)
    found = agreement(served.model, run.load_model(), data.task, data.validation.examples, run.trainable)
    about = {**found.to_dict(), "served": served.digests["model"], "twin": run.digests["model"]}
    write_json(config.twin_folder / AGREEMENT, about)
    return run, about
