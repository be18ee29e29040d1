"""Every error body becomes the one shape, and bodies that are nobody's error stay."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from audit_service.errors import BrokenJsonError
from audit_service.serving.error_responses import uniform_body
from audit_service.serving.json_body import parse_json


class Inner(BaseModel):
    label: str
    span: int


class Outer(BaseModel):
    one: Inner | None
    many: list[Inner]


class Asked(BaseModel):
    text: str
    outer: Outer | None = None


def problem(status: int, body: Any) -> Any:
    return uniform_body(status, "application/json", json.dumps(body).encode(), shape=Asked)


@pytest.mark.parametrize(
    ("status", "body", "code", "message"),
    [
        (400, [{"error": "wrong"}], "invalid_request", "wrong"),
        (500, {"error": "broken"}, "internal_error", "broken"),
        (429, {"error": "Too many requests"}, "too_many_requests", "Too many requests"),
        (418, {"error": "teapot"}, "http_418", "teapot"),
        (409, [{"error": '{"error": {"code": "inner", "message": "said"}}'}], "inner", "said"),
        (409, [{"error": '{"error": "a string"}'}], "http_409", '{"error": "a string"}'),
        (409, [{"error": "{not json"}], "http_409", "{not json"),
    ],
)
def test_bodies_of_bentoml_become_the_one_shape(status: int, body: Any, code: str, message: str) -> None:
    assert problem(status, body) == {"error": {"code": code, "message": message}}


def test_a_failed_validation_names_its_first_field_and_counts_the_others() -> None:
    details = [
        {"type": "string_type", "loc": ["text"], "msg": "Input should be a valid string"},
        {"type": "extra_forbidden", "loc": ["lang"], "msg": "Extra inputs are not permitted"},
    ]
    found = problem(400, {"error": "2 validation errors", "detail": details})["error"]
    assert found["field"] == "text"
    assert found["message"] == "text: Input should be a valid string (and 1 more)"
    unknown = problem(400, {"error": "1 validation error", "detail": details[1:]})["error"]
    assert unknown["message"] == "lang: no such field; the fields are text, outer"


@pytest.mark.parametrize(
    ("loc", "fields"),
    [
        (["lang"], "text, outer"),
        (["root", "lang"], "text, outer"),
        (["outer", "three"], "one, many"),
        (["outer", "one", "topic"], "label, span"),
        (["outer", "many", 4, "topic"], "label, span"),
    ],
)
def test_an_unknown_field_is_answered_with_those_of_the_object_that_it_is_in(loc: list[Any], fields: str) -> None:
    detail = {"type": "extra_forbidden", "loc": loc, "msg": "Extra inputs are not permitted"}

    found = problem(400, {"error": "1 validation error", "detail": [detail]})["error"]

    assert found["message"].endswith(f"{loc[-1]}: no such field; the fields are {fields}")


@pytest.mark.parametrize(
    "body", [{"detail": "own"}, {"error": {"code": "x", "message": "y"}}, [1, 2], [], {}, "text", 5, None, [["error"]]]
)
def test_bodies_of_others_stay_as_they_are(body: Any) -> None:
    assert problem(400, body) is None


@given(body=st.binary(max_size=200), status=st.integers(400, 599))
def test_no_body_breaks_it(body: bytes, status: int) -> None:
    uniform_body(status, "application/json", body)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(value=values)
def test_what_json_writes_is_read_back(value: Any) -> None:
    for body in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert parse_json(body.encode("utf-8")) == value


@given(body=st.binary(min_size=1, max_size=100))
def test_any_bytes_are_json_or_refused(body: bytes) -> None:
    with contextlib.suppress(BrokenJsonError):
        parse_json(body)
