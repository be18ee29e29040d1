"""Two servers with one PostgreSQL database: what one has answered the other explains, and none needs it to predict."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from tests.postgres import PASSWORD, PostgresServer, new_namespace

pytestmark = pytest.mark.service

TARGET = "bentos.sentiment.service:Sentiment"
TEXT = "a warm, funny and wise film"


def test_two_servers_share_a_database_and_predict_without_it(
    start_server: Any, small_project: Any, postgres: PostgresServer, tmp_path: Any
) -> None:
    environment = {
        **small_project.environment,
        "BENTO_AUDIT_STATE": str(tmp_path / "state"),  # with the keys
        "BENTO_AUDIT_STATE__URL": postgres.url().replace("p%40ss%3aw%2frd%25", "${TEST_DB_PASSWORD}"),
        "BENTO_AUDIT_NAME": new_namespace(),
        "TEST_DB_PASSWORD": PASSWORD,
        "BENTO_AUDIT_FOLDERS__RUNS": str(small_project.config.run_folder),
        "BENTO_AUDIT_FOLDERS__INDEX": str(small_project.config.index_folder),
        "BENTO_AUDIT_FOLDERS__ONNX": str(small_project.config.onnx_folder),
    }
    here, there = (start_server(TARGET, env=environment) for _ in range(2))
    for server in (here, there):
        server.wait_until_explaining()
    key = {"Idempotency-Key": "one"}

    answer = here.post("/predict", {"text": TEXT}, headers=key).json()
    explanation = explained(there, answer["prediction_id"]).json()
    assert explanation["prediction"]["confidence"] == answer["confidence"]
    assert there.post("/predict", {"text": TEXT}, headers=key).json()["prediction_id"] == answer["prediction_id"]
    outcome = {"items": [{"prediction_id": answer["prediction_id"], "label": "negative"}]}
    assert there.post("/audit/feedback", outcome).json()["recorded"] == 1
    assert here.post("/audit/feedback", outcome).json()["items"] == [{"fate": "repeated"}]
    question = {"input": {"text": TEXT}, "without": {"top_k": 5}}
    job_id = there.post("/audit/jobs/submit", question).json()["job_id"]
    assert here.post("/audit/jobs/submit", question).json()["job_id"] == job_id
    here.post("/audit/jobs/cancel", {"job_id": job_id})

    postgres.kill()
    try:
        meanwhile = there.post("/predict", {"text": TEXT}, headers={"Idempotency-Key": "two"})
        assert meanwhile.status_code == 200
        failed = here.post("/audit/explain", {"prediction_id": answer["prediction_id"]})
        assert (failed.status_code, failed.json()["error"]["code"]) == (503, "store_unavailable")
    finally:
        postgres.start()

    explained(here, meanwhile.json()["prediction_id"])
    for server in (here, there):
        assert PASSWORD not in server.log.read_text()
        assert TEXT not in server.log.read_text()
    assert not list((tmp_path / "state").glob("*.sqlite"))


def explained(server: Any, prediction_id: str) -> httpx.Response:
    """The explanation of a prediction that another server may be about to write."""
    until = time.monotonic() + 60
    found = server.post("/audit/explain", {"prediction_id": prediction_id})
    while found.status_code != 200 and time.monotonic() < until:
        time.sleep(0.2)
        found = server.post("/audit/explain", {"prediction_id": prediction_id})
    assert found.status_code == 200, found.text
    return found  # type: ignore[no-any-return]
