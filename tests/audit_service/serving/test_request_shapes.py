"""What ``/audit/explain`` takes as a target, and what its refusals say."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from audit_service.schemas import ExplainRequest, Target
from audit_service.serving.error_responses import validation_body


def refusal(target: Any) -> dict[str, Any]:
    with pytest.raises(ValidationError) as caught:
        ExplainRequest.model_validate({"input": {"text": "late"}, "target": target})
    details: Any = caught.value.errors(include_input=False, include_context=False, include_url=False)
    error: dict[str, Any] = validation_body(details, ExplainRequest)["error"]
    return error


def test_a_string_is_the_label_that_it_names() -> None:
    short = ExplainRequest.model_validate({"input": {"text": "late"}, "target": "refund"})
    long = ExplainRequest.model_validate({"input": {"text": "late"}, "target": {"label": "refund"}})

    assert short == long
    assert short.target is not None
    assert short.target.named() == "refund"


@pytest.mark.parametrize("target", [5, ["refund"], True])
def test_what_is_no_target_is_refused_with_the_shape_of_one(target: Any) -> None:
    error = refusal(target)

    assert error["field"] == "target"
    assert "name a label, 'NAME', or an object such as {'label': 'NAME'}" in error["message"]
    assert "label, span, tokens, answer" in error["message"]


def test_an_unknown_field_of_the_target_is_answered_with_the_targets_own_fields() -> None:
    error = refusal({"topic": "refund"})

    assert error["field"] == "target.topic"
    assert error["message"] == "target.topic: no such field; the fields are label, span, tokens, answer"


def test_the_schema_says_that_a_target_may_be_a_string() -> None:
    schema = TypeAdapter(Target).json_schema()

    kinds = {one["type"] for one in schema["anyOf"]}
    assert kinds == {"string", "object"}
    assert "Target" in ExplainRequest.model_json_schema()["$defs"]
