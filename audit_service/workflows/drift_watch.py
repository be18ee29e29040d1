"""Drift seen live: sends a real server baseline traffic, then another domain's, and observes its drift monitoring."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from audit_service.config import AuditConfig
from audit_service.monitoring.rules import render
from audit_service.workflows import drift_baseline
from audit_service.workflows.demo import SENTENCES, running_bento
from audit_service.workflows.processes.bentoml_server import Server, ServerError
from audit_service.workflows.processes.prometheus import Prometheus, installed, prometheus
from influence_engine.data import DataSettings, load_examples
from influence_engine.errors import DataError, SettingsError
from influence_engine.tasks import input_fields

BASELINE = "vader/movies"
"""The domain that the demo's model was trained on."""

SAMPLE_RATE = 0.5
ENOUGH_EXPLAINED = 0.8
"""Share of the expected sampled explanations that is waited for, since chance may choose fewer."""

SECONDS_TO_EXPLAIN = 240.0
SECONDS_TO_ALERT = 120.0
CLIENTS = 4

TRAFFIC_IN_JSON = {"baseline": "quiet"}
"""Values of ``Observation.traffic`` that JSON has by another name: that of released versions."""


def server_settings(events: int) -> dict[str, str]:
    """Environment variables of a server that explains half of ``events`` predictions and drops none of that sample."""
    return {
        "BENTO_AUDIT_MONITORING__SAMPLE_RATE": str(SAMPLE_RATE),
        "BENTO_AUDIT_MONITORING__SAMPLE_QUEUE": str(events),
    }


@dataclass(frozen=True)
class Observation:
    """The drift monitoring's state after some traffic.

    Attributes:
        traffic: ``baseline`` or ``shifted``.
        source: The domain of the traffic.
        drift: The answer of ``/audit/drift``.
        alerts: Drift alerts of Prometheus that fire.
    """

    traffic: str
    source: str
    drift: dict[str, Any]
    alerts: list[dict[str, Any]]

    @property
    def moved(self) -> bool:
        """Whether any signal exceeds its threshold."""
        outside = self.drift["outside_index"]
        return any(one["moved"] for one in self.drift["signals"]) or bool(outside and outside["moved"])

    def to_dict(self) -> dict[str, Any]:
        """The observation as a JSON value, in which baseline traffic is called ``quiet``."""
        return {**asdict(self), "traffic": TRAFFIC_IN_JSON.get(self.traffic, self.traffic)}


@dataclass(frozen=True)
class WatchedServer:
    """A running server of a config, with a Prometheus that scrapes it where there is one.

    Attributes:
        config: The config.
        server: The server.
        prometheus: Scrapes it and evaluates the rules; None where it is not installed.
    """

    config: AuditConfig
    server: Server
    prometheus: Prometheus | None

    def observe(self, domain: str, events: int, announce: Callable[[str], None]) -> Iterator[Observation]:
        """Sends baseline traffic, then that of ``domain``, and observes the drift monitoring after each.

        Args:
            domain: Packaged sentences, such as ``vader/tweets``.
            events: Number of inputs of each kind.
            announce: Called with a line on the traffic that is sent.

        Raises:
            DataError: a domain has no sentences.
            ServerError: the server refused an input.
        """
        wanted = round(events * self.config.monitoring.sample_rate * ENOUGH_EXPLAINED)
        explained = 0
        for traffic, source in (("baseline", BASELINE), ("shifted", domain)):
            announce(f"{traffic} traffic: {events} inputs of {source} ...")
            send(self.server.address, text_field(self.config), texts_of(self.config, source, events))
            drift = snapshot_of(self.server.address, settled(explained, wanted))
            explained = drift["explanations"]
            yield Observation(traffic, source, drift, firing(self.prometheus, wait=traffic == "shifted"))


@contextlib.contextmanager
def watched_server(config: AuditConfig, *, port: int) -> Iterator[WatchedServer]:
    """Runs the config's bento, and Prometheus where it is installed, as long as the context lasts.

    Raises:
        SettingsError: there is no such bento, or an input of it is not one text.
        ServerError: it does not start.
    """
    text_field(config)
    with running_bento(config, port=port) as server, _scraped(config, server) as running:
        yield WatchedServer(config, server, running)


