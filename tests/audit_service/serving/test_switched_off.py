"""``AUDIT_ENABLED=0`` and ``enabled: false`` leave the bare service: as without mixin and decorators."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bentoml
import pytest
from prometheus_client import REGISTRY

from audit_service import AuditMixin, audited
from audit_service.engine_service import wanted_configs
from audit_service.serving.middleware import AuditMiddleware
from influence_engine.errors import SettingsError
from tests.audit_service.serving.conftest import served

AUDITED = audited(label="label")


def films(name: str, base: Any = AuditMixin, wrap: Any = AUDITED, **options: Any) -> Any:
    class Films(base, **options):  # type: ignore[misc]
        @bentoml.api
        @wrap
        def judge(self, text: str) -> dict[str, Any]:
            return {"label": "good", "prediction_id": None}

    return bentoml.service(name=name, metrics={"enabled": False}, http={"cors": {"enabled": False}})(Films)


def bare() -> Any:
    return films("films_bare", object, lambda function: function)


def answers_of(service: Any) -> list[tuple[int, Any, set[str]]]:
    """What the service answers to some requests: status, body, names of headers."""
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/judge", {"json": {"text": "fine"}}),
        ("/judge", {"json": {"text": "fine"}, "headers": {"Idempotency-Key": "k"}}),
        ("/judge", {"json": {"text": 5}}),
        ("/judge", {"content": b"{", "headers": {"content-type": "application/json"}}),
        ("/judge", {"content": b'{"text": "a"}', "headers": {"content-type": "application/x-anything"}}),
        ("/judge", {"json": {"text": "a" * 3_000_000}}),
        ("/audit/explain", {"json": {"input": {"text": "fine"}}}),
        ("/audit/drift", {"json": {}}),
        ("/nowhere", {"json": {}}),
    ]
    with served(service) as client:
        found = [client.post(path, **options) for path, options in requests]
        paths = client.get("/docs.json").json()["paths"]
    return [*((one.status_code, one.text, set(one.headers)) for one in found), (200, sorted(paths), set())]


def assert_bare(service: Any, state: Path) -> None:
    threads = set(threading.enumerate())
    assert not any(one.cls is AuditMiddleware for one in service.to_asgi().user_middleware)
    assert set(service.all_services(exclude_urls=True)) == {service.name}, "BentoML would start an engine"
    expected = answers_of(bare())
    assert answers_of(service) == expected
    assert [status for status, _, _ in expected] == [200, 200, 400, 400, 200, 200, 404, 404, 404, 200]
    assert not state.exists()
    assert not {one.name for one in set(threading.enumerate()) - threads} & {"predictions", "jobs", "explained samples"}
    models = {sample.labels.get("model", "") for family in REGISTRY.collect() for sample in family.samples}
    assert not any(model.startswith("switched-off:") for model in models)


@pytest.mark.parametrize("value", ["0", "false", "off", "No"])
def test_the_environment_leaves_the_bare_service_also_where_there_is_no_config(
    value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BENTO_AUDIT_CONFIG", raising=False)
    monkeypatch.setenv("AUDIT_ENABLED", value)

    assert_bare(films(f"films_off_by_{value}", config="switched-off"), tmp_path / "state")
    assert wanted_configs() == {}


def test_the_config_leaves_the_bare_service(write_config: Callable[..., Path]) -> None:
    file = write_config("switched-off", "enabled: false")

    assert_bare(films("films_off_by_config", config="switched-off"), file.parents[1] / "state")
    assert "switched-off" not in wanted_configs()


@pytest.mark.parametrize(("variable", "value"), [("AUDIT_ENABLED", "1"), ("BENTO_AUDIT_ENABLED", "true")])
def test_the_environment_can_switch_on_what_the_config_switches_off(
    write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    write_config("switched-on", "enabled: false")
    monkeypatch.setenv(variable, value)

    with served(films(f"films_on_by_{variable}", config="switched-on")) as client:
        assert client.post("/judge", json={"text": "fine"}).headers["x-prediction-id"]
    assert "switched-on" in wanted_configs()


def test_a_variable_that_is_neither_true_nor_false_ends_the_start(
    write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config()
    monkeypatch.setenv("AUDIT_ENABLED", "maybe")

    with pytest.raises(SettingsError, match=r"AUDIT_ENABLED: found 'maybe'; it should be 1 \(true\) or 0 \(false\)"):
        films("films_maybe", config="films").to_asgi()


def test_it_is_said_once_at_the_start(
    write_config: Callable[..., Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config()
    monkeypatch.setenv("AUDIT_ENABLED", "0")

    with served(films("films_said", config="films")) as client:
        client.post("/judge", json={"text": "fine"})
    (said,) = [record.getMessage() for record in caplog.records if "not audited" in record.getMessage()]
    assert said == "Films is not audited: AUDIT_ENABLED or its config switches that off"


def test_one_of_several_models_can_be_switched_off(write_config: Callable[..., Path]) -> None:
    write_config("films")
    write_config("books", "enabled: false")

    class Shelf(AuditMixin, config="films"):
        @bentoml.api
        @audited(label="label")
        def film(self, text: str) -> dict[str, Any]:
            return {"label": "good"}

        @bentoml.api
        @audited(label="label", config="books")
        def book(self, text: str) -> dict[str, Any]:
            return {"label": "good"}

    service = bentoml.service(name="shelf_half_off", metrics={"enabled": False})(Shelf)
    with served(service) as client:
        assert client.post("/film", json={"text": "fine"}).headers.get("x-prediction-id")
        assert not client.post("/book", json={"text": "fine"}).headers.get("x-prediction-id")
        refused = client.post("/audit/drift", json={"config": "books"})
        assert refused.status_code == 400
        assert refused.json()["error"]["message"] == "the audit by 'books' is switched off (enabled: false)"
        assert client.post("/audit/drift", json={}).status_code == 200
