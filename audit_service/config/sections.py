"""Sections of a config that are the service's own; those of data, fine-tuning and index belong to the engine."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from influence_engine.data import DataSettings
from influence_engine.demo_assets.packages import MODELS
from influence_engine.errors import SettingsError
from influence_engine.names import did_you_mean, listing
from influence_engine.tasks import TASK_TYPES

TEXT_CLASSIFICATION = "text_classification"
TASKS = tuple(TASK_TYPES)
"""Tasks that come with this package; any other is named as ``module:Class``."""

SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}

DURATION = re.compile(f"[1-9][0-9]*[{''.join(SECONDS)}]")
"""How a time is written: ``30d``, ``12h``, ``90m``."""


VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)\}")
"""An environment variable in a value."""


def seconds_of(duration: str) -> int:
    """A time such as ``12h`` in seconds."""
    return int(duration[:-1]) * SECONDS[duration[-1]]


class Section(BaseModel):
    """A part of a config: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskSettings(Section):
    """What the model is for.

    Attributes:
        type: ``text_classification``, ``token_classification``, ``image_classification``, or a class of one's own as
            ``module:Class``, looked up in the project first. It is called with the processor, the keys below that are
            given, and ``options``.
        labels: The labels' names, in the order of the model's outputs; of token classification the entity types.
        text: Name of the field with the text, in data and requests.
        image: Name of the field with the picture.
        label: Name of the field with the label; of token classification, where it is not given, ``entities``.
        max_length: Longer texts are cut to this many tokens.
        image_size: Pictures are resized to a square of so many pixels; by default as the model's own processor says.
        options: Further arguments of a class of one's own.
    """

    type: str = TEXT_CLASSIFICATION
    labels: list[str] = Field(default_factory=list)
    text: str = "text"
    image: str = "image"
    label: str = "label"
    max_length: int = Field(128, ge=4, le=8192)
    image_size: int | None = Field(None, ge=16, le=2048)
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("type")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in TASKS and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
            raise ValueError(
                f"no task is called {value!r}; there is {listing(TASKS)}, "
                f"or a class of your own as module:Class.{did_you_mean(value, TASKS)}"
            )
        return value

    @model_validator(mode="after")
    def _complete(self) -> TaskSettings:
        shipped = TASK_TYPES.get(self.type)
        if shipped is not None:
            fewest = shipped.fewest_labels
            if len(self.labels) < fewest or len(set(self.labels)) != len(self.labels):
                count = "at least two" if fewest == 2 else "one or more"
                raise ValueError(f"labels must be {count} different names, found {self.labels}")
            if self.options:
                raise ValueError(f"options only goes with a class of your own, and type is {self.type}")
            for key in self.model_fields_set - {"type", "options", *shipped.arguments}:
                raise ValueError(f"{key} does not go with type {self.type}; its keys are {listing(shipped.arguments)}")
        return self


