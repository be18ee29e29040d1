"""A surrogate run of a model that was trained elsewhere: trained here, recorded, compared with the served model."""

from __future__ import annotations

from typing import Any

from audit_service.artifacts.recorded_runs import AGREEMENT
from audit_service.artifacts.trainer_state import surrogate_advice
from audit_service.workflows.finetuning import finetune_recorded
from audit_service.workspace import Workspace
from influence_engine.counterfactual import agreement
from influence_engine.errors import DataError, SettingsError
from influence_engine.files import write_json
from influence_engine.training import Run


def train_surrogate(workspace: Workspace, *, restart: bool = False) -> tuple[Run, dict[str, Any]]:
    """Fine-tunes the config's base model on the served model's data, with a record, and compares the two models.

    Args:
        workspace: Workspace of a model that was trained elsewhere; the config's ``finetune`` should say how it was.
        restart: Delete an earlier surrogate first.

    Returns:
        The surrogate's run, and how far the surrogate agrees with the served model; where that is too little, with
        ``advice`` on the settings to change.

    Raises:
        SettingsError: the model has a record of its own, or no base model is named.
        DataError: there are no held-out examples to compare the models on.
        InfluenceError: data, model or settings cannot be used, or the folder holds another run.
    """
    config = workspace.config
    if config.model is None:
        raise SettingsError(
            f"{config.name!r} is trained here and recorded; only a model that was trained elsewhere needs a surrogate",
            field="twin",
        )
    if not workspace.held_out:
        raise DataError(
            f"{config.name!r} has no held-out examples to compare the surrogate on; name some in data.validation",
            field="data.validation",
        )
    served_model = workspace.model
    if restart:
        (config.surrogate_folder / AGREEMENT).unlink(missing_ok=True)
    run = finetune_recorded(workspace, workspace.task, config.surrogate_folder / "run", restart=restart)
    agreed = agreement(served_model.model, run.load_model(), workspace.task, workspace.held_out, run.trainable)
    # These names are in files and answers of released versions.
    about = {**agreed.to_dict(), "served": served_model.digests["model"], "twin": run.digests["model"]}
    write_json(config.surrogate_folder / AGREEMENT, about)
    return run, about if agreed.untrusted is None else {**about, "advice": surrogate_advice(config)}
