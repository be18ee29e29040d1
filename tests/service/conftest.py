"""Real servers: each a process group of its own, with its own BENTOML_HOME, on a free port of 127.0.0.1."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import httpx
import psutil
import pytest

from audit_service.workflows.processes.bentoml_server import stop
from tests.audit_service.conftest import adopted, finished_films

__all__ = ["adopted", "finished_films"]  # fixtures, of other tests, too

ROOT = Path(__file__).resolve().parents[2]
APPS = Path(__file__).parent / "apps"
START_S = 120.0


class Server:
    """A running ``bentoml serve``.

    Attributes:
        url: Its address.
        client: An HTTP client for it.
        process: Its supervisor.
        log: Where its output goes.
    """

    def __init__(self, url: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.url = url
        self.process = process
        self.log = log
        self.client = httpx.Client(base_url=url, timeout=60, trust_env=False)

    def post(self, path: str, json: Any = None, **options: Any) -> httpx.Response:
        return self.client.post(path, json=json, **options)

    def metrics(self) -> str:
        """What it exposes to Prometheus."""
        return self.client.get("/metrics").text

    def workers(self, service: str) -> list[psutil.Process]:
        """Processes of a dependent service, or of the entry service."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if _serves(child, service)]

    def wait_until_explaining(self, config: str = "", timeout_s: float = 120.0) -> None:
        """Waits until the engine has loaded its model and index."""
        state = _wait(lambda: self._state(), lambda found: found.get("state") in ("ready", "failed"), timeout_s)
        assert state["state"] == "ready", f"{state}\n{self.log.read_text()}"

    def _state(self) -> dict[str, Any]:
        answer = self.post("/audit/index", {})
        return answer.json() if answer.status_code == 200 else {}

    def stop(self) -> None:
        self.client.close()
        stop(self.process)


class StartServer(Protocol):
    def __call__(
        self,
        target: str,
        *options: str,
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> Server: ...


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[StartServer]:
    """Starts servers whose files are below ``folder``, and stops them in the end."""
    servers: list[Server] = []

    def start(
        target: str,
        *options: str,
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> Server:
        number = len(servers)
        port = port or free_port()
        log = folder / f"server-{number}.log"
        variables = {
            **os.environ,
            "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_HOME": str(folder / f"home-{number}"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(APPS)]),
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            **(env or {}),
        }
        variables.pop("PROMETHEUS_MULTIPROC_DIR", None)
        address = ["--host", "127.0.0.1", "--port", str(port)]
        command = [sys.executable, "-m", "bentoml", "serve", target, *address, *options]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=cwd, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        server = Server(f"http://127.0.0.1:{port}", process, log)
        servers.append(server)
        _wait_until_ready(server)
        return server

    try:
        yield start
    finally:
        for server in servers:
            server.stop()


@pytest.fixture(scope="module")
def sentiment_server(
    start_module_server: StartServer, small_project: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The sentiment bento on the small project, for all tests of one file."""
    state = tmp_path_factory.mktemp("state")
    environment = {**small_project.environment, "BENTO_AUDIT_STATE": str(state)}
    server = start_module_server("bentos.sentiment.service:Sentiment", env=environment)
    server.wait_until_explaining()
    yield server
    # Whatever was sent, predictions and explanations go on.
    assert server.post("/predict", {"text": "a film"}).status_code == 200
    assert server.post("/audit/explain", {"input": {"text": "a film"}}).status_code == 200


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Starts servers for one test."""
    with serving(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def start_module_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Starts servers for all tests of one file."""
    with serving(tmp_path_factory.mktemp("servers")) as start:
        yield start


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(server: Server) -> None:
    def ready() -> bool:
        if server.process.poll() is not None:
            raise AssertionError(f"the server ended with {server.process.returncode}:\n{server.log.read_text()}")
        try:
            return server.client.get("/readyz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    assert _wait(ready, bool, START_S), f"not ready after {START_S} s:\n{server.log.read_text()}"


def _wait(look: Any, enough: Any, timeout_s: float) -> Any:
    end = time.monotonic() + timeout_s
    while True:
        found = look()
        if enough(found) or time.monotonic() > end:
            return found
        time.sleep(0.2)


def _serves(process: psutil.Process, service: str) -> bool:
    with contextlib.suppress(psutil.Error):
        command = process.cmdline()
        return "--service-name" in command and command[command.index("--service-name") + 1] == service
    return False