class BaseModelSettings(Section):
    """The model that fine-tuning starts from: exactly one of ``path``, ``hub`` and ``package``.

    Attributes:
        path: A folder with a saved model.
        hub: A model of the Hugging Face hub.
        revision: The hub model's commit, tag or branch. Name a commit for a run that can be repeated.
        package: A Python package with a model inside; it is fetched and checked, never installed.
    """

    path: Path | None = None
    hub: str | None = None
    revision: str | None = None
    package: str | None = None

    @field_validator("package")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in MODELS:
            raise ValueError(f"no packaged model is called {value!r}; there is {listing(MODELS)}")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> BaseModelSettings:
        named = [name for name in ("path", "hub", "package") if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(f"needs exactly one of path, hub, package; found {' and '.join(named) or 'none'}")
        if self.revision is not None and self.hub is None:
            raise ValueError(f"revision only goes with hub, and {named[0]} is given")
        return self


class ModelSettings(Section):
    """A model that was fine-tuned elsewhere.

    Attributes:
        path: Its folder.
    """

    path: Path


class DataSections(Section):
    """The examples.

    Attributes:
        train: What the model is, or was, fine-tuned on; the index holds these.
        validation: Watched during fine-tuning.
        test: Held out from both.
    """

    train: DataSettings
    validation: DataSettings | None = None
    test: DataSettings | None = None


class FolderSettings(Section):
    """Where results go, below the project; by default ``runs/NAME``, ``index/NAME``, ``models/NAME``, ``state/NAME``.

    Attributes:
        runs: The recorded fine-tuning run.
        index: The training-gradient index.
        onnx: The model as it is served.
        state: Predictions and all else that changes while serving. ``BENTO_AUDIT_STATE`` names another; ``{name}`` in
            it is the config's name.
    """

    runs: Path | None = None
    index: Path | None = None
    onnx: Path | None = None
    state: Path | None = None


class StateSettings(Section):
    """Where predictions, true labels and jobs are kept.

    Attributes:
        url: A PostgreSQL database, ``postgresql+psycopg://user:password@host:5432/database``; by default SQLite files
            in the state folder. ``${NAME}`` stands for an environment variable, so that no password need be in a file;
            ``BENTO_AUDIT_STATE__URL`` names the whole. Tables lie in the schema ``name``. Keys of encryption stay in
            the state folder: replicas on several machines need the same ones.
    """

    url: str | None = Field(None, repr=False)

    @field_validator("url", mode="before")
    @classmethod
    def _of_a_server(cls, value: Any) -> Any:
        # What was found is never shown: a password may be in it.
        if isinstance(value, str) and value.startswith("sqlite"):
            raise ValueError("SQLite files lie in the state folder: leave url out; folders.state names the folder")
        if value is not None and not (
            isinstance(value, str) and re.match(r"postgresql(\+psycopg)?://|\$\{[A-Za-z_]\w*\}$", value)
        ):
            raise ValueError("it should be an address such as postgresql+psycopg://audit:${PASSWORD}@host:5432/audit")
        return value

    def address(self, environment: Mapping[str, str] | None = None) -> str | None:
        """``url`` with the variables that it names, by default the process's.

        Raises:
            SettingsError: one of them is not set.
        """
        if self.url is None:
            return None
        known = os.environ if environment is None else environment
        whole = VARIABLE.fullmatch(self.url)

        def value(found: re.Match[str]) -> str:
            if not known.get(found[1]):
                raise SettingsError(
                    f"state.url names the environment variable {found[1]}, which is not set", field="state.url"
                )
            return known[found[1]] if whole else quote(known[found[1]], safe="")

        return VARIABLE.sub(value, self.url)


class ServeSettings(Section):
    """How predictions and explanations are served.

    Attributes:
        explain_deadline_s: Seconds until an explanation that is not ready is answered with 503.
        max_text_chars: Longer texts are refused.
        max_body_bytes: Longer bodies are refused, where a request goes to an audited method or to ``/audit/...``.
        keep_inputs: How long inputs are kept for explaining by ``prediction_id``: a number and one of ``s``, ``m``,
            ``h``, ``d``, ``w``, or ``none``.
        parity_tolerance: Largest difference between a probability on record (ONNX Runtime) and the explained one
            (torch) that still counts as the same prediction.
        engine_url: Where the explanation engine runs, if it is not started by the service itself.
        threads: Threads of one prediction; by default ONNX Runtime's own choice.
        explain_threads: Threads of one explanation; by default what is measured to be fastest, at the start and again
            when explanations have become slower or faster.
        hosts: Names under which ``/audit/...`` is reached, such as ``audit.example.com``; ``*`` for any. An address in
            digits, ``localhost`` and names without a dot need not be named.
        origins: Pages of other addresses that may ask ``/audit/...`` from a browser, ``https://desk.example.com``.
    """

    explain_deadline_s: float = Field(2.0, gt=0, le=600)
    max_text_chars: int = Field(20_000, ge=1)
    max_body_bytes: int = Field(1_048_576, ge=1_024)
    keep_inputs: str = "30d"
    parity_tolerance: float = Field(1e-3, gt=0, lt=1)
    engine_url: str | None = None
    threads: int | None = Field(None, ge=1)
    explain_threads: int | None = Field(None, ge=1, le=1024)
    hosts: list[str] = []
    origins: list[str] = []

    @field_validator("hosts")
    @classmethod
    def _names(cls, value: list[str]) -> list[str]:
        for host in value:
            if host != "*" and not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", host):
                raise ValueError(f"found {host!r}; it should be a name such as audit.example.com, without a port, or *")
        return value

    @field_validator("origins")
    @classmethod
    def _origins(cls, value: list[str]) -> list[str]:
        for origin in value:
            if not re.fullmatch(r"https?://[^/\s]+", origin):
                raise ValueError(f"found {origin!r}; it should be an address such as https://desk.example.com")
        return value

    @field_validator("engine_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"https?://[^/\s]+", value):
            raise ValueError(f"found {value!r}; it should be an address such as http://engine:3000")
        return value

    @field_validator("keep_inputs", mode="before")
    @classmethod
    def _duration(cls, value: Any) -> Any:
        if value != "none" and not DURATION.fullmatch(str(value)):
            raise ValueError(f"found {value!r}; it should be a time such as 30d, 12h or 90m, or none")
        return value

    @property
    def keep_inputs_s(self) -> float:
        """``keep_inputs`` in seconds; 0 keeps none."""
        return 0.0 if self.keep_inputs == "none" else float(seconds_of(self.keep_inputs))


class JobSettings(Section):
    """Long work in the background, such as measured explanations.

    Attributes:
        waiting: Jobs that wait at most; further ones are refused.
        threads: Threads of the one process that works on them, at the lowest priority. Every one more is taken from
            predictions and explanations where processors are few.
        memory_bytes: The most that a job may be predicted to need; by default what the machine has free.
    """

    waiting: int = Field(16, ge=1, le=10_000)
    threads: int = Field(1, ge=1, le=256)
    memory_bytes: int | None = Field(None, ge=1_000_000)
