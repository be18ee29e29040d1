"""Starts ``bentoml serve``, waits until it answers, and stops it with all its workers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psutil

from influence_engine.errors import InfluenceError

SECONDS_TO_START = 180.0
SECONDS_TO_STOP = 15.0
LINES_OF_LOG_SHOWN = 20


class ServerError(InfluenceError):
    """The server did not start, or stopped on its own."""

    code = "server_failed"


@dataclass(frozen=True)
class Server:
    """A running BentoML server.

    Attributes:
        address: Address at which it answers, such as ``http://127.0.0.1:3000``.
        process: The process that was started; the workers are its children.
        log: The file that its output goes to.
        seconds_to_start: Time from the start until it was ready.
    """

    address: str
    process: subprocess.Popen[bytes]
    log: Path
    seconds_to_start: float = 0.0

    def stopped(self) -> ServerError:
        """The error that says that it has stopped, with the end of its log."""
        return ServerError(f"the server has stopped; {self.log} ends with\n{self.end_of_log()}")

    def end_of_log(self) -> str:
        """The last lines of the server's output."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-LINES_OF_LOG_SHOWN:])


def free_port(host: str, first: int) -> int:
    """The first port from ``first`` on that nobody listens on.

    Raises:
        ServerError: none of a hundred is free.
    """
    for port in range(first, first + 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return port
    raise ServerError(f"none of the ports {first} to {first + 99} of {host} is free", field="port")


@contextlib.contextmanager
def serving(
    service: str, folder: Path, *, host: str, port: int, log: Path, environment: Mapping[str, str]
) -> Iterator[Server]:
    """Runs ``bentoml serve`` as long as the context lasts; yields once ``/readyz`` answers 200.

    Args:
        service: What to serve, as ``module:Class``.
        folder: Where to look for the module.
        host: Address to listen on.
        port: Port to listen on.
        log: File for the server's output.
        environment: Variables to set for it.

    Raises:
        ServerError: the server stopped, or was not ready in time; the message ends with the end of its log.
    """
    command = [sys.executable, "-m", "bentoml", "serve", service, "--host", host, "--port", str(port)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment, "BENTOML_DO_NOT_TRACK": "True"},
            stdout=output,
            stderr=subprocess.STDOUT,
            # A session of its own: ^C reaches this program alone, which then stops the server in order.
            start_new_session=True,
        )
    server = Server(f"http://{host}:{port}", process, log)
    began = time.monotonic()
    try:
        wait_until_ready(server)
        yield replace(server, seconds_to_start=time.monotonic() - began)
    finally:
        stop(process)


def wait_until_ready(server: Server, *, path: str = "/readyz", seconds: float = SECONDS_TO_START) -> None:
    """Returns when ``path`` of the server answers 200.

    Raises:
        ServerError: it stopped, or ``seconds`` have passed.
    """
    deadline = time.monotonic() + seconds
    with httpx.Client(base_url=server.address, timeout=5.0, trust_env=False) as client:
        while time.monotonic() < deadline:
            if server.process.poll() is not None:
                raise server.stopped()
            with contextlib.suppress(httpx.HTTPError):
                if client.get(path).status_code == httpx.codes.OK:
                    return
            time.sleep(0.2)
    raise ServerError(f"the server was not ready after {seconds:.0f} s; {server.log} ends with\n{server.end_of_log()}")


def stop(process: subprocess.Popen[bytes], seconds: float = SECONDS_TO_STOP) -> None:
    """Asks the server and all its workers to end, and ends those that have not after ``seconds``.

    Workers are sessions of their own. One that a client reached anew while it was closing keeps that connection open as
    long as it is used, and would go on serving, and answering on the same port, without its supervisor.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        supervisor = psutil.Process(process.pid)
        family = supervisor.children(recursive=True)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            supervisor.suspend()  # so that it starts no other workers in place of those that end
            family = supervisor.children(recursive=True)
        for member in psutil.wait_procs(family, timeout=2.0)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    if process.poll() is None:
        process.kill()
        process.wait()
