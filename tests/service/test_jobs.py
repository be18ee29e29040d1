"""Measured explanations over the wire: durable whatever is killed, and what comes out is what training again gives."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch

from audit_service.config import load_config
from audit_service.monitoring.metrics import FIDELITY_BUCKETS, model_label
from audit_service.schemas import MeasuredAnswer, Selection
from audit_service.workflows.counterfactual import Measuring, Question
from audit_service.workspace import Workspace
from influence_engine.progress import silent

pytestmark = pytest.mark.service

TARGET = "bentos.sentiment.service:Sentiment"
TEXT = "a warm, funny and wise film"
QUESTION = {"input": {"text": TEXT}, "without": {"top_k": 5}}


def environment_of(small_project: Any, state: Path) -> dict[str, str]:
    return {**small_project.environment, "BENTO_AUDIT_STATE": str(state), "BENTO_AUDIT_JOBS__WAITING": "3"}


@pytest.fixture(scope="module")
def server(start_module_server: Any, small_project: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    server = start_module_server(TARGET, env=environment_of(small_project, tmp_path_factory.mktemp("state")))
    server.wait_until_explaining()
    yield server
    assert server.post("/predict", {"text": TEXT}).status_code == 200


@pytest.fixture(scope="module")
def measured(small_project: Any, tmp_path_factory: pytest.TempPathFactory) -> MeasuredAnswer:
    """The same question, answered in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the process that works on jobs
    try:
        config = load_config(small_project.config.file)
        measuring = Measuring(Workspace(config), tmp_path_factory.mktemp("kept"))
        return measuring.answer(Question(input={"text": TEXT}, without=Selection(top_k=5)), silent)
    finally:
        torch.set_num_threads(threads)


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    error: dict[str, Any] = answer.json()["error"]
    return error


def wait_for(server: Any, job_id: str, enough: Callable[[dict[str, Any]], bool], seconds: float = 240) -> Any:
    end = time.monotonic() + seconds
    while True:
        answer = server.post("/audit/jobs/status", {"job_id": job_id})
        assert answer.status_code == 200, answer.text
        status = answer.json()
        if enough(status):
            return status
        assert time.monotonic() < end, f"{status}\n{server.log.read_text()[-3000:]}"
        time.sleep(0.1)


def ended(status: dict[str, Any]) -> bool:
    return status["state"] in ("done", "failed", "cancelled")


def training(status: dict[str, Any]) -> bool:
    progress = status.get("progress") or {}
    return ended(status) or (progress.get("stage") == "training with the change" and progress["done"] >= 2)


