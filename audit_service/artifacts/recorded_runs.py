"""The recorded runs of a config: of the model that is served, and of a surrogate for one that was trained elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from audit_service.config import AuditConfig
from influence_engine.counterfactual.surrogate_agreement import Agreement
from influence_engine.errors import RecordError
from influence_engine.files import read_json
from influence_engine.training import Run

AGREEMENT = "agreement.json"
"""Beside a surrogate run: how far its model agrees with the served one."""


def recorded_run(config: AuditConfig, *, verify: bool = True, meanwhile: Callable[[], object] | None = None) -> Run:
    """The config's run.

    Args:
        config: The config.
        verify: False trusts the files, for whoever only asks whether there is one.
        meanwhile: Done while the files are verified (``digests.verify_folder``).

    Raises:
        RecordError: there is none, an interrupted one, or a model trained elsewhere; the message says what helps.
        DigestMismatchError: a file of it has changed.
    """
    if config.model is not None:
        raise RecordError(
            f"{config.name!r} was trained elsewhere, without a record: there are no steps to execute again or to "
            f"replay. Train it once more with the RecordingCallback. {_surrogate_hint(config)}",
            field="model",
        )
    if not config.run_folder.exists():
        raise RecordError(
            f"{config.name!r} has not been fine-tuned yet ({config.run_folder} does not exist). "
            f"Run: bento-audit finetune {config.spelled}",
            field=str(config.run_folder),
        )
    return Run.open(config.run_folder, verify=verify, meanwhile=meanwhile)


def _surrogate_hint(config: AuditConfig) -> str:
    verbs = "`measure`, `index check` and `evaluate`"
    if (config.surrogate_folder / AGREEMENT).is_file():
        return f"Its surrogate takes its place for {verbs} alone"
    return (
        f"Or train a replayable surrogate of it here, which takes its place for {verbs}: "
        f"bento-audit finetune {config.spelled} --twin"
    )


def replayable_run(config: AuditConfig, *, verify: bool = True) -> tuple[Run, dict[str, Any] | None]:
    """What can be trained again: the config's own run, or for a model trained elsewhere that of its surrogate.

    Args:
        config: The config.
        verify: As for ``recorded_run``.

    Returns:
        The run and, of a surrogate, how far it agrees with the served model (``Agreement.to_dict``).

    Raises:
        RecordError: there is none; the message says what helps.
        DigestMismatchError: a file of it has changed.
    """
    if config.model is None or not (config.surrogate_folder / AGREEMENT).is_file():
        return recorded_run(config, verify=verify), None
    found = read_json(config.surrogate_folder / AGREEMENT)
    # What it means was not written by earlier versions.
    return Run.open(config.surrogate_folder / "run", verify=verify), {**found, **Agreement.of(found).to_dict()}
