"""The middleware guards what is the plugin's or audited, leaves the rest alone, and reads no pickle from outside."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import pytest
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml.exceptions import BentoMLException
from pydantic import BaseModel
from simple_di import sentinel

from audit_service import AuditMixin, audited
from audit_service.bentoml_internals import PICKLED, pickled, private_socket, unpickled
from audit_service.serving.routes import media_type
from influence_engine.errors import InfluenceError
from tests.audit_service.serving.conftest import served

ORIGIN = "https://page.example"
NO_CORS = {"cors": {"enabled": False}}  # said, since BentoML keeps the settings of the service before in the process
CORS = {"cors": {"enabled": True, "access_control_allow_origins": [ORIGIN], "access_control_allow_methods": ["POST"]}}
TOO_LONG = b'{"text": "' + b"a" * 20_000 + b'"}'


class Verdict(BaseModel):
    label: str
    prediction_id: str | None = None


def service_named(name: str, http: Any = NO_CORS) -> Any:
    class Films(AuditMixin, config="films"):
        @bentoml.api
        @audited(label="label")
        def judge(self, text: str) -> Verdict:
            return Verdict(label="bad" if "dull" in text else "good")

        @bentoml.api
        @audited(label="0")
        def pair(self, text: str) -> tuple[str, float]:
            return ("good", 0.5)

        @bentoml.api(batchable=True)
        @audited(label="label", inputs={"text": "texts"})
        def batch(self, texts: list[str]) -> list[Verdict]:
            return [self.judge.local(text) for text in texts]

        @bentoml.api
        @audited(label=lambda text: text)
        async def stream(self, text: str) -> str:
            return text

        @bentoml.api
        def upload(self, file: Path) -> int:
            return file.stat().st_size

        @bentoml.api
        def echo(self, value: dict[str, Any]) -> dict[str, Any]:
            return value

        @bentoml.api
        def twice(self, x: np.ndarray) -> np.ndarray:
            return x * 2

        @bentoml.api
        def refuses(self, text: str) -> str:
            raise BentoMLException("not like this", error_code=HTTPStatus.CONFLICT)

    # BentoML makes its own metrics once a process.
    return bentoml.service(name=name, http=http, metrics={"enabled": False})(Films)


@pytest.fixture
def films(write_config: Callable[..., Path]) -> Any:
    write_config()
    return service_named("films_in_process")


def error_of(answer: Any) -> dict[str, Any]:
    assert set(answer.json()) == {"error"}
    found: dict[str, Any] = answer.json()["error"]
    return found


# Whose limits they are


def test_limits_and_media_types_are_of_audited_methods_and_of_the_plugins_own_endpoints(films: Any) -> None:
    with served(films) as client:
        for path in ("/judge", "/batch", "/audit/explain", "/audit/feedback"):
            long = client.post(path, content=TOO_LONG, headers={"content-type": "application/json"})
            assert (path, long.status_code, error_of(long)["code"]) == (path, 413, "body_too_large")
            xml = client.post(path, content=b"<x/>", headers={"content-type": "application/xml"})
            assert (path, xml.status_code, error_of(xml)["code"]) == (path, 415, "unsupported_media_type")
            broken = client.post(path, content=b'{"text": NaN}', headers={"content-type": "application/json"})
            assert (path, broken.status_code, error_of(broken)["code"]) == (path, 400, "bad_json")


def test_a_services_own_endpoints_read_what_they_read_without_the_plugin(films: Any) -> None:
    with served(films) as client:
        assert client.post("/upload", files={"file": ("two.bin", b"x" * 2_000_000)}).json() == 2_000_000
        for kind in ("application/vnd.api+json", "application/json", "text/plain", "application/x-ndjson"):
            answer = client.post("/echo", content=b'{"value": {"a": 1}}', headers={"content-type": kind})
            assert (kind, answer.json()) == (kind, {"a": 1})
        long = client.post("/echo", content=b'{"value": {"a": "' + b"a" * 100_000 + b'"}}')
        assert len(long.json()["a"]) == 100_000
        assert client.post("/echo", content=b"{").status_code == 400


@pytest.mark.parametrize("kind", ["application/vnd.api+json", "Application/Problem+JSON; charset=utf-8"])
def test_media_types_that_end_in_json_are_json(films: Any, kind: str) -> None:
    with served(films) as client:
        answer = client.post("/judge", content=b'{"text": "dull"}', headers={"content-type": kind})
        assert answer.json()["label"] == "bad"
        assert answer.json()["prediction_id"] == answer.headers["x-prediction-id"]
        broken = client.post("/judge", content=b'{"text": NaN}', headers={"content-type": kind})
        assert error_of(broken)["code"] == "bad_json"


# Pickles


class Bomb:
    def __reduce__(self) -> Any:
        return (os.abort, ())


ODD_SPELLINGS = [
    [("content-type", PICKLED)],
    [("content-type", f"{PICKLED}; charset=x")],
    [("content-type", f" {PICKLED} ")],
    [("content-type", PICKLED), ("content-type", "application/json")],
]


@pytest.mark.parametrize("main", [True, False])
@pytest.mark.parametrize("spelling", ODD_SPELLINGS)
def test_no_endpoint_reads_pickles_from_outside_however_they_are_named(films: Any, main: bool, spelling: Any) -> None:
    headers = [(name.encode(), value.encode("latin-1")) for name, value in spelling]
    with served(films, main=main) as client:
        for path in ("/judge", "/batch", "/echo", "/twice", "/upload", "/audit/explain", "/judge/submit", "/nowhere"):
            answer = client.post(path, content=pickle.dumps(Bomb()), headers=headers)
            assert (path, answer.status_code, error_of(answer)["code"]) == (path, 415, "unsupported_media_type")


def test_a_media_type_is_read_as_bentoml_reads_it() -> None:
    for spelling in (f"\x85{PICKLED}\xa0", f"{PICKLED.upper()};a=b;c", f"\t{PICKLED}\x1f;"):
        assert media_type(spelling.encode("latin-1")) == PICKLED.encode()
    assert media_type(b"") == media_type(b";") == b"application/json"


def test_a_socket_is_private_only_where_bentoml_made_it_for_this_user_alone(films: Any, private: Any) -> None:
    assert private_socket(films) is None
    path = private(films)
    assert private_socket(films) == path
    folder = Path(path).parent
    for mode in (0o750, 0o701, 0o777):
        folder.chmod(mode)
        assert private_socket(films) is None
    folder.chmod(0o700)
    Path(path).unlink()
    assert private_socket(films) is None
    Path(path).write_text("a file")
    assert private_socket(films) is None


def test_a_service_with_a_private_socket_still_reads_no_pickle_that_came_another_way(films: Any, private: Any) -> None:
    path = private(films)
    for other in (None, f"{path}2"):
        with served(films, main=False, socket_path=other) as client:
            answer = client.post("/echo", content=pickle.dumps(Bomb()), headers={"content-type": PICKLED})
            assert answer.status_code == 415


@pytest.fixture
def beside(films: Any, private: Any) -> Iterator[Callable[..., Any]]:
    """Asks as a service beside this one asks: in pickles, through the private socket."""
    path = private(films)
    with served(films, main=False, socket_path=path) as client:

        def ask(route: str, value: Any) -> Any:
            body, headers = pickled(value)
            answer = client.post(route, content=body, headers={**headers, "content-type": PICKLED})
            if answer.status_code >= 400:
                return answer
            return unpickled(answer.content, answer.headers), answer.headers.get("x-prediction-id")

        ask.client = client  # type: ignore[attr-defined]
        yield ask


def test_a_service_beside_this_one_asks_any_method_in_bentomls_own_protocol(beside: Any) -> None:
    value, no_id = beside("/twice", {"x": np.array([1.0, np.nan])})
    assert no_id is None
    np.testing.assert_array_equal(value, [2.0, np.nan])
    long = {"value": {"a": "x" * 100_000, "b": {1, 2}}}
    assert beside("/echo", long)[0] == long["value"]
    refused = beside("/refuses", {"text": "x"})
    assert (refused.status_code, error_of(refused)["message"]) == (409, "not like this")


def test_what_it_asks_of_audited_methods_is_recorded_and_named(beside: Any) -> None:
    value, prediction_id = beside("/judge", {"text": "dull " * 10_000})
    assert value == {"label": "bad", "prediction_id": prediction_id}
    assert prediction_id
    assert beside("/pair", {"text": "x"})[0] == ("good", 0.5)
    values, ids = beside("/batch", {"texts": ["fine", "dull"]})
    assert [one["label"] for one in values] == ["good", "bad"]
    assert [one["prediction_id"] for one in values] == ids.split(",")
    explained = beside("/audit/jobs/get", {"job_id": "none"})
    assert (explained.status_code, error_of(explained)["code"]) == (404, "job_not_found")
    drift, _ = beside("/audit/drift", {})
    assert drift["predictions"] >= 4
    feedback, _ = beside("/audit/feedback", {"items": [{"prediction_id": prediction_id, "label": "good"}]})
    assert feedback["recorded"] == 1


def test_what_cannot_be_unpickled_fails_that_request_only(beside: Any) -> None:
    broken = beside.client.post("/batch", content=b"\x80", headers={"content-type": PICKLED})
    assert broken.status_code == 500
    assert beside("/batch", {"texts": ["fine"]})[0][0]["label"] == "good"


def test_a_measured_explanation_is_asked_of_a_service_as_a_job(beside: Any) -> None:
    answer = beside("/audit/explain", {"input": {"text": "x"}, "tier": "measured"})
    assert (answer.status_code, error_of(answer)["field"]) == (400, "tier")


# Browsers


@pytest.fixture
def page(write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of a service whose owner lets pages of ``ORIGIN`` read its answers."""
    # BentoML makes the options once a process, of its first service.
    monkeypatch.setattr(BentoMLContainer.access_control_options, "_cache", sentinel)
    write_config()
    with served(service_named("films_for_pages", http=CORS)) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/judge", TOO_LONG, {}, 413),
        ("/judge", b"<x/>", {"content-type": "application/xml"}, 415),
        ("/judge", b"{", {}, 400),
        ("/judge", b'{"text": 1}', {}, 400),
        ("/echo", b"", {"content-type": PICKLED}, 415),
        ("/refuses", b'{"text": "x"}', {}, 409),
        ("/nowhere", b"{}", {}, 404),
        ("/audit/explain", b"{}", {}, 400),
        ("/audit/explain", b'{"prediction_id": "none"}', {}, 404),
        ("/audit/explain", b'{"input": {"text": "x"}}', {}, 503),
        ("/judge", b'{"text": "fine"}', {}, 200),
        ("/audit/drift", b"{}", {}, 200),
    ],
)
def test_every_answer_has_the_cors_headers_of_the_service_once(
    page: Any, path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    asked = {"content-type": "application/json", **headers}
    answer = page.post(path, content=body, headers={**asked, "origin": ORIGIN})
    assert answer.status_code == status
    assert answer.headers.get_list("access-control-allow-origin") == [ORIGIN]
    assert answer.headers.get_list("vary") == ["Origin"]
    stranger = page.post(path, content=body, headers={**asked, "origin": "https://stranger.example"})
    assert stranger.status_code == (403 if path.startswith("/audit/") else status)
    assert "access-control-allow-origin" not in stranger.headers


def test_preflights_are_bentomls_affair(page: Any) -> None:
    headers = {"origin": ORIGIN, "access-control-request-method": "POST"}
    for path in ("/judge", "/audit/explain"):
        answer = page.options(path, headers=headers)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, ORIGIN)