def job_processes(server: Any) -> list[psutil.Process]:
    found = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(server.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "audit_service.jobs.worker" in child.cmdline():
                    found.append(child)
    return found


def kill_all_but(server: Any, spared: psutil.Process) -> None:
    everyone = psutil.Process(server.process.pid).children(recursive=True)
    for one in [psutil.Process(server.process.pid), *everyone]:
        if one.pid != spared.pid:
            with contextlib.suppress(psutil.Error):
                one.kill()


def assert_same(answer: dict[str, Any], expected: MeasuredAnswer) -> None:
    found = MeasuredAnswer.model_validate(answer["result"])
    assert found.change.measured == pytest.approx(expected.change.measured, abs=1e-6)
    assert found.change.predicted == pytest.approx(expected.change.predicted, rel=1e-3)
    assert [one.example_handle for one in found.examples] == [one.example_handle for one in expected.examples]


def test_a_measured_explanation_is_a_job_whose_result_is_that_of_training_again(
    server: Any, small_project: Any, measured: MeasuredAnswer
) -> None:
    asked = server.post("/audit/explain", {"input": {"text": TEXT}, "tier": "measured", "top_k": 5})
    assert asked.status_code == 202, asked.text
    job_id = asked.json()["job_id"]
    assert server.post("/audit/jobs/submit", QUESTION).json()["job_id"] == job_id, "the same question is one job"
    error = error_of(server.post("/audit/jobs/get", {"job_id": job_id}), 409)
    assert error["code"] == "job_not_done"

    while_running = wait_for(server, job_id, training)
    assert while_running["state"] in ("running", "done")
    if while_running["state"] == "running":
        assert while_running["progress"]["seconds_left"] >= 0
        (process,) = job_processes(server)
        assert process.nice() == 19
    status = wait_for(server, job_id, ended)
    assert status["state"] == "done", status
    answer = server.post("/audit/jobs/get", {"job_id": job_id}).json()
    assert_same(answer, measured)
    result = answer["result"]
    assert result["tier"] == "measured"
    assert (result["kind"], result["changed_examples"], result["training_examples"]) == ("remove", 5, 200)
    assert result["change"]["ratio"]["estimated"] == pytest.approx(
        result["change"]["measured"] / result["change"]["predicted"]["estimated"]
    )
    assert result["memory_bytes"] < 1.5 * result["memory_predicted_bytes"]

    # What is done stays done, and is counted once.
    again = server.post("/audit/jobs/submit", QUESTION)
    assert (again.status_code, again.json()["job_id"], again.json()["state"]) == (202, job_id, "done")
    time.sleep(2.5)
    ratio = result["change"]["ratio"]["estimated"]
    model = model_label("sentiment", small_project.model_digest)
    series = f'audit_influence_fidelity_ratio_bucket{{kind="remove",le="%s",model="{model}",tier="estimated"}} %s'
    metrics = server.client.get("/metrics").text
    assert series % ("+Inf", "1.0") in metrics
    above = min([bound for bound in FIDELITY_BUCKETS if bound >= ratio], default=float("inf"))
    assert series % ("+Inf" if above == float("inf") else above, "1.0") in metrics
    assert f'audit_jobs{{model="{model}",state="done"}} 1.0' in metrics
    assert TEXT not in server.log.read_text()


def test_one_is_relabelled_and_another_edited_by_their_handles(server: Any) -> None:
    explanation = server.post("/audit/explain", {"input": {"text": TEXT}, "polarity": "proponents"}).json()
    example = explanation["examples"][0]
    handle, other = example["example_handle"], {"negative": "positive", "positive": "negative"}[example["label"]]
    relabel = {"input": {"text": TEXT}, "relabel": {"examples": [handle], "label": other}, "replay": True}
    edit = {"input": {"text": TEXT}, "edit": {"example": handle, "text": "not a good film"}}
    ids = [server.post("/audit/jobs/submit", question).json()["job_id"] for question in (relabel, edit)]
    for job_id, kind in zip(ids, ("relabel", "edit"), strict=True):
        assert wait_for(server, job_id, ended)["state"] == "done"
        result = server.post("/audit/jobs/get", {"job_id": job_id}).json()["result"]
        assert (result["kind"], result["changed_examples"]) == (kind, 1)
        assert result["examples"][0]["example_handle"] == handle
        assert result["control_seconds"] < result["seconds"], "the control was executed before"
        if kind == "relabel":
            assert result["change"]["measured"] < 0
            assert result["change"]["predicted"]["replayed"] < 0
            assert result["change"]["ratio"]["replayed"] > 0


def test_a_prediction_on_record_is_measured_for_the_label_that_was_answered(server: Any) -> None:
    prediction = server.post("/predict", {"text": "a dull film"}).json()
    question = {"prediction_id": prediction["prediction_id"], "without": {"group": {"label": "negative"}}}
    job_id = server.post("/audit/jobs/submit", question).json()["job_id"]
    assert wait_for(server, job_id, ended)["state"] == "done"
    result = server.post("/audit/jobs/get", {"job_id": job_id}).json()["result"]
    assert result["change"]["target"] == prediction["label"]
    assert result["changed_examples"] > 50
    assert len(result["examples"]) <= 100
    assert result["change"]["label_after"] == "positive"


def test_jobs_are_cancelled_and_bad_ones_say_what_would_be_right(server: Any) -> None:
    questions = [{"input": {"text": TEXT}, "without": {"top_k": number}} for number in range(10, 16)]
    first = server.post("/audit/jobs/submit", questions[0]).json()["job_id"]
    wait_for(server, first, lambda status: status["state"] == "running")
    waiting = [server.post("/audit/jobs/submit", question) for question in questions[1:4]]
    assert [one.json()["waiting_before"] for one in waiting] == [1, 2, 3]
    full = server.post("/audit/jobs/submit", questions[4])
    assert error_of(full, 429)["code"] == "queue_full"
    assert int(full.headers["retry-after"]) > 0
    for job_id in [*(one.json()["job_id"] for one in waiting), first]:
        assert server.post("/audit/jobs/cancel", {"job_id": job_id}).status_code == 200
    assert wait_for(server, first, ended)["state"] == "cancelled"
    assert "cancelled" in error_of(server.post("/audit/jobs/get", {"job_id": first}), 409)["message"]

    for path in ("status", "get", "cancel"):
        assert error_of(server.post(f"/audit/jobs/{path}", {"job_id": "nobody"}), 404)["code"] == "job_not_found"
    wrong = [
        ({"input": {"text": TEXT}}, "exactly one of without, relabel and edit"),
        ({"without": {"top_k": 3}}, "exactly one of prediction_id and input"),
        ({**QUESTION, "without": {"top_k": 3, "examples": ["x"]}}, "exactly one of top_k, group and examples"),
        ({**QUESTION, "without": {"top_k": 0}}, "greater than or equal to 1"),
        ({**QUESTION, "edit": {"example": "x", "text": "y"}}, "exactly one of without"),
    ]
    for question, message in wrong:
        error = error_of(server.post("/audit/jobs/submit", question), 400)
        assert error["code"] == "invalid_request"
        assert message in error["message"]
    unusable = [
        ({**QUESTION, "target": {"label": "sideways"}}, "target.label", "the labels are 'negative', 'positive'"),
        ({**QUESTION, "input": {"txt": TEXT}}, "input.txt", "its fields are 'text'"),
        ({**QUESTION, "input": {"text": " "}}, "input.text", "a word at least"),
        ({"input": {"text": TEXT}, "relabel": {"top_k": 1, "label": "up"}}, "relabel.label", "unknown label 'up'"),
        ({"prediction_id": "nobody", "without": {"top_k": 1}}, "prediction_id", "no prediction has the id"),
    ]
    for question, field, message in unusable:
        error = error_of(server.post("/audit/jobs/submit", question), 404 if field == "prediction_id" else 400)
        assert error["field"] == field
        assert message in error["message"]
    asked = {"input": {"text": TEXT}}
    absent = [
        ({**asked, "without": {"examples": ["nobody"]}}, "no example 'nobody'"),
        ({**asked, "edit": {"example": "nobody", "text": "a film"}}, "no example 'nobody'"),
        ({**asked, "relabel": {"group": {"source": "nowhere"}, "label": "negative"}}, "has the source 'nowhere'"),
        ({**asked, "without": {"group": {"text": TEXT}}}, "cannot be grouped by 'text'; they have label, source"),
        ({**asked, "relabel": {"top_k": 1, "label": "a" * 6_000}}, "relabel.label has 6000 characters"),
    ]
    for question, message in absent:
        answer = server.post("/audit/jobs/submit", question)
        assert error_of(answer, 400)["code"] == "bad_input"
        assert message in error_of(answer, 400)["message"]
        assert len(answer.content) < 500
    batch = server.post("/audit/explain_batch", [{"input": {"text": TEXT}, "tier": "measured", "top_k": 5}] * 2).json()
    assert batch[0]["job_id"] == batch[1]["job_id"]
    server.post("/audit/jobs/cancel", {"job_id": batch[0]["job_id"]})


def test_a_job_survives_the_death_of_its_process_and_of_the_whole_server(
    start_server: Any, small_project: Any, measured: MeasuredAnswer, tmp_path: Path
) -> None:
    environment = environment_of(small_project, tmp_path / "state")
    server = start_server(TARGET, env=environment)
    job_id = server.post("/audit/jobs/submit", QUESTION).json()["job_id"]
    assert wait_for(server, job_id, training)["state"] == "running"
    (process,) = job_processes(server)
    process.kill()
    assert wait_for(server, job_id, lambda status: status["attempts"] == 2 or ended(status))["state"] == "running"

    wait_for(server, job_id, training)
    (process,) = job_processes(server)
    kill_all_but(server, process)
    process.wait(30)  # nobody is left for whom it would work

    server = start_server(TARGET, env=environment)
    status = wait_for(server, job_id, ended)
    assert (status["state"], status["attempts"]) == ("done", 2), "the server's end is not the job's fault"
    assert_same(server.post("/audit/jobs/get", {"job_id": job_id}).json(), measured)


def test_a_service_without_the_record_says_why_nothing_can_be_measured(
    start_server: Any, small_project: Any, tmp_path: Path
) -> None:
    shutil.copytree(small_project.root, tmp_path / "project")
    config = tmp_path / "project" / "configs" / "sentiment.yaml"
    shutil.rmtree(tmp_path / "project" / "runs")
    environment = {**environment_of(small_project, tmp_path / "state"), "BENTO_AUDIT_CONFIG": str(config)}
    server = start_server(TARGET, env=environment)
    for answer in (
        server.post("/audit/jobs/submit", QUESTION),
        server.post("/audit/explain", {"input": {"text": TEXT}, "tier": "measured"}),
    ):
        error = error_of(answer, 422)
        assert error["code"] == "tier_unavailable"
        assert "for lack of a recorded run" in error["message"]
        assert "bento-audit finetune" in error["message"]
    assert server.post("/predict", {"text": TEXT}).status_code == 200
