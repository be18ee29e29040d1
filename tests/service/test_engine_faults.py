"""An engine that is down, hanging, loading or wrong never fails a prediction."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from influence_engine.index import IndexSettings, InfluenceIndex
from influence_engine.training import Run

pytestmark = pytest.mark.service

TARGET = "bentos.sentiment.service:Sentiment"
ENGINE = "influence_engine"
QUESTION = {"input": {"text": "a dull film"}, "top_k": 3}


def project_copy(small_project: Any, folder: Path) -> dict[str, str]:
    """A copy of the project whose index may be changed; the environment that names it."""
    shutil.copytree(small_project.root, folder / "project")
    config = folder / "project" / "configs" / "sentiment.yaml"
    return {**small_project.environment, "BENTO_AUDIT_CONFIG": str(config), "BENTO_AUDIT_STATE": str(folder / "state")}


def with_setting(environment: dict[str, str], key: str, value: str) -> dict[str, str]:
    return {**environment, f"BENTO_AUDIT_{key.upper().replace('.', '__')}": value}


def assert_predicts(server: Any) -> str:
    answer = server.post("/predict", {"text": "a fine film"})
    assert answer.status_code == 200, answer.text
    return answer.json()["prediction_id"]


def assert_unexplained(server: Any, code: str) -> str:
    began = time.monotonic()
    answer = server.post("/audit/explain", QUESTION)
    assert answer.status_code == 503, answer.text
    assert answer.json()["error"]["code"] == code
    assert int(answer.headers["retry-after"]) >= 1
    assert time.monotonic() - began < 4
    message: str = answer.json()["error"]["message"]
    return message


def assert_ready_quickly(server: Any) -> None:
    began = time.monotonic()
    assert server.client.get("/readyz").status_code == 200
    assert time.monotonic() - began < 1


@contextlib.contextmanager
def stopped(server: Any) -> Iterator[None]:
    """The engine's process hangs: it accepts connections and answers nothing."""
    (process,) = server.workers(ENGINE)
    process.suspend()
    try:
        yield
    finally:
        process.resume()