def drift_was_seen(observations: Sequence[Observation]) -> bool:
    """Whether the shifted traffic has moved a signal and the baseline traffic none."""
    return all(one.moved == (one.traffic == "shifted") for one in observations)


def text_field(config: AuditConfig) -> str:
    """The field of an input that is one text, as packaged sentences are.

    Raises:
        SettingsError: an input of the config's task is something else.
    """
    fields = input_fields(config.example_fields())
    if len(fields) != 1 or not fields[0].readable:
        raise SettingsError(f"sentences are sent, and an input of {config.name!r} is not one text", field="name")
    return fields[0].name


def texts_of(config: AuditConfig, domain: str, count: int) -> list[str]:
    """Real sentences of a domain: of the baseline domain those that were held out from training.

    Raises:
        DataError: there are none.
    """
    chosen: dict[str, Any] = {"packaged": domain, "limit": count, "seed": 7}
    settings = DataSettings.model_validate({**chosen, "part": "test"} if domain == BASELINE else chosen)
    found = [example[SENTENCES.name] for example in load_examples(settings, None, config.root).examples]
    if not found:
        raise DataError(f"{domain} has no sentences", field="domain")
    return found


def send(address: str, field: str, texts: list[str]) -> None:
    """Has every text predicted.

    Args:
        address: Address of the server.
        field: Field of its requests that holds the text.
        texts: The texts.

    Raises:
        ServerError: the server refused a text.
    """
    with httpx.Client(base_url=address, timeout=30.0, trust_env=False) as client, ThreadPoolExecutor(CLIENTS) as pool:
        for answer in pool.map(lambda text: client.post("/predict", json={field: text}), texts):
            if answer.status_code != httpx.codes.OK:
                raise ServerError(f"/predict of the running server answered {answer.status_code}: {answer.text}")


def snapshot_of(address: str, enough: Callable[[dict[str, Any]], bool] = lambda found: True) -> dict[str, Any]:
    """The answer of the server's ``/audit/drift``, once ``enough`` holds of it or the time limit is reached."""
    end = time.monotonic() + SECONDS_TO_EXPLAIN
    with httpx.Client(base_url=address, timeout=30.0, trust_env=False) as client:
        while True:
            found: dict[str, Any] = client.post("/audit/drift", json={}).raise_for_status().json()
            if enough(found) or time.monotonic() > end:
                return found
            time.sleep(1.0)


def settled(before: int, wanted: int) -> Callable[[dict[str, Any]], bool]:
    """A condition that holds once ``wanted`` more explanations are there than ``before``, or no more came for 10 s."""
    last = [before, time.monotonic()]

    def enough(found: dict[str, Any]) -> bool:
        if found["explanations"] != last[0]:
            last[:] = [found["explanations"], time.monotonic()]
        return found["explanations"] >= before + wanted or time.monotonic() - last[1] > 10

    return enough


@contextlib.contextmanager
def _scraped(config: AuditConfig, server: Server) -> Iterator[Prometheus | None]:
    """A Prometheus that scrapes the server and evaluates the rules; ``None`` where it is not installed."""
    baseline = drift_baseline.of_config(config)
    if not installed() or baseline is None:
        yield None
        return
    # Ten seconds instead of minutes, so that alerts fire while somebody watches.
    settings = config.monitoring.model_copy(update={"alert_for": "10s"})
    folder = Path(config.state_folder) / "prometheus" / str(int(time.time()))
    targets = {"a": server.address.partition("://")[2]}
    with prometheus(folder, targets, [render([baseline], settings)], interval="2s") as running:
        yield running


def firing(running: Prometheus | None, *, wait: bool) -> list[dict[str, Any]]:
    """The drift alerts that fire; with ``wait``, after waiting for one."""
    if running is None:
        return []
    end = time.monotonic() + (SECONDS_TO_ALERT if wait else 0)
    while True:
        found = [
            alert
            for alert in running.alerts()
            if alert["state"] == "firing" and "Drift" in alert["labels"]["alertname"]
        ]
        if found or time.monotonic() > end:
            return found
        time.sleep(2.0)
