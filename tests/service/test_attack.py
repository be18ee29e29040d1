"""Whatever is sent, nothing but the documented answers comes back: no 5xx but 503 while the engine cannot answer.

``make attack`` runs this with ``ATTACK_SECONDS``: schemathesis then goes on making up requests for so long, also some
that depend on earlier answers. Without it, it sends what the schemas' limits suggest, and stops.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from audit_service.errors import kinds
from audit_service.serving.described_endpoints import ENDPOINTS

pytestmark = pytest.mark.service

TEXT = "a warm, funny and wise film"
SETTINGS = Path(__file__).parent / "attack" / "schemathesis.toml"
ATTACK_S = int(os.environ.get("ATTACK_SECONDS", "0"))
PATHS = ["/predict", *ENDPOINTS]
JSON = {"content-type": "application/json"}
KINDS = kinds()
LONGEST_ERROR = 8_000

BODIES = {
    "nothing": b"",
    "a space": b" ",
    "null": b"null",
    "true": b"true",
    "a number": b"7",
    "a number too large": b"1e999",
    "a number too small": b"-1e999",
    "a text": b'"text"',
    "no text": b'""',
    "an empty list": b"[]",
    "an empty object": b"{}",
    "a list of null": b"[null]",
    "a list of texts": b'["text", "text"]',
    "a list of lists": b"[[[]]]",
    "a list of numbers": b"[1, 2.5, 1e308]",
    "a list of true": b"[true]",
    "half an object": b'{"text": ',
    "two objects": b"{}{}",
    "a byte that is no UTF-8": b'{"text": "\xff"}',
    "UTF-16": '{"text": "x"}'.encode("utf-16"),
    "a mark of byte order": b'\xef\xbb\xbf{"text": "x"}',
    "half of a pair": b'{"text": "\\ud800"}',
    "half of a pair as a name": b'{"\\udfff": 1}',
    "NUL": b'{"text": "\\u0000"}',
    "NUL as a name": b'{"\\u0000": 1}',
    "a name of lines": b'{"\\n\\u001b[31m": 1}',
    "no name": b'{"": 1}',
    "a long name": b'{"' + b"n" * 150_000 + b'": 1}',
    "many names": json.dumps({f"n{number}": number for number in range(5_000)}).encode(),
    "depth": b"[" * 50_000,
    "depth of objects": b'{"input":' * 5_000 + b"1" + b"}" * 5_000,
    "depth that ends": b'{"input": {"text": ' + b"[" * 900 + b"]" * 900 + b"}}",
    "digits": b'{"text": ' + b"9" * 5_000 + b"}",
    "NaN": b'{"text": NaN}',
    "the same name twice": b'{"text": "a", "text": 1}',
    "XML": b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>",
    "a pickle": b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00\x8c\x01a\x94.",
    "too long": b'{"text": "' + b"x" * 300_000 + b'"}',
}

PART = b'--x\r\ncontent-disposition: form-data; name="text"\r\n\r\n%b\r\n--x--\r\n'
FORMS = {
    "no boundary": ("multipart/form-data", b"--x\r\n\r\n--x--"),
    "an empty boundary": ("multipart/form-data; boundary=", b"--\r\n\r\n----"),
    "a boundary that is not there": ("multipart/form-data; boundary=x", b"nothing of the kind"),
    "no parts": ("multipart/form-data; boundary=x", b"--x--\r\n"),
    "a part without a name": ("multipart/form-data; boundary=x", b"--x\r\n\r\nvalue\r\n--x--\r\n"),
    "half a part": ("multipart/form-data; boundary=x", b'--x\r\ncontent-disposition: form-data; name="text"'),
    "a file for a text": (
        "multipart/form-data; boundary=x",
        b'--x\r\ncontent-disposition: form-data; name="text"; filename="a"\r\n\r\n\xff\r\n--x--\r\n',
    ),
    "too many parts": (
        "multipart/form-data; boundary=x",
        b"".join(b'--x\r\ncontent-disposition: form-data; name="a"\r\n\r\n1\r\n' for _ in range(1_001)) + b"--x--\r\n",
    ),
    "half of a pair": ("multipart/form-data; boundary=x; charset=unicode_escape", PART % b"\\ud800"),
    "a charset that reads nothing": ("multipart/form-data; boundary=x; charset=undefined", PART % b"x"),
    "a number too large": ("multipart/form-data; boundary=x", PART % b"1e999"),
    "depth": ("multipart/form-data; boundary=x", PART % (b"[" * 50_000)),
    "digits": ("multipart/form-data; boundary=x", PART % (b"9" * 5_000)),
    "too many fields": ("application/x-www-form-urlencoded", b"&".join(b"a=1" for _ in range(1_001))),
    "a form": ("application/x-www-form-urlencoded", b"text=x&text=y&%00=%ff"),
    "no type": ("", b"{}"),
    "half a type": ("application/", b"{}"),
    "a type with a quote": ('application/json; charset="', b"{}"),
    "another charset": ("application/json; charset=utf-16", b"{}"),
    "a text": ("text/plain", b"x"),
    "bytes": ("application/octet-stream", bytes(range(256))),
}

VALUES: Sequence[Any] = (
    None,
    True,
    -1,
    10**30,
    1.5,
    -0.0,
    "",
    "\0",
    "\u202e\x1b[2J\n",
    "n" * 20_000,
    [],
    [None],
    ["text", None],
    [[]],
    {},
    {"": None},
    {"label": {"label": {}}},
)
"""In the place of every value of a request that is right, one after the other."""


@pytest.fixture(scope="module")
def server(sentiment_server: Any) -> Iterator[Any]:
    yield sentiment_server
    assert "Traceback" not in sentiment_server.log.read_text(), "something failed that nobody foresaw"


@pytest.fixture(scope="module")
def description(server: Any) -> dict[str, Any]:
    found: dict[str, Any] = server.client.get("/docs.json").json()
    return found


def check(answer: httpx.Response, description: dict[str, Any], path: str, sent: object) -> None:
    """An answer is one that the description has, and an error is of the one shape, short, and by a known code."""
    responses = description["paths"][path]["post"]["responses"]
    said = f"{path} answered {answer.status_code} to {str(sent)[:200]}: {answer.text[:500]}"
    assert str(answer.status_code) in responses, said
    assert answer.status_code < 500 or answer.status_code == 503, said
    assert (answer.status_code in (429, 503)) == ("retry-after" in answer.headers), said
    schema = responses[str(answer.status_code)]["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator({**schema, "components": description["components"]}).validate(answer.json())
    if answer.status_code >= 400:
        assert set(answer.json()) == {"error"}, said
        assert len(answer.content) < LONGEST_ERROR, said
        assert KINDS[answer.json()["error"]["code"]].status == answer.status_code, said


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every value within another is."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inner:
        yield from places(one, (*path, name))


def replaced(value: Any, path: Sequence[Any], new: Any) -> Any:
    changed = copy.deepcopy(value)
    holder = changed
    for name in path[:-1]:
        holder = holder[name]
    holder[path[-1]] = new
    return changed


def test_the_description_is_valid(description: dict[str, Any]) -> None:
    assert [error.message for error in OpenAPIV31SpecValidator(description).iter_errors()] == []
    assert set(PATHS) < set(description["paths"])


@pytest.mark.parametrize("path", PATHS)
def test_bodies_of_every_kind_are_answered_in_the_documented_way(
    server: Any, description: dict[str, Any], path: str
) -> None:
    for name, body in BODIES.items():
        check(server.post(path, content=body, headers=JSON), description, path, name)


@pytest.mark.parametrize("path", [path + end for path in PATHS for end in ("%0A", "%00", "%20", "%2E", "%3B", "%FF")])
def test_no_spelling_of_a_path_leads_around_the_checks(server: Any, path: str) -> None:
    answer = server.post(path, content=b"{}", headers={"origin": "https://elsewhere.example", "host": "other.example"})

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", PATHS)
def test_forms_and_content_types_of_every_kind_are_answered_in_the_documented_way(
    server: Any, description: dict[str, Any], path: str
) -> None:
    for name, (content_type, body) in FORMS.items():
        check(server.post(path, content=body, headers={"content-type": content_type}), description, path, name)


@pytest.mark.parametrize("path", PATHS)
def test_values_of_every_kind_in_every_field_are_answered_in_the_documented_way(
    server: Any, description: dict[str, Any], path: str
) -> None:
    right: dict[str, Any] = {
        "/predict": {"text": TEXT},
        "/audit/explain": {
            "input": {"text": TEXT},
            "target": {"label": "positive"},
            "top_k": 1,
            "polarity": "both",
            "tier": "estimated",
            "include": ["groups"],
            "group_by": ["label"],
            "config": "sentiment",
        },
        # No prediction has that id, so that whatever is right is no job: those train, and have tests of their own.
        "/audit/jobs/submit": {
            "prediction_id": "nobody",
            "target": {"label": "positive"},
            "without": {"group": {"label": "positive"}},
            "replay": False,
        },
    }
    asked = right.get(path, ENDPOINTS[path].asked if path in ENDPOINTS else None)
    for place in places(asked):
        for value in VALUES:
            sent = replaced(asked, place, value)
            check(server.post(path, content=json.dumps(sent), headers=JSON), description, path, (place, value))
    if isinstance(asked, dict):
        check(server.post(path, {**asked, "more": 1}), description, path, "a field too many")


@pytest.mark.parametrize(
    ("path", "asked", "field", "least_wrong"),
    [
        ("/audit/explain", {"prediction_id": "{}"}, "prediction_id", 129),
        ("/audit/explain", {"input": {"text": TEXT}, "config": "{}"}, "config", 129),
        ("/audit/explain", {"input": {"text": TEXT}, "target": {"label": "{}"}}, "target.label", 1025),
        ("/audit/explain", {"input": {"text": TEXT}, "group_by": ["{}"]}, "group_by.0", 1025),
        ("/audit/explain", {"input": {"text": TEXT}, "target": {"answer": "{}"}}, "target.answer", 100_001),
        ("/audit/explain", {"input": {"text": "{}"}}, "input.text", 5_001),
        ("/audit/jobs/submit", {"prediction_id": "{}", "without": {"top_k": 1}}, "prediction_id", 129),
        ("/audit/jobs/submit", {"input": {"text": TEXT}, "without": {"examples": ["{}"]}}, "without.examples.0", 1025),
        ("/audit/jobs/submit", {"input": {"text": TEXT}, "edit": {"example": "{}", "text": "x"}}, "edit.example", 1025),
        ("/audit/jobs/status", {"job_id": "{}"}, "job_id", 65),
        ("/audit/index", {"config": "{}"}, "config", 129),
        ("/audit/drift", {"config": "{}"}, "config", 129),
    ],
)
def test_texts_are_read_up_to_their_limit_and_refused_beyond_it(
    server: Any, path: str, asked: Any, field: str, least_wrong: int
) -> None:
    def said(length: int) -> str:
        body = json.dumps(asked).replace("{}", "n" * length)
        answer = server.post(path, content=body, headers=JSON)
        assert answer.status_code < 500, answer.text
        error = answer.json().get("error", {})
        if error.get("field", "").endswith(field):
            return str(error["message"])
        return ""

    assert "at most" in said(least_wrong)
    assert "at most" not in said(least_wrong - 1)


def test_jobs_about_texts_that_are_too_long_are_refused_at_once(server: Any) -> None:
    explained = server.post("/audit/explain", {"input": {"text": TEXT}, "top_k": 1}).json()
    edit = {"example": explained["examples"][0]["example_handle"], "text": "n" * 5_001}
    for asked, field in [
        ({"input": {"text": "n" * 5_001}, "without": {"top_k": 1}}, "input.text"),
        ({"input": {"text": TEXT}, "edit": edit}, "edit.text"),
        ({"input": {"text": TEXT}, "relabel": {"top_k": 1, "label": "n" * 5_001}}, "relabel.label"),
    ]:
        answer = server.post("/audit/jobs/submit", asked)
        assert (answer.status_code, answer.json()["error"]["field"]) == (400, field)


def test_lists_are_read_up_to_their_limit_and_refused_beyond_it(server: Any) -> None:
    item = {"prediction_id": "a", "label": "positive"}
    for path, asked, number, field in [
        ("/audit/explain", lambda n: {"input": {"text": TEXT}, "group_by": ["label"] * n}, 8, "group_by"),
        ("/audit/explain", lambda n: {"input": {"text": TEXT}, "include": ["groups"] * n}, 16, "include"),
        ("/audit/explain", lambda n: {"input": {"text": TEXT}, "top_k": n, "include": []}, 100, "top_k"),
        ("/audit/feedback", lambda n: {"items": [item] * n}, 1_000, "items"),
        ("/audit/feedback", lambda n: {"items": [{**item, "groups": {f"g{i}": "" for i in range(n)}}]}, 16, "groups"),
    ]:
        assert server.post(path, asked(number)).status_code == 200
        beyond = server.post(path, asked(number + 1)).text
        assert '"invalid_request"' in beyond
        assert f'"field":"{field}"' in beyond.replace(": ", ":")


def test_requests_that_are_made_up_get_the_documented_answers(server: Any, tmp_path: Path) -> None:
    """Every check of schemathesis but the exceptions that its settings name, with their reasons."""
    phases = "examples,coverage,fuzzing,stateful" if ATTACK_S else "examples,coverage"
    bounds = ["--max-time", str(ATTACK_S), "--max-examples", "1000"] if ATTACK_S else ["--max-examples", "1"]
    command = [str(Path(sys.executable).parent / "st"), "--config-file", str(SETTINGS), "run", "--no-color"]
    # Submitted jobs train; unless there is time for it, they are left to their own tests.
    left_out = [] if ATTACK_S else ["--exclude-path", "/audit/jobs/submit", "--seed", "1"]
    finished = subprocess.run(
        [*command, "--phases", phases, *bounds, *left_out, f"{server.url}/docs.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )

    print(finished.stdout)
    assert finished.returncode == 0, finished.stdout + finished.stderr