def wait_until(look: Any, timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def test_a_killed_engine_costs_explanations_only_and_comes_back(
    start_server: Any, small_project: Any, tmp_path: Path
) -> None:
    environment = with_setting(project_copy(small_project, tmp_path), "serve.explain_deadline_s", "2")
    server = start_server(TARGET, env=environment)
    server.wait_until_explaining()
    prediction_id = assert_predicts(server)
    (engine,) = server.workers(ENGINE)
    os.kill(engine.pid, signal.SIGKILL)
    engine.wait(10)
    answer = server.post("/audit/explain", QUESTION)
    assert answer.status_code == 503, answer.text
    assert answer.json()["error"]["code"] in ("engine_unavailable", "engine_timeout", "engine_loading")
    assert int(answer.headers["retry-after"]) >= 1
    assert_ready_quickly(server)
    assert_predicts(server)
    batch = server.post("/audit/explain_batch", [QUESTION])
    assert batch.status_code == 503
    # BentoML starts it again; what was predicted before can be explained then.
    server.wait_until_explaining()
    assert server.post("/audit/explain", {"prediction_id": prediction_id}).status_code == 200


def test_a_hanging_engine_costs_explanations_only(start_server: Any, small_project: Any, tmp_path: Path) -> None:
    environment = with_setting(project_copy(small_project, tmp_path), "serve.explain_deadline_s", "1")
    server = start_server(TARGET, env=environment)
    server.wait_until_explaining()
    with stopped(server):
        assert_unexplained(server, "engine_timeout")
        assert_ready_quickly(server)
        assert_predicts(server)
        assert server.post("/audit/index", {}).status_code == 503
    wait_until(lambda: server.post("/audit/explain", QUESTION).status_code == 200)


def test_an_engine_without_its_index_says_which_command_makes_it_and_takes_the_index_when_it_is_there(
    start_server: Any, small_project: Any, tmp_path: Path
) -> None:
    environment = project_copy(small_project, tmp_path)
    index = tmp_path / "project" / "index" / "sentiment"
    index.rename(tmp_path / "elsewhere")
    server = start_server(TARGET, env=environment)
    wait_until(lambda: server.post("/audit/index", {}).json().get("state") == "failed")
    assert "index build" in assert_unexplained(server, "engine_unavailable")
    assert_predicts(server)
    assert_ready_quickly(server)
    (tmp_path / "elsewhere").rename(index)
    wait_until(lambda: server.post("/audit/explain", QUESTION).status_code == 200)


def test_an_index_of_another_model_is_refused(start_server: Any, small_project: Any, tmp_path: Path) -> None:
    environment = project_copy(small_project, tmp_path)
    index = tmp_path / "project" / "index" / "sentiment"
    (manifest,) = index.glob("versions/*/manifest.json")
    digest = small_project.model_digest
    manifest.write_text(manifest.read_text().replace(digest, "0" * len(digest)))
    server = start_server(TARGET, env=environment)
    wait_until(lambda: server.post("/audit/index", {}).json().get("state") == "failed")
    assert "was built for the model" in assert_unexplained(server, "engine_unavailable")
    assert_predicts(server)


def test_a_new_index_is_taken_over_while_serving(start_server: Any, small_project: Any, tmp_path: Path) -> None:
    environment = project_copy(small_project, tmp_path)
    server = start_server(TARGET, env=environment)
    server.wait_until_explaining()
    before = server.post("/audit/explain", QUESTION).json()["index"]
    project = tmp_path / "project"
    model = Run.open(project / "runs" / "sentiment").load_model()
    index = project / "index" / "sentiment"
    InfluenceIndex.build(model, small_project.task, small_project.train[:40], index, IndexSettings(dimensions=16))

    def answered_by_the_new_one() -> bool:
        answer = server.post("/audit/explain", QUESTION)
        assert answer.status_code == 200, "the old index answers until the new one is loaded"
        return bool(answer.json()["index"]["digest"] != before["digest"])

    wait_until(answered_by_the_new_one)


def test_a_model_on_record_that_differs_from_the_explained_one_shows_in_parity(
    start_server: Any, small_project: Any, tmp_path: Path
) -> None:
    environment = project_copy(small_project, tmp_path)
    server = start_server("flipping_app:Flipping", env=environment)
    server.wait_until_explaining()
    prediction = server.post("/predict", {"text": "a fine film"})
    explanation = server.post("/audit/explain", {"prediction_id": prediction.headers["x-prediction-id"]}).json()
    assert explanation["quality"]["parity"] is False
    assert explanation["prediction"]["label"] == prediction.json()["label"]
    assert explanation["differences"]["target"] == prediction.json()["label"], "what was predicted is explained"


def test_one_engine_elsewhere_serves_several_services_and_reads_json_only(
    start_server: Any, small_project: Any, tmp_path: Path
) -> None:
    environment = project_copy(small_project, tmp_path)
    engine = start_server("audit_service.service:InfluenceEngine", env=environment)
    environment["BENTO_AUDIT_SERVE__ENGINE_URL"] = engine.url
    first = start_server(TARGET, env={**environment, "BENTO_AUDIT_STATE": str(tmp_path / "first")})
    second = start_server("foreign_app:Foreign", env={**environment, "BENTO_AUDIT_STATE": str(tmp_path / "second")})
    for server in (first, second):
        assert not server.workers(ENGINE), "no second engine is started"
        server.wait_until_explaining()
        assert server.post("/audit/explain", QUESTION).status_code == 200
    refused = engine.post("/explain", content=b"x", headers={"content-type": "application/vnd.bentoml+pickle"})
    assert refused.status_code == 415
    assert engine.post("/status", {}).json()["sentiment"]["state"] == "ready"
    unknown = engine.post("/explain", {"config": "other", "items": [{"input": {}}], "deadline_s": 1})
    assert unknown.status_code == 503
    assert "sentiment" in unknown.json()["error"]["message"]
    engine.stop()
    assert_unexplained(first, "engine_unavailable")
    assert_ready_quickly(first)
    assert_predicts(first)


def test_predictions_survive_a_restart_and_workers_share_them(
    start_server: Any, small_project: Any, tmp_path: Path
) -> None:
    environment = project_copy(small_project, tmp_path)
    server = start_server("foreign_app:ManyWorkers", env=environment)
    server.wait_until_explaining()
    ids = [server.post("/ask", {"text": f"film number {n}"}).headers["x-prediction-id"] for n in range(6)]
    for prediction_id in ids:  # asked at once, by whichever worker
        assert server.post("/audit/explain", {"prediction_id": prediction_id}).status_code == 200
    server.stop()
    again = start_server("foreign_app:ManyWorkers", env=environment)
    again.wait_until_explaining()
    for prediction_id in ids:
        assert again.post("/audit/explain", {"prediction_id": prediction_id}).status_code == 200


def test_inputs_that_are_not_kept_cannot_be_explained_by_id(
    start_server: Any, small_project: Any, tmp_path: Path
) -> None:
    environment = with_setting(project_copy(small_project, tmp_path), "serve.keep_inputs", "none")
    server = start_server(TARGET, env=environment)
    server.wait_until_explaining()
    prediction_id = assert_predicts(server)
    answer = server.post("/audit/explain", {"prediction_id": prediction_id})
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "input_not_kept"
    assert server.post("/audit/explain", QUESTION).status_code == 200
    server.stop()
    for file in (tmp_path / "state").iterdir():
        assert b"a fine film" not in file.read_bytes()


def test_a_record_that_cannot_be_written_is_counted_and_fails_no_prediction(
    start_server: Any, small_project: Any, tmp_path: Path
) -> None:
    environment = project_copy(small_project, tmp_path)
    (tmp_path / "state").write_text("a file where the folder should be")
    server = start_server(TARGET, env=environment)
    assert_predicts(server)
    wait_until(lambda: "cannot be written" in server.log.read_text())
    assert_predicts(server)
    server.wait_until_explaining()
    record = server.post("/audit/index", {}).json()["record"]
    assert record["waiting"] >= 2
    assert "File exists" in record["reason"]
    assert str(tmp_path) not in record["reason"]
    failed = [line for line in server.metrics().splitlines() if line.startswith("audit_record_write_failures_total{")]
    assert float(failed[0].split()[-1]) >= 1


def test_in_development_one_process_predicts_and_explains(
    start_server: Any, small_project: Any, tmp_path: Path
) -> None:
    environment = project_copy(small_project, tmp_path)
    server = start_server(TARGET, "--development", env=environment)
    assert not server.workers(ENGINE)
    server.wait_until_explaining()
    prediction_id = assert_predicts(server)
    assert server.post("/audit/explain", {"prediction_id": prediction_id}).json()["quality"]["parity"] is True
