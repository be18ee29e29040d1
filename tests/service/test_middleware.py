"""Every error has one shape, and nothing that nobody declared gets in."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def server(start_module_server: Any) -> Iterator[Any]:
    server = start_module_server("middleware_app:EdgeApp")
    yield server
    # Whatever was sent, the server goes on answering.
    assert server.post("/total", {"values": [1, 2]}).json() == {"total": 3.0}


def error_of(answer: httpx.Response) -> dict[str, Any]:
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) <= {"code", "message", "field"}
    assert isinstance(body["error"]["message"], str)
    return body["error"]


def test_good_requests_pass_unchanged(server: Any) -> None:
    assert server.post("/total", {"values": [1, 2], "factor": 2}).json() == {"total": 6.0}
    assert server.post("/total_of_list", [1, 2]).json() == 3.0
    assert server.post("/shout", content="hello", headers={"content-type": "text/plain"}).text == "HELLO"
    assert server.post("/stream", {"count": 3}).text == "0\n1\n2\n"
    assert server.post("/double", {"rows": [[1, 2]]}).json() == [[2, 4]]


class Bomb:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('unpickled')",))


@pytest.mark.parametrize("path", ["/total", "/double", "/shout", "/unaudited", "/nowhere"])
def test_pickles_are_refused_before_they_are_read(server: Any, path: str) -> None:
    answer = server.post(path, content=pickle.dumps(Bomb()), headers={"content-type": "application/vnd.bentoml+pickle"})
    assert answer.status_code == 415
    assert error_of(answer)["code"] == "unsupported_media_type"


@pytest.mark.parametrize("content_type", ["application/xml", "application/x-python-pickle", "image/png", "x", "/"])
def test_content_types_that_nobody_declared_are_refused(server: Any, content_type: str) -> None:
    answer = server.post("/total", content=b"{}", headers={"content-type": content_type})
    assert answer.status_code == 415
    assert "application/json" in error_of(answer)["message"]


def test_a_body_that_is_too_long_is_refused_with_and_without_its_length(server: Any) -> None:
    body = b'{"values": [' + b"1," * 10_000 + b"1]}"
    for content in (body, iter([body[:6000], body[6000:]])):
        answer = server.post("/total", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert error_of(answer)["code"] == "body_too_large"


def test_a_method_that_is_not_audited_reads_what_bentoml_reads(server: Any) -> None:
    body = b'{"text": "' + b"a" * 20_000 + b'"}'
    assert (
        server.post("/unaudited", content=body, headers={"content-type": "application/vnd.api+json"}).json() == 20_000
    )


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "line 1, column 2"),
        (b'{"values": [1,]}', "line 1"),
        (b'{"values": [NaN]}', "NaN"),
        (b'{"values": [-Infinity]}', "Infinity"),
        (b"[" * 5_000, "nested too deeply"),
        (b'{"values": "\xff"}', "UTF-8"),
        (b'{"values": "\\ud800"}', "surrogate"),
        (b'{"values": [' + b"9" * 5_000 + b"]}", "too large"),
        (b'{"values": [1e999]}', "too large"),
        (b'{"values": [-1E+0400]}', "too large"),
        (b"\x00", "not JSON"),
    ],
)
@pytest.mark.parametrize("path", ["/total", "/total_of_list"])
def test_what_is_not_json_says_where(server: Any, path: str, body: bytes, says: str) -> None:
    answer = server.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "bad_json"
    assert says in error_of(answer)["message"]


def test_a_body_without_content_type_is_json(server: Any) -> None:
    request = httpx.Request("POST", f"{server.url}/total", content=b'{"values": [NaN]}')
    assert "content-type" not in request.headers
    assert error_of(server.client.send(request))["code"] == "bad_json"


def test_failed_validation_names_the_field(server: Any) -> None:
    answer = server.post("/total", {"values": ["one"]})
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "invalid_request"
    assert error_of(answer)["field"] == "values.0"
    assert error_of(server.post("/total", {}))["field"] == "values"


def test_failed_validation_does_not_write_the_input_into_the_log(server: Any) -> None:
    server.post("/total", {"values": ["my secret diary"]})
    assert "values.0: float_parsing" in server.log.read_text()
    assert "secret diary" not in server.log.read_text()


def test_errors_of_the_service_get_the_same_shape(server: Any) -> None:
    refused = server.post("/fails", {"kind": "refused"})
    assert refused.status_code == 409
    assert error_of(refused) == {"code": "http_409", "message": "not like this"}
    nested = server.post("/fails", {"kind": "nested"})
    assert error_of(nested) == {"code": "inner_code", "message": "inner message"}
    broken = server.post("/fails", {"kind": "broken"})
    assert broken.status_code == 500
    assert error_of(broken)["code"] == "internal_error"
    assert "secret detail" not in broken.text


def test_unknown_paths_and_methods_get_the_same_shape(server: Any) -> None:
    missing = server.post("/nowhere", {})
    assert missing.status_code == 404
    assert "/total" in error_of(missing)["message"]
    wrong = server.client.get("/total")
    assert wrong.status_code == 405
    assert error_of(wrong)["code"] == "method_not_allowed"


def test_limits_of_bentoml_get_the_same_shape(server: Any) -> None:
    late = server.post("/slow", {"seconds": 10})
    assert late.status_code == 504
    assert error_of(late)["code"] == "timeout"
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: server.post("/slow", {"seconds": 1}), range(6)))
    busy = [answer for answer in answers if answer.status_code == 429]
    assert busy
    assert error_of(busy[0])["code"] == "too_many_requests"
    assert busy[0].headers["retry-after"] == "1"


def test_mounted_apps_and_system_paths_keep_their_own_answers(server: Any) -> None:
    assert server.client.get("/own/teapot").json() == {"detail": "short and stout"}
    assert server.client.get("/livez").status_code == 200
    assert "bentoml_service_request_total" in server.client.get("/metrics").text


def test_paths_that_nobody_serves_grow_neither_metrics_nor_logs(server: Any) -> None:
    server.client.get("/nobody/first")
    server.client.get("/own/teapot")
    before = server.metrics()
    for number in range(50):
        assert server.client.get(f"/nobody/{number}%0aforged line").status_code == 404
        assert server.client.get(f"/own/nobody/{number}").status_code == 404
        assert server.client.get("/" + "x" * 5_000).status_code == 404
    after = server.metrics()
    assert len(after.splitlines()) == len(before.splitlines())
    for told in (after, server.log.read_text()):
        assert "nobody/" not in told
        assert "forged line" not in told
        assert "xxxx" not in told
    assert 'endpoint="/{unknown}",http_response_code="404"' in after
    assert 'endpoint="/own/{path}",http_response_code="418"' in after


def test_no_page_loads_what_is_elsewhere(server: Any) -> None:
    for path in ("/", "/static_content/main.js", "/assets/index.js"):
        answer = server.client.get(path)
        assert answer.status_code == 404
        assert error_of(answer)["code"] == "not_found"
    assert server.client.get("/docs.json").json()["openapi"].startswith("3.")


def test_what_the_edge_refuses_is_counted(server: Any) -> None:
    server.post("/total", content=b"{", headers={"content-type": "application/json"})
    time.sleep(0.1)
    assert 'endpoint="/total",http_response_code="400"' in server.client.get("/metrics").text
