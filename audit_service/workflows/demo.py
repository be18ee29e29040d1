"""The demo: runs every stage that is not done yet, starts a real server, and asks it over HTTP."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from audit_service.artifacts.bento_models import index_version_folder
from audit_service.config import AuditConfig
from audit_service.store.location import private_folder
from audit_service.workflows.export import export_if_it_can_be
from audit_service.workflows.finetuning import run_finetuning
from audit_service.workflows.index_building import BuildOrder, build_for_serving, first_index
from audit_service.workflows.processes.bentoml_server import Server, ServerError, free_port, serving
from audit_service.workspace import Workspace
from influence_engine.errors import SettingsError
from influence_engine.index import Manifest
from influence_engine.index.index import CALIBRATION
from influence_engine.index.manifest import MANIFEST
from influence_engine.tasks import (
    UNSAID_FIELDS,
    LossPartsTask,
    PositionPartsTask,
    embedded,
    input_fields,
    target_field,
)

HOST = "127.0.0.1"
(SENTENCES,) = input_fields(UNSAID_FIELDS)
"""The field that packaged sentences are in."""

USUAL = ("examples", "groups", "modules")
"""Parts of an answer that every task has."""

DIRECTIONS = 8
"""Directions that the demo replays: the fewest that a replay basis may have."""

SECONDS_OF_A_DEMO = 600.0
"""Time limit from the first command to a replayed and checked answer, installation included."""

SECONDS_TO_TAKE_UP = 75.0
"""Of these, what the drift baseline and the engine need, which opens what was made and answers again."""

SECONDS_TO_EXPLAIN = 120.0
"""Time limit for an explanation: the engine loads in the background, and until then answers with 503."""


@dataclass(frozen=True)
class ServerAnswers:
    """The answers of the server to one prediction and its explanation.

    Attributes:
        prediction: The answer of ``/predict``.
        explanation: The answers of ``/audit/explain`` for proponents and for opponents, as one.
        seconds: Time of both, with the wait until the engine has loaded.
    """

    prediction: dict[str, Any]
    explanation: dict[str, Any]
    seconds: float


def prepare(workspace: Workspace, *, restart: bool = False) -> dict[str, float]:
    """Runs the stages before a server can explain, unless they are done: fetch, fine-tune, a first index, export.

    A model that was trained elsewhere is not fine-tuned.

    Args:
        workspace: Workspace of the demo's config; every stage goes on with what those before it opened and made.
        restart: Delete an earlier run first.

    Returns:
        Seconds of every stage.

    Raises:
        InfluenceError: a stage failed; the results of those before it stay.
    """
    config, progress = workspace.config, workspace.progress
    stopwatch = Stopwatch()
    if config.model is None:
        examples = len(workspace.train) + len(workspace.held_out)
        progress("data and base model", examples, examples, os.path.basename(workspace.base_location))
        stopwatch.lap("data and base model")
        run = run_finetuning(workspace, restart=restart)
        progress("fine-tuning", len(run.schedule), len(run.schedule))
        stopwatch.lap("fine-tuning")
    first_index(workspace, BuildOrder())
    stopwatch.lap("first index")
    export_if_it_can_be(workspace)
    stopwatch.lap("export")
    return stopwatch.seconds


def prepare_whole(workspace: Workspace, announce: Callable[[str], None]) -> dict[str, float]:
    """Runs all stages, also those that otherwise run beside the server; announces what is left out.

    Raises:
        InfluenceError: a stage failed; the results of those before it stay.
    """
    seconds = prepare(workspace)
    stopwatch = Stopwatch()
    build_for_serving(workspace, order_of(workspace.config, SECONDS_OF_A_DEMO), announce)
    stopwatch.lap("index, replay, check and drift baseline")
    return {**seconds, **stopwatch.seconds}


def order_of(config: AuditConfig, seconds: float | None) -> BuildOrder:
    """What the demo's index is to have; replay and check take a record."""
    recorded = config.model is None
    return BuildOrder(
        directions=DIRECTIONS if recorded else 0,
        check=recorded,
        drift_baseline=config.data.validation is not None,
        seconds=seconds,
    )


