"""The work of ``bento-audit drift watch``: a real server, quiet traffic, shifted traffic, and what it says of both."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from audit_service.cli.prometheus import Prometheus, installed, prometheus
from audit_service.cli.server import Server, ServerError
from audit_service.config import AuditConfig
from audit_service.monitoring.rules import render
from audit_service.workflows import drift_baseline
from influence_engine.data import DataSettings, load_examples
from influence_engine.errors import DataError

QUIET = "vader/movies"
SECONDS_TO_EXPLAIN = 240.0
SECONDS_TO_ALERT = 120.0
CLIENTS = 4


def texts_of(config: AuditConfig, domain: str, count: int) -> list[str]:
    """Real sentences: of the quiet domain those that were held out, of another any.

    Raises:
        DataError: there are none.
    """
    chosen: dict[str, Any] = {"packaged": domain, "limit": count, "seed": 7}
    settings = DataSettings.model_validate({**chosen, "part": "test"} if domain == QUIET else chosen)
    found = [example["text"] for example in load_examples(settings, None, config.root).examples]
    if not found:
        raise DataError(f"{domain} has no sentences", field="domain")
    return found


def send(address: str, texts: list[str]) -> None:
    """Has every text predicted.

    Raises:
        ServerError: the server refused one.
    """
    with httpx.Client(base_url=address, timeout=30.0, trust_env=False) as client, ThreadPoolExecutor(CLIENTS) as pool:
        for answer in pool.map(lambda text: client.post("/predict", json={"text": text}), texts):
            if answer.status_code != httpx.codes.OK:
                raise ServerError(f"/predict of the running server answered {answer.status_code}: {answer.text}")


def snapshot_of(address: str, enough: Callable[[dict[str, Any]], bool] = lambda found: True) -> dict[str, Any]:
    """``/audit/drift`` of the server, once it is enough or time is over."""
    end = time.monotonic() + SECONDS_TO_EXPLAIN
    with httpx.Client(base_url=address, timeout=30.0, trust_env=False) as client:
        while True:
            found: dict[str, Any] = client.post("/audit/drift", json={}).raise_for_status().json()
            if enough(found) or time.monotonic() > end:
                return found
            time.sleep(1.0)


def settled(before: int, wanted: int) -> Callable[[dict[str, Any]], bool]:
    """Whether the sampled explanations have come: so many more than before, or no further ones for ten seconds."""
    last = [before, time.monotonic()]

    def enough(found: dict[str, Any]) -> bool:
        if found["explanations"] != last[0]:
            last[:] = [found["explanations"], time.monotonic()]
        return found["explanations"] >= before + wanted or time.monotonic() - last[1] > 10

    return enough


@contextlib.contextmanager
def watched(config: AuditConfig, server: Server) -> Iterator[Prometheus | None]:
    """A Prometheus that scrapes the server and evaluates the rules; ``None`` where it is not installed."""
    reference = drift_baseline.of_config(config)
    if not installed() or reference is None:
        yield None
        return
    # Ten seconds instead of minutes: this is to be seen.
    settings = config.monitoring.model_copy(update={"alert_for": "10s"})
    folder = Path(config.state_folder) / "prometheus" / str(int(time.time()))
    targets = {"a": server.address.partition("://")[2]}
    with prometheus(folder, targets, [render([reference], settings)], interval="2s") as running:
        yield running


def firing(running: Prometheus | None, *, wait: bool) -> list[dict[str, Any]]:
    """The drift alerts that fire; with ``wait`` it waits for one."""
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
