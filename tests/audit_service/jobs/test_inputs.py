"""What a job is about has the limits that a prediction's input has."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from audit_service.config import AuditConfig, load_config
from audit_service.jobs.service import JobService
from audit_service.schemas import JobRequest
from influence_engine.errors import InputError

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


@dataclasses.dataclass
class Audited:
    config: AuditConfig
    name: str = "audited"
    model_digest: str = ""


def checked(config: str, given: dict[str, str]) -> None:
    service = JobService(Audited(load_config(CONFIGS / f"{config}.yaml")))
    service._check_input(given, JobRequest.model_validate({"input": given, "without": {"top_k": 1}}))


def test_a_picture_is_not_measured_as_a_text() -> None:
    checked("solar_cells", {"image": "data:image/png;base64," + "A" * 100_000})


def test_a_text_that_is_too_long_is_refused_with_its_field() -> None:
    with pytest.raises(InputError, match=r"input\.text has 100000 characters; at most 20000 are read") as refused:
        checked("sentiment", {"text": "a" * 100_000})
    assert refused.value.field == "input.text"
