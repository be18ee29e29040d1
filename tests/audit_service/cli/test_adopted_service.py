"""The bento that ``init`` writes for an adopted model, on a real server, asked as the demo asks."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
from click.testing import CliRunner

from audit_service.cli.group import main
from audit_service.config import load_config
from audit_service.workflows.demo import ask, running_bento
from audit_service.workflows.processes.bentoml_server import ServerError, free_port, serving

pytestmark = pytest.mark.service

HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def project(adopted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with an adopted model, its index and the bento that ``init`` has written."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(adopted, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in ("init --model support --data train.csv --base base", "index build support"):
            result = CliRunner().invoke(main, command.split())
            assert result.exit_code == 0, result.output
    return folder


def test_the_bento_of_an_adopted_model_predicts_explains_and_stops(project: Path) -> None:
    config = load_config(project / "configs" / "support.yaml")

    with running_bento(config, port=3000) as server:
        asked = ask(server.address, {"text": "the cast is superb"}, top_k=3)
        workers = psutil.Process(server.process.pid).children(recursive=True)

    assert asked.prediction["label"] == asked.explanation["prediction"]["label"] == "good"
    assert asked.explanation["quality"]["parity"] is True
    assert [example["rank"] for example in asked.explanation["examples"]][:3] == [1, 2, 3]
    assert workers
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.address}/livez")


def test_the_bento_of_an_adopted_model_can_be_built(project: Path) -> None:
    command = [sys.executable, "-m", "bentoml", "build", "-f", "bentos/support/bentofile.yaml", "--output", "tag"]

    finished = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)

    assert finished.returncode == 0, finished.stderr
    assert "support:" in finished.stdout


def demo(project: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from audit_service.cli import main; main()", "demo", "support", *options]
    return subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_demo_with_check_asks_the_server_stops_it_and_exits_with_0(project: Path) -> None:
    process = demo(project, "--check", "--text", "what a superb film", "--json")

    output, errors = process.communicate(timeout=300)

    assert process.returncode == 0, errors
    answer = json.loads(output)
    assert answer["prediction"]["label"] == "good"
    assert answer["explanation"]["examples"]
    assert answer["seconds"]["start of the server"] > 0


def test_demo_without_check_serves_until_it_is_interrupted(project: Path) -> None:
    process = demo(project)
    assert process.stderr is not None
    errors = []
    while not (errors and errors[-1].startswith("Serving on ")):
        errors.append(process.stderr.readline())
        assert errors[-1], "".join(errors)
    address = errors[-1].split()[2]

    alive = httpx.post(f"{address}/predict", json={"text": "what a superb film"}, trust_env=False)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)

    assert alive.json()["label"] == "good"
    assert process.returncode == 130
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/livez", trust_env=False)


def test_a_server_that_cannot_start_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text("raise RuntimeError('no service here today')\n")
    port = free_port(HOST, 3000)

    with (
        pytest.raises(ServerError, match="no service here today"),
        serving("service:Missing", tmp_path, host=HOST, port=port, log=tmp_path / "log", environment={}),
    ):
        pass


def test_a_port_in_use_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]

        assert free_port(HOST, port) > port