@contextlib.contextmanager
def finishing(config: AuditConfig, seconds: float | None) -> Iterator[subprocess.Popen[bytes]]:
    """Builds the rest of the demo's index in a process that gives way to the server, and shows its progress.

    Args:
        config: The demo's config.
        seconds: As in ``BuildOrder``.
    """
    order = order_of(config, seconds)
    command = [sys.executable, "-m", "audit_service.cli", "index", "build", config.spelled, "--idle"]
    command += ["--directions", str(order.directions)]
    command += ["--check"] if order.check else []
    command += ["--reference"] if order.drift_baseline else []
    command += [] if seconds is None else ["--within", f"{max(seconds, 1.0) / 60:.3f}"]
    # A session of its own, since that is what Linux shares the processors out by.
    process = subprocess.Popen(command, cwd=config.root, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def running_bento(config: AuditConfig, *, port: int) -> Iterator[Server]:
    """Runs the bento of the config's name as long as the context lasts, on ``port`` or the next free one.

    Raises:
        SettingsError: there is no such bento.
        ServerError: it does not start.
    """
    assert config.file is not None  # it has been read from one
    bentofile = config.root / "bentos" / config.file.stem / "bentofile.yaml"
    if not bentofile.is_file():
        raise SettingsError(f"there is no bento {bentofile}; the demo needs a clone of the repository", field="name")
    service: str = yaml.safe_load(bentofile.read_text(encoding="utf-8"))["service"]
    # A home of its own: at its start BentoML clears the metrics of whatever else uses the same one.
    home = os.environ.get("BENTOML_HOME", str(config.state_folder / "bentoml"))
    log = private_folder(config.state_folder) / "server.log"
    chosen = free_port(HOST, port)
    environment = {"BENTOML_HOME": home}
    with serving(service, config.root, host=HOST, port=chosen, log=log, environment=environment) as server:
        yield server


def parts_of_answer(task: object) -> list[str]:
    """What the demo asks for: all parts of an answer that the task can give."""
    parts = ["parts"] if isinstance(task, LossPartsTask | PositionPartsTask) else []
    return [*USUAL, *parts]


def ask_again(
    config: AuditConfig, address: str, first: ServerAnswers, *, top_k: int, include: Sequence[str]
) -> ServerAnswers:
    """Asks for the explanation again, as soon as the engine has taken up everything that was made for its index.

    Args:
        config: The demo's config.
        address: Address of the server.
        first: Its first answers.
        top_k: Number of proponents, and of opponents.
        include: Parts of the answer.

    Raises:
        ServerError: the server answered with an error, or the engine has not taken it up in time.
    """
    began = time.monotonic()
    folder = index_version_folder(config)
    checked = (folder / CALIBRATION).is_file()
    digest = Manifest.read(folder / MANIFEST).build_digest
    question = _question(first.prediction, top_k, include)
    with httpx.Client(base_url=address, timeout=30.0, trust_env=False) as client:
        while time.monotonic() - began < SECONDS_TO_EXPLAIN:
            explanation = _post(client, "/audit/explain", question, began)
            known = explanation["quality"]["agreement"] is not None or not checked
            if known and explanation["index"]["digest"] == digest:
                return ServerAnswers(first.prediction, explanation, time.monotonic() - began)
            time.sleep(0.5)
    raise ServerError("the engine has not taken up what was made for its index; its log says why")


def question_of(workspace: Workspace) -> dict[str, Any]:
    """An input to ask about, where nobody says one: a held-out example of the last label, else the first there is.

    Raises:
        SettingsError: the config names no held-out data.
        DataError: they cannot be read.
    """
    examples = workspace.test or workspace.held_out
    if not examples:
        raise SettingsError(
            f"{workspace.config.name} has no held-out example to ask about; name one, or data.test", field="data.test"
        )
    target, fields = target_field(workspace.fields), input_fields(workspace.fields)
    last = None if target is None or not target.names else target.names[-1]
    chosen = next((one for one in examples if target is not None and one.get(target.name) == last), examples[0])
    return dict(embedded(fields, {field.name: chosen[field.name] for field in fields}, Path.cwd()))


def ask(address: str, asked: Mapping[str, Any], *, top_k: int, include: Sequence[str] = USUAL) -> ServerAnswers:
    """Asks the server for a prediction and for its explanation.

    Args:
        address: Address of the server.
        asked: The fields of the input that is predicted.
        top_k: Number of proponents, and of opponents.
        include: Parts of the answer.

    Raises:
        ServerError: the server answered with an error, or the engine was not ready in time.
    """
    began = time.monotonic()
    with httpx.Client(base_url=address, timeout=30.0, trust_env=False) as client:
        prediction = _post(client, "/predict", dict(asked), began)
        question = _question(prediction, top_k, include)
        explanation = _post(client, "/audit/explain", question, began)
    return ServerAnswers(prediction, explanation, time.monotonic() - began)


def _question(prediction: Mapping[str, Any], top_k: int, include: Sequence[str]) -> dict[str, Any]:
    asked = {"prediction_id": prediction["prediction_id"], "top_k": top_k, "polarity": "each"}
    return {**asked, "include": list(include)}


def _post(client: httpx.Client, path: str, body: dict[str, Any], began: float) -> dict[str, Any]:
    while True:
        try:
            response = client.post(path, json=body)
        except httpx.HTTPError as error:
            raise ServerError(f"{path} of the running server: {error}") from error
        if response.status_code == httpx.codes.OK:
            answer: dict[str, Any] = response.json()
            return answer
        loading = response.status_code == httpx.codes.SERVICE_UNAVAILABLE
        if not loading or time.monotonic() - began > SECONDS_TO_EXPLAIN:
            raise ServerError(f"{path} of the running server answered {response.status_code}: {response.text}")
        time.sleep(min(float(response.headers.get("retry-after", 1)), 1.0))


class Stopwatch:
    """Seconds of every stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds[stage] = now - self._last
        self._last = now
