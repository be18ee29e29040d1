"""Starts and stops a Prometheus server of its own: Debian's package, on a free port, its data in a folder."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from audit_service.workflows.processes.bentoml_server import free_port
from influence_engine.errors import InfluenceError

SECONDS_TO_START = 30.0
HOST = "127.0.0.1"

Series = dict[frozenset[tuple[str, str]], float]
"""Labels -> value."""


class PrometheusError(InfluenceError):
    """Prometheus is not installed, did not start, or refused a query."""

    code = "prometheus_failed"


def installed() -> bool:
    """Whether ``prometheus`` and ``promtool`` are on the path."""
    return shutil.which("prometheus") is not None and shutil.which("promtool") is not None


@dataclass
class Prometheus:
    """A running Prometheus server.

    Attributes:
        url: Address of the server.
        process: Process of the server.
        log: The file that its output goes to.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    def query(self, expression: str, at: float | None = None) -> Series:
        """The result of an instant query, now or ``at`` a Unix time.

        Raises:
            PrometheusError: the server refuses the expression.
        """
        parameters: dict[str, Any] = {"query": expression} if at is None else {"query": expression, "time": at}
        answer = self.client.get("/api/v1/query", params=parameters).json()
        if answer["status"] != "success":
            raise PrometheusError(f"{answer.get('error')}: {expression}")
        return {frozenset(one["metric"].items()): float(one["value"][1]) for one in answer["data"]["result"]}

    def wait_for(self, expression: str, enough: Callable[[Series], Any], seconds: float = 30.0) -> Series:
        """Repeats an instant query until ``enough`` holds of its result.

        Raises:
            PrometheusError: it does not after ``seconds``.
        """
        end = time.monotonic() + seconds
        while not enough(found := self.query(expression)):
            if time.monotonic() > end:
                raise PrometheusError(f"after {seconds:g} s it is still {found}: {expression}")
            time.sleep(0.2)
        return found

    def alerts(self) -> list[dict[str, Any]]:
        """Alerts that are pending or firing, as the server's API returns them."""
        found: list[dict[str, Any]] = self.client.get("/api/v1/alerts").json()["data"]["alerts"]
        return found


@contextlib.contextmanager
def prometheus(
    folder: Path, targets: Mapping[str, str], rules: Sequence[str] = (), *, interval: str = "1s"
) -> Iterator[Prometheus]:
    """Runs a Prometheus server as long as the context lasts.

    Args:
        folder: Folder for its configuration, data and log.
        targets: Name of a replica -> ``host:port`` of its ``/metrics``.
        rules: Texts of rule files.
        interval: Time between two scrapes, and between two evaluations of the rules.

    Raises:
        PrometheusError: it is not installed, or does not start; the message ends with its log.
    """
    found = shutil.which("prometheus")
    if found is None:
        raise PrometheusError(
            "prometheus is not installed (Debian: apt-get install --no-install-recommends prometheus)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, text in enumerate(rules):
        file = folder / f"rules-{number}.yml"
        file.write_text(text, encoding="utf-8")
        files.append(file.name)
    config = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": files,
        "scrape_configs": [
            {
                "job_name": "bento-audit",
                "static_configs": [
                    {"targets": [address], "labels": {"replica": name}} for name, address in targets.items()
                ],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    port = free_port(HOST, 19090)
    log = folder / "prometheus.log"
    command = [
        found,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={HOST}:{port}",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    server = Prometheus(f"http://{HOST}:{port}", process, log)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        server.client.close()
        process.terminate()
        process.wait(10)


def _wait_until_ready(server: Prometheus) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end and server.process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if server.client.get("/-/ready").status_code == httpx.codes.OK:
                return
        time.sleep(0.1)
    log = server.log.read_text(encoding="utf-8", errors="replace")
    raise PrometheusError(f"Prometheus did not start; {server.log} ends with\n{log[-1500:]}")
