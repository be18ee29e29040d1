"""What a model was trained on and how: the examples of a config, and its recorded run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audit_service.config import AuditConfig
from influence_engine.data import DataSet, load_examples
from influence_engine.errors import RecordError
from influence_engine.files import read_json
from influence_engine.models.loading import load_tokenizer
from influence_engine.progress import Progress
from influence_engine.tasks import Example, Task
from influence_engine.training import Run


@dataclass(frozen=True)
class TrainingSet:
    """What a model is trained on and measured with.

    Attributes:
        task: The task, with its tokenizer.
        train: Training examples.
        validation: Held-out examples, or None where the config names none.
    """

    task: Task
    train: DataSet
    validation: DataSet | None

    def labelled_held_out(self, label: str) -> list[Example]:
        """Held-out examples that have a ``label``; none where the config names none."""
        held_out = [] if self.validation is None else self.validation.examples
        return [example for example in held_out if example.get(label) is not None]


def read_training_set(config: AuditConfig, tokenizer_from: str | Path, progress: Progress) -> TrainingSet:
    """Reads and checks the config's examples.

    Args:
        config: The config.
        tokenizer_from: Folder or hub id of the model whose tokenizer the task uses.
        progress: Told what is fetched.

    Raises:
        DataError: examples cannot be used.
        ModelError: there is no tokenizer.
    """
    revision = config.base_model.revision if config.base_model is not None and config.model is None else None
    task = config.task_object(load_tokenizer(tokenizer_from, revision=revision))
    train = load_examples(config.data.train, task, config.root, progress=progress)
    validation = None
    if config.data.validation is not None:
        validation = load_examples(config.data.validation, task, config.root, progress=progress)
    return TrainingSet(task, train, validation)


def recorded_run(config: AuditConfig, *, verify: bool = True) -> Run:
    """The config's run.

    Args:
        config: The config.
        verify: False trusts the files, for whoever only asks whether there is one.

    Raises:
        RecordError: there is none, an interrupted one, or a model trained elsewhere; the message says what helps.
        DigestMismatchError: a file of it has changed.
    """
    if config.model is not None:
        raise RecordError(
            f"{config.name!r} was trained elsewhere, without a record: there are no steps to execute again or to "
            "replay. Train it once more with the RecordingCallback, or train a replayable twin of it here: "
            f"bento-audit finetune {config.spelled} --twin",
            field="model",
        )
    if not config.run_folder.exists():
        raise RecordError(
            f"{config.name!r} has not been fine-tuned yet ({config.run_folder} does not exist). "
            f"Run: bento-audit finetune {config.spelled}",
            field=str(config.run_folder),
        )
    return Run.open(config.run_folder, verify=verify)


AGREEMENT = "agreement.json"
"""Beside a twin's record: how far it agrees with the served model."""


def replayable_run(config: AuditConfig, *, verify: bool = True) -> tuple[Run, dict[str, Any] | None]:
    """What can be trained again: the config's own run, or for a model trained elsewhere its twin's.

    Args:
        config: The config.
        verify: As for ``recorded_run``.

    Returns:
        The run and, of a twin, how far it agrees with the served model (``Agreement.to_dict``).

    Raises:
        RecordError: there is none; the message says what helps.
        DigestMismatchError: a file of it has changed, or the served model since the twin was compared with it.
    """
    if config.model is None or not (config.twin_folder / AGREEMENT).is_file():
        return recorded_run(config, verify=verify), None
    return Run.open(config.twin_folder / "run", verify=verify), read_json(config.twin_folder / AGREEMENT)
