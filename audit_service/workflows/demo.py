"""The demo: runs every stage that is not done yet, starts a real server, and asks it over HTTP."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import yaml

from audit_service.config import AuditConfig
from audit_service.workflows import drift_baseline
from audit_service.workflows.export import export_and_register
from audit_service.workflows.finetuning import run_finetuning
from audit_service.workflows.index_building import build_index
from audit_service.workflows.index_check import check_against_retraining
from audit_service.workflows.processes.bentoml_server import Server, ServerError, free_port, serving
from audit_service.workflows.replay_directions import plan_directions, replay_directions
from audit_service.workspace import Workspace
from influence_engine.errors import SettingsError
from influence_engine.tasks import UNSAID_FIELDS, input_fields
from influence_engine.training.frozen_cache import FrozenCache

HOST = "127.0.0.1"
(SENTENCES,) = input_fields(UNSAID_FIELDS)
"""The field that packaged sentences are in."""

DIRECTIONS = 8
"""Directions that the demo replays: the fewest that a replay basis may have."""

SECONDS_OF_A_DEMO = 420.0
"""Time limit for the stages before serving: directions that would take longer are not replayed."""

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


def prepare(workspace: Workspace, announce: Callable[[str], None], *, restart: bool = False) -> dict[str, float]:
    """Runs the stages that are not done yet: fetch, fine-tune, index, replay, export, drift baseline.

    A model that was trained elsewhere is neither fine-tuned nor replayed.

    Args:
        workspace: Workspace of the demo's config; every stage goes on with what those before it opened and made.
        announce: Called with a sentence on a stage that is left out, and how to run it later.
        restart: Delete an earlier run first.

    Returns:
        Seconds of every stage.

    Raises:
        InfluenceError: a stage failed; the results of those before it stay.
    """
    config, progress = workspace.config, workspace.progress
    stopwatch = _Stopwatch()
    if config.model is None:
        examples = len(workspace.train) + len(workspace.held_out)
        progress("data and base model", examples, examples, os.path.basename(workspace.base_location))
        stopwatch.lap("data and base model")
        run = run_finetuning(workspace, restart=restart)
        progress("fine-tuning", len(run.schedule), len(run.schedule))
        stopwatch.lap("fine-tuning")
    index = build_index(workspace)
    progress("index", len(index), len(index), f"{len(index):,} training examples")
    stopwatch.lap("index")
    if config.model is None:
        _replay(workspace, sum(stopwatch.seconds.values()), announce)
        stopwatch.lap("replay")
    export_and_register(workspace)
    stopwatch.lap("export")
    if config.data.validation is not None and not drift_baseline.is_there(config):
        drift_baseline.build(workspace)
    stopwatch.lap("reference")
    return stopwatch.seconds


def _replay(workspace: Workspace, spent: float, announce: Callable[[str], None]) -> None:
    """Replays the demo's directions and checks the index against retraining, unless that takes too long for a demo."""
    frozen_cache = FrozenCache()
    if workspace.index.basis is None:
        plan = plan_directions(workspace, DIRECTIONS)
        if spent + plan.seconds > SECONDS_OF_A_DEMO:
            announce(
                f"Not replayed here, since it would take about {plan.seconds:.0f} s: explanations are estimated. "
                f"bento-audit index build {workspace.config.spelled} --directions {DIRECTIONS} does it later."
            )
            return
        replay_directions(workspace, DIRECTIONS, frozen_cache)
    check_against_retraining(workspace, frozen_cache)


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
    log = config.state_folder / "server.log"
    chosen = free_port(HOST, port)
    environment = {"BENTOML_HOME": home}
    with serving(service, config.root, host=HOST, port=chosen, log=log, environment=environment) as server:
        yield server


def ask(address: str, text: str, *, top_k: int, field: str = SENTENCES.name) -> ServerAnswers:
    """Asks the server for a prediction and for its explanation.

    Args:
        address: Address of the server.
        text: The text whose label is predicted.
        top_k: Number of proponents, and of opponents.
        field: The field of a request that holds the text.

    Raises:
        ServerError: the server answered with an error, or the engine was not ready in time.
    """
    began = time.monotonic()
    with httpx.Client(base_url=address, timeout=30.0, trust_env=False) as client:
        prediction = _post(client, "/predict", {field: text}, began)
        question = {"prediction_id": prediction["prediction_id"], "top_k": top_k, "polarity": "each"}
        explanation = _post(client, "/audit/explain", question, began)
    return ServerAnswers(prediction, explanation, time.monotonic() - began)


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


class _Stopwatch:
    """Seconds of every stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds[stage] = now - self._last
        self._last = now