def test_a_service_without_cors_gets_none(films: Any) -> None:
    with served(films) as client:
        answer = client.post("/judge", content=b"{", headers={"origin": ORIGIN})
        assert answer.status_code == 400
        assert "access-control-allow-origin" not in answer.headers


# Several services in one process, as `bentoml serve --development` runs them


def test_a_service_that_calls_an_audited_one_within_its_process_gets_what_it_would_get_elsewhere(
    films: Any,
) -> None:
    class Outer:
        inner = bentoml.depends(films)

        @bentoml.api
        async def read(self, text: str) -> dict[str, Any]:
            verdict = await self.inner.to_async.judge(text=text)
            drift = await self.inner.audit_drift({})
            return {"id": verdict.prediction_id, "predictions": drift["predictions"]}

        @bentoml.api
        async def why(self, prediction_id: str) -> str:
            try:
                await self.inner.audit_explain({"prediction_id": prediction_id})
            except InfluenceError as error:
                return error.code
            raise AssertionError

    outer = bentoml.service(name="outer_in_process", http=NO_CORS, metrics={"enabled": False})(Outer)
    with served(outer) as client:
        first, second = (client.post("/read", json={"text": "fine"}) for _ in range(2))
        assert first.json()["id"] != second.json()["id"]
        assert second.json()["predictions"] - first.json()["predictions"] == 1
        assert "x-prediction-id" not in first.headers
        assert client.post("/why", json={"prediction_id": "none"}).text == "prediction_not_found"
        assert client.post("/why", json={"prediction_id": first.json()["id"]}).text == "engine_unavailable"
