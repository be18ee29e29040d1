"""A job that cannot be done ends with its error, by the code that the same mistake has everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from audit_service.config import load_config
from audit_service.jobs.store import JobStore
from audit_service.jobs.worker import Worker

CONFIG = """
task: {type: text_classification, labels: [bad, good]}
model: {path: nowhere}
data: {train: {csv: nowhere.csv}}
"""


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    file = tmp_path / "configs" / "films.yaml"
    file.parent.mkdir()
    file.write_text(CONFIG)
    return Worker(load_config(file), JobStore(tmp_path / "state", waiting=2))


def failed(worker: Worker, content: dict[str, Any]) -> dict[str, Any]:
    job = worker.store.submit(content)
    begun = worker.store.begin()
    assert begun is not None
    worker.run(*begun)
    ended = worker.store.get(job.job_id)
    assert ended.state == "failed"
    assert ended.error is not None
    return ended.error


def test_a_job_that_cannot_be_done_says_why_without_naming_folders(worker: Worker, tmp_path: Path) -> None:
    error = failed(worker, {"input": {"text": "fine"}, "without": {"top_k": 1}, "replay": False})

    assert set(error) <= {"code", "message", "field"}
    assert error["code"] != "internal_error"
    assert error["message"]
    assert str(tmp_path) not in error["message"]
