"""Audited services within the test's process: BentoML's own application, without a server around it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from audit_service import bentoml_internals

CONFIG = """
task: {{type: text_classification, labels: [bad, good]}}
model: {{path: nowhere}}
data: {{train: {{csv: nowhere.csv}}}}
serve: {{engine_url: "http://127.0.0.1:9", max_body_bytes: 10000}}
{more}
"""


@pytest.fixture
def write_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a config that names no model that exists, and lists it in the environment."""
    files: list[Path] = []

    def write(name: str = "films", more: str = "") -> Path:
        file = tmp_path / "configs" / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(CONFIG.format(more=more))
        files.append(file)
        monkeypatch.setenv("BENTO_AUDIT_CONFIG", ",".join(map(str, dict.fromkeys(files))))
        return file

    return write


@contextlib.contextmanager
def served(service: Any, *, main: bool = True, socket_path: str | None = None) -> Iterator[TestClient]:
    """A client of a service's application, started as in a worker.

    Args:
        service: The service.
        main: It is the entry service.
        socket_path: Requests come through this Unix socket; else over TCP.
    """
    app = service.to_asgi(is_main=main)

    async def outermost(scope: Any, receive: Any, send: Any) -> None:
        if socket_path is not None and scope["type"] == "http":
            scope = {**scope, "server": (socket_path, None), "client": None}
        await app(scope, receive, send)

    with TestClient(outermost) as client:
        yield client


@pytest.fixture
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Any], str]]:
    """Gives a service a Unix socket as BentoML does for one that another one depends on; returns its path."""
    folder = tmp_path_factory.mktemp("uds")
    folder.chmod(0o700)
    mapping = bentoml_internals.BentoMLContainer.remote_runner_mapping
    before = mapping.get()
    opened: list[socket.socket] = []

    def give(service: Any) -> str:
        path = str(folder / f"{len(opened)}.sock")
        opened.append(socket.socket(socket.AF_UNIX))
        opened[-1].bind(path)
        mapping.set({**mapping.get(), service.name: f"file://{path}"})
        return path

    yield give
    mapping.set(before)
    for one in opened:
        one.close()
