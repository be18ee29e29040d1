"""One service, several audited models: each has its config, record, metrics and jobs, and requests find theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bentoml
import pytest
from prometheus_client import REGISTRY

from audit_service import AuditMixin, audited
from audit_service.config import load_config
from audit_service.engine_service import wanted_configs
from audit_service.store.outcomes import OutcomeStore
from audit_service.store.predictions import PredictionStore
from influence_engine.errors import SettingsError
from tests.audit_service.serving.conftest import served


def shelf(name: str, own: str | None = "films", films: str | None = None, books: str | None = "books") -> Any:
    class Shelf(AuditMixin, config=own):
        @bentoml.api
        @audited(label="label", confidence="confidence", config=films)
        def film(self, text: str) -> dict[str, Any]:
            return {"label": "good", "confidence": 0.9}

        @bentoml.api(batchable=True)
        @audited(label="label", config=books, inputs={"text": "texts"})
        def book(self, texts: list[str]) -> list[dict[str, Any]]:
            return [{"label": "long"} for _ in texts]

    return bentoml.service(name=name, metrics={"enabled": False}, http={"cors": {"enabled": False}})(Shelf)


@pytest.fixture
def configs(write_config: Callable[..., Path]) -> dict[str, Path]:
    """``films`` with small bodies, ``books`` with other labels and larger ones."""
    return {
        "films": write_config("films"),
        "books": write_config("books", "profile: b\nprofiles: {b: {task: {labels: [long, short]}}}"),
    }


@pytest.fixture
def client(configs: dict[str, Path]) -> Iterator[Any]:
    with served(shelf("shelf")) as client:
        yield client


def counted(model: str) -> float:
    return sum(
        sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == "audit_predictions_total" and sample.labels["model"].startswith(f"{model}:")
    )


def test_each_prediction_goes_on_the_record_and_into_the_metrics_of_its_own_model(configs: dict[str, Path]) -> None:
    before = {model: counted(model) for model in configs}
    with served(shelf("shelf_recording")) as client:
        film = client.post("/film", json={"text": "fine"}).headers["x-prediction-id"]
        first, second = client.post("/book", json={"texts": ["a", "b"]}).headers["x-prediction-id"].split(",")
    for name, ids in {"films": [film], "books": [first, second]}.items():
        store = PredictionStore(load_config(configs[name]).state_folder)
        assert sorted(one.prediction_id for one in store.since(0.0)) == sorted(ids)
        assert counted(name) - before[name] == len(ids)


def test_true_labels_find_the_model_that_predicted(client: Any, configs: dict[str, Path]) -> None:
    film = client.post("/film", json={"text": "fine"}).headers["x-prediction-id"]
    book = client.post("/book", json={"texts": ["a"]}).headers["x-prediction-id"]
    items = [
        {"prediction_id": book, "label": "short"},
        {"prediction_id": film, "label": "bad"},
        {"prediction_id": film, "label": "short"},
        {"prediction_id": "nobody's", "label": "bad"},
        {"label": "bad"},
    ]
    answer = client.post("/audit/feedback", json={"items": items}).json()
    assert (answer["recorded"], answer["refused"]) == (2, 3)
    assert [one.get("fate") for one in answer["items"]] == ["recorded", "recorded", None, None, None]
    assert "the labels are 'bad', 'good'" in answer["items"][2]["error"]["message"]
    judged = {name: OutcomeStore(load_config(file).state_folder).judged() for name, file in configs.items()}
    assert {name: [one["label"] for one in found] for name, found in judged.items()} == {
        "films": ["bad"],
        "books": ["short"],
    }


def test_a_question_is_about_the_model_that_it_names_or_that_predicted_or_the_services_own(client: Any) -> None:
    def model(**question: Any) -> Any:
        answer = client.post("/audit/drift", json=question)
        return answer.json().get("model", "").partition(":")[0] or answer.json()["error"]

    assert model() == model(config="films") == "films"
    assert model(config="books") == "books"
    unknown = model(config="boks")
    assert (unknown["code"], unknown["field"]) == ("invalid_request", "config")
    assert unknown["message"] == "this service is not audited by 'boks'; there is 'films', 'books'"

    book = client.post("/book", json={"texts": ["a"]}).headers["x-prediction-id"]
    explained = client.post("/audit/explain", json={"prediction_id": book})
    assert (explained.status_code, explained.json()["error"]["code"]) == (503, "engine_unavailable")
    elsewhere = client.post("/audit/explain", json={"prediction_id": book, "config": "films"})
    assert (elsewhere.status_code, elsewhere.json()["error"]["code"]) == (404, "prediction_not_found")
    missing = client.post("/audit/explain", json={"prediction_id": "nobody's"})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "prediction_not_found")
    mixed = client.post("/audit/explain_batch", json=[{"prediction_id": "nobody's"}, {"input": {}, "config": "boks"}])
    assert [one["error"]["code"] for one in mixed.json()] == ["prediction_not_found", "invalid_request"]
    nothing = client.post("/audit/jobs/get", json={"job_id": "none"})
    assert (nothing.status_code, nothing.json()["error"]["code"]) == (404, "job_not_found")


def test_an_engine_beside_them_holds_every_models_config(configs: dict[str, Path]) -> None:
    shelf("shelf_held")

    assert {"films", "books"} <= set(wanted_configs())


def test_where_every_method_names_its_config_the_service_needs_none_of_its_own(configs: dict[str, Path]) -> None:
    service = shelf("shelf_without_own", own=None, films="films")
    with served(service) as client:
        assert client.post("/film", json={"text": "fine"}).headers["x-prediction-id"]
        answer = client.post("/audit/drift", json={})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == (
            "this service is audited for several models; say which in config: 'books', 'films'"
        )
    instance = service.inner()
    assert set(instance.audits) == {"films", "books"}
    with pytest.raises(SettingsError, match=r"no config of its own.*self\.audits\['NAME'\]"):
        _ = instance.audit


def test_models_that_would_share_a_folder_or_ask_two_engines_end_the_start(
    write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_config("films")
    write_config("books")
    service = shelf("shelf_sharing")
    monkeypatch.setenv("BENTO_AUDIT_STATE", str(tmp_path / "one"))
    with pytest.raises(SettingsError, match=r"'films' and 'books' would both keep their predictions in .*/one: "):
        _ = service.dependencies["audit_engine"].url
    monkeypatch.setenv("BENTO_AUDIT_STATE", str(tmp_path / "{name}"))
    assert service.dependencies["audit_engine"].url == "http://127.0.0.1:9"
    write_config("books").write_text(
        (tmp_path / "configs" / "books.yaml").read_text().replace("127.0.0.1:9", "127.0.0.1:8")
    )
    with pytest.raises(
        SettingsError, match=r"share an engine, and serve.engine_url differs: 'films' http://127.0.0.1:9 and"
    ):
        _ = service.dependencies["audit_engine"].url


def test_a_limit_is_that_of_the_methods_model_and_of_the_largest_for_the_plugins_own(
    write_config: Callable[..., Path],
) -> None:
    write_config("films")
    write_config("books").write_text(
        write_config("films").read_text().replace("max_body_bytes: 10000", "max_body_bytes: 20000")
    )
    long = "a" * 15_000
    with served(shelf("shelf_limits")) as client:
        assert client.post("/film", json={"text": long}).status_code == 413
        assert client.post("/book", json={"texts": [long]}).status_code == 200
        assert client.post("/audit/explain", json={"input": {"text": long}}).status_code == 503


def test_the_inputs_of_a_method_are_those_of_its_own_task(write_config: Callable[..., Path]) -> None:
    write_config("films")
    write_config("books", "profile: b\nprofiles: {b: {task: {text: pages}}}")
    with pytest.raises(TypeError, match=r"the task's field 'pages' is no argument of .*book"):
        _ = shelf("shelf_inputs").dependencies["audit_engine"].url


def test_the_environment_names_the_files_of_all_of_them(configs: dict[str, Path]) -> None:
    instance = shelf("shelf_listed").inner()
    assert {name: audit.config.file for name, audit in instance.audits.items()} == configs
