"""What the description of an audited service says of ``/audit/...``: one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from audit_service.schemas import (
    MAX_BATCH,
    DriftRequest,
    DriftResponse,
    ErrorBody,
    ExplainRequest,
    ExplainResponse,
    FeedbackRequest,
    FeedbackResponse,
    IndexRequest,
    IndexResponse,
    JobAnswer,
    JobReference,
    JobRequest,
    JobStatus,
)

ANYWHERE = (
    "bad_json",
    "invalid_request",
    "body_too_large",
    "unsupported_media_type",
    "too_many_requests",
    "internal_error",
    "timeout",
)
"""Codes of the errors that every endpoint of the plugin, and every audited method, can answer."""

AUDITED = (*ANYWHERE, "idempotency_conflict", "store_unavailable", "model_unavailable")
"""Codes that an audited method can answer beside what its own code does."""

_ENGINE = ("engine_unavailable", "engine_loading", "engine_timeout", "engine_busy")
_RECORD = ("prediction_not_found", "input_not_kept", "model_changed", "input_erased", "store_unavailable")

NEXT_OF_A_JOB = {"job_id": "$response.body#/job_id"}
"""What the next question says of a job that an answer names."""


@dataclass(frozen=True)
class Endpoint:
    """One of the plugin's own endpoints.

    Attributes:
        reads: Type of its request.
        answers: Types of its answers, by status.
        codes: Codes of its errors beside ``ANYWHERE``.
        asked: A request, as an example.
        answered: An answer, as an example.
    """

    reads: Any
    answers: Mapping[int, Any]
    codes: tuple[str, ...]
    asked: Any
    answered: Mapping[int, Any] = field(default_factory=dict)

    def next_after(self, status: int) -> list[str]:
        """Endpoints that take the job which an answer of this status names."""
        return [f"/audit/jobs/{what}" for what in ("status", "get", "cancel")] if status == 202 else []


_PREDICTION_ID = "0199d1f0c0a27d5e9f0e3c1b2a4d5e6f"
_JOB = {"job_id": "5b9e1c0f7a2d4e68"}
_QUEUED = {**_JOB, "state": "queued", "waiting_before": 1, "created": 1764288000.0, "attempts": 0, "cancelling": False}
_MODEL = {"tag": "sentiment:3f2a9c", "digest": "3f2a9c" + "0" * 58}
_INDEX = {"tag": "sentiment-index:81bd40", "digest": "81bd40" + "0" * 58, "method": "unrolled", "rows": 4000}
_EXPLAINED = {
    "explanation_id": "0199d1f0c0b07d5e9f0e3c1b2a4d5e70",
    "prediction_id": _PREDICTION_ID,
    "model": _MODEL,
    "index": _INDEX,
    "prediction": {"label": "positive", "confidence": 0.98, "scores": {"negative": 0.02, "positive": 0.98}},
    "examples": [
        {
            "example_handle": "x-7d1f0a",
            "rank": 1,
            "influence": 0.031,
            "error_90": 0.012,
            "probability_change": 0.0006,
            "tier": "replayed",
            "polarity": "proponent",
            "label": "positive",
            "source": None,
            "text": "a warm and funny film",
        }
    ],
    "groups": [
        {
            "by": "label",
            "group": "positive",
            "examples": 2000,
            "share": 0.61,
            "supporting": 0.55,
            "opposing": 0.06,
            "influence": 0.84,
            "error_90": None,
        }
    ],
    "differences": {
        "target": "positive",
        "measurement": 3.9,
        "base_measurement": 0.1,
        "base_prediction": {"label": "positive", "confidence": 0.52},
        "modules": [{"module": "encoder.layer.5", "change": 2.7}],
        "modules_residual": 1.1,
    },
    "quality": {
        "share_returned": 0.08,
        "share_in_basis": 0.9,
        "retained": 0.7,
        "outside_index": False,
        "error_90": 0.03,
        "agreement": 0.93,
        "warnings": [],
        "parity": True,
    },
    "coming": [],
    "timings_ms": {"gradient": 11.2, "scores": 3.1},
}

ENDPOINTS: Mapping[str, Endpoint] = {
    "/audit/explain": Endpoint(
        reads=ExplainRequest,
        answers={200: ExplainResponse, 202: JobStatus},
        codes=("forbidden", *_RECORD, "tier_unavailable", "queue_full", *_ENGINE),
        asked={"prediction_id": _PREDICTION_ID, "top_k": 5},
        answered={200: _EXPLAINED, 202: _QUEUED},
    ),
    "/audit/explain_batch": Endpoint(
        reads=Annotated[list[ExplainRequest], Field(min_length=1, max_length=MAX_BATCH)],
        answers={200: list[ExplainResponse | JobStatus | ErrorBody]},
        codes=("forbidden", "store_unavailable", *_ENGINE),
        asked=[{"prediction_id": _PREDICTION_ID, "top_k": 5}],
        answered={
            200: [_EXPLAINED, {"error": {"code": "prediction_not_found", "message": "no prediction has the id"}}]
        },
    ),
    "/audit/jobs/submit": Endpoint(
        reads=JobRequest,
        answers={202: JobStatus},
        codes=("forbidden", *_RECORD, "tier_unavailable", "queue_full"),
        asked={"prediction_id": _PREDICTION_ID, "without": {"top_k": 10, "polarity": "proponents"}},
        answered={202: _QUEUED},
    ),
    "/audit/jobs/status": Endpoint(
        reads=JobReference,
        answers={200: JobStatus},
        codes=("forbidden", "job_not_found", "store_unavailable"),
        asked=_JOB,
        answered={200: _QUEUED},
    ),
    "/audit/jobs/get": Endpoint(
        reads=JobReference,
        answers={200: JobAnswer},
        codes=("forbidden", "job_not_found", "job_not_done", "store_unavailable"),
        asked=_JOB,
    ),
    "/audit/jobs/cancel": Endpoint(
        reads=JobReference,
        answers={200: JobStatus},
        codes=("forbidden", "job_not_found", "store_unavailable"),
        asked=_JOB,
        answered={200: {**_QUEUED, "state": "cancelled", "waiting_before": None}},
    ),
    "/audit/feedback": Endpoint(
        reads=FeedbackRequest,
        answers={200: FeedbackResponse},
        codes=("forbidden", "store_unavailable"),
        asked={"items": [{"prediction_id": _PREDICTION_ID, "label": "positive", "groups": {"region": "north"}}]},
        answered={200: {"items": [{"fate": "recorded"}], "recorded": 1, "repeated": 0, "changed": 0, "refused": 0}},
    ),
    "/audit/drift": Endpoint(reads=DriftRequest, answers={200: DriftResponse}, codes=("forbidden",), asked={}),
    "/audit/index": Endpoint(
        reads=IndexRequest,
        answers={200: IndexResponse},
        codes=("forbidden", *_ENGINE),
        asked={},
        answered={
            200: {
                "state": "ready",
                "reason": None,
                "model": _MODEL,
                "index": _INDEX,
                "coming": [],
                "record": {"waiting": 0, "reason": None},
            }
        },
    ),
}
