"""The description of an audited service is valid, and says what its endpoints read and answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bentoml
import jsonschema
import numpy as np
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from PIL import Image
from pydantic import BaseModel

from audit_service import AuditMixin, Prediction, TextInput, audited
from audit_service.serving.described_endpoints import ENDPOINTS
from audit_service.serving.openapi import describe
from tests.audit_service.serving.conftest import served

Json = dict[str, Any]


class Line(BaseModel):
    words: list[str] | None = None


class Page(BaseModel):
    lines: list[Line]


@pytest.fixture
def reader(write_config: Callable[..., Path]) -> Any:
    """An audited service whose other methods read and answer what BentoML has types of its own for."""
    write_config()

    @bentoml.service(metrics={"enabled": False})
    class Reader(AuditMixin, config="films"):
        """Reads."""

        @bentoml.api
        @audited(label="label")
        def predict(self, request: TextInput, /) -> Prediction:
            return Prediction(label="good", confidence=1.0, scores={"good": 1.0})

        @bentoml.api
        @audited(inputs={"text": "lines"}, label=str)
        def several(self, lines: list[Page]) -> list[Page]:
            return lines

        @bentoml.api
        def numbers(self, rows: np.ndarray, file: Path, most: int | None = None) -> np.ndarray:
            return rows

        @bentoml.api
        def picture(self, image: Image.Image, /) -> Image.Image:
            return image

        @bentoml.task
        def later(self, count: int) -> int:
            return count

    return Reader


def examples(description: Json) -> Iterator[tuple[str, Json, Any]]:
    for path, item in description["paths"].items():
        for operation in item.values():
            for part in [operation.get("requestBody", {}), *operation["responses"].values()]:
                for content in part.get("content", {}).values():
                    if "example" in content:
                        yield path, content["schema"], content["example"]


def check(description: Json, schema: Json, value: Any) -> None:
    jsonschema.Draft202012Validator({**schema, "components": description["components"]}).validate(value)


def test_the_description_is_valid_whatever_methods_a_service_has(reader: Any) -> None:
    description = describe(reader)

    assert [error.message for error in OpenAPIV31SpecValidator(json.loads(json.dumps(description))).iter_errors()] == []
    assert {*ENDPOINTS, "/predict", "/several", "/numbers", "/picture", "/later", "/later/status", "/livez"} <= set(
        description["paths"]
    )


def test_every_example_is_right_by_its_schema(reader: Any) -> None:
    description = describe(reader)
    shown = list(examples(description))

    assert {path for path, _, _ in shown} >= set(ENDPOINTS)
    for _, schema, example in shown:
        check(description, schema, example)


def test_types_that_only_bentoml_has_are_those_of_json_schema(reader: Any) -> None:
    paths = describe(reader)["paths"]
    form = paths["/numbers"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    picture = paths["/picture"]["post"]["requestBody"]["content"]["image/*"]["schema"]

    assert form["rows"]["type"] == "array"
    assert (form["file"]["type"], form["file"]["contentMediaType"]) == ("string", "application/octet-stream")
    assert {"type": "null"} in form["most"]["anyOf"]
    assert picture["type"] == "string"


def test_audited_methods_say_how_they_name_predictions_and_what_they_refuse(reader: Any) -> None:
    paths = describe(reader)["paths"]
    predict, numbers = paths["/predict"]["post"], paths["/numbers"]["post"]

    assert [one["name"] for one in predict["parameters"]] == ["Idempotency-Key"]
    assert "X-Prediction-Id" in predict["responses"]["200"]["headers"]
    assert {"400", "409", "413", "415", "429", "503", "504"} <= set(predict["responses"])
    assert "parameters" not in numbers
    assert "409" not in numbers["responses"]
    for operation in (operation for item in paths.values() for operation in item.values()):
        for status, answer in operation["responses"].items():
            assert ("Retry-After" in answer.get("headers", {})) is (status in ("429", "503"))


def test_questions_that_the_models_refuse_are_wrong_by_the_schema_too(reader: Any) -> None:
    description = describe(reader)
    explain = description["paths"]["/audit/explain"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    submit = description["paths"]["/audit/jobs/submit"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    feedback = description["paths"]["/audit/feedback"]["post"]["requestBody"]["content"]["application/json"]["schema"]

    check(description, explain, {"prediction_id": "a", "input": None})
    check(description, submit, {"input": {}, "without": {"top_k": 1, "group": None}, "edit": None})
    for schema, value in [
        (explain, {}),
        (explain, {"prediction_id": "a", "input": {}}),
        (explain, {"prediction_id": "a", "target": {}}),
        (explain, {"prediction_id": "a" * 129}),
        (submit, {"prediction_id": "a"}),
        (submit, {"prediction_id": "a", "without": {}}),
        (submit, {"prediction_id": "a", "without": {"top_k": 1, "examples": ["x"]}}),
        (feedback, {"items": [{"prediction_id": "a"}]}),
        (feedback, {"items": []}),
    ]:
        with pytest.raises(jsonschema.ValidationError):
            check(description, schema, value)


def test_the_service_serves_it_in_place_of_bentomls(reader: Any) -> None:
    with served(reader) as client:
        answer = client.get("/docs.json")

        assert answer.json() == json.loads(json.dumps(describe(reader)))
        assert answer.json()["openapi"] == "3.1.0"
        assert client.get("/schema.json").status_code == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz", "/docs.json", "/schema.json"])
def test_errors_of_the_servers_own_paths_have_the_one_shape(reader: Any, path: str) -> None:
    with served(reader) as client:
        refused = client.post(path, json={})

        assert refused.status_code == 405
        assert refused.json()["error"]["code"] == "method_not_allowed"
        assert "GET" in refused.headers["allow"]
        assert client.get(path).status_code == 200
