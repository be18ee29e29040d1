"""What BentoML promises nothing about stands in one module."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import pytest

from audit_service import bentoml_internals

PACKAGE = Path(bentoml_internals.__file__).parent
PRIVATE_PACKAGES = ("_bentoml_sdk", "_bentoml_impl", "bentoml._internal")


def private_names(source: str) -> Iterator[str]:
    """Private modules of BentoML that a source names, in imports or texts, and private attributes of ``bentoml``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            named = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = node.value.split()
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "bentoml":
            named = [f"bentoml.{node.attr}"]
        else:
            continue
        yield from (name for name in named if name.startswith(PRIVATE_PACKAGES) or name.startswith("bentoml._"))


def test_no_other_module_names_what_is_private_in_bentoml() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix(): sorted(set(private_names(path.read_text(encoding="utf-8"))))
        for path in PACKAGE.rglob("*.py")
        if path.name != "bentoml_internals.py"
    }

    assert {name: names for name, names in found.items() if names} == {}


def test_the_look_finds_what_the_one_module_uses() -> None:
    assert set(private_names(Path(bentoml_internals.__file__).read_text(encoding="utf-8"))) >= {
        "_bentoml_impl.serde.PickleSerde",
        "_bentoml_sdk.Service",
        "_bentoml_sdk.method.APIMethod",
        "bentoml._internal.configuration.containers.BentoMLContainer",
        "bentoml._internal.server.http_app",
    }


def test_the_dependency_that_is_overridden_is_what_depends_returns() -> None:
    @bentoml.service
    class Inner: ...

    assert isinstance(bentoml.depends(Inner), bentoml_internals.ServiceDependency)


def test_the_home_is_what_the_environment_says() -> None:
    assert bentoml_internals.home() == Path(os.environ["BENTOML_HOME"])


def test_functions_below_the_api_decorator_are_found_inherited_ones_included() -> None:
    class Base:
        @bentoml.api
        def predict(self, text: str) -> str:
            return text

        def other(self) -> None: ...

    class Derived(Base):
        @bentoml.api
        def classify(self, text: str) -> str:
            return text

    assert sorted(function.__name__ for function in bentoml_internals.api_functions(Derived)) == ["classify", "predict"]


def test_what_is_pickled_is_what_bentomls_client_sends_arrays_behind_it() -> None:
    value = {"x": np.arange(6.0).reshape(2, 3), "text": "a", "odd": {1, 2}}

    body, headers = bentoml_internals.pickled(value)
    again = bentoml_internals.unpickled(body, headers)

    assert set(headers) == {"buffer-lengths"}
    assert len(headers["buffer-lengths"].split(",")) == 2
    np.testing.assert_array_equal(again["x"], value["x"])
    assert (again["text"], again["odd"]) == ("a", {1, 2})
    assert bentoml_internals.PICKLED == "application/vnd.bentoml+pickle"


@bentoml.service(name="asked_in_json")
class AskedInJson:
    @bentoml.api
    def predict(self, text: str) -> str:
        return text


@pytest.mark.parametrize(
    ("address", "media_type"),
    [
        ("file:///tmp/some.sock", bentoml_internals.PICKLED),
        ("tcp://127.0.0.1:9", "application/json"),
        ("http://elsewhere:9", "application/json"),
    ],
)
def test_a_dependency_is_asked_in_json_unless_it_is_on_a_unix_socket(address: str, media_type: str) -> None:
    mapping = bentoml_internals.BentoMLContainer.remote_runner_mapping
    before = mapping.get()
    AskedInJson.inject_config()
    bentoml_internals.ask_in_json(is_asked_in_json)
    bentoml_internals.ask_in_json(is_asked_in_json)
    mapping.set({"asked_in_json": address})
    try:
        assert bentoml.depends(AskedInJson).get().to_async.media_type == media_type
    finally:
        mapping.set(before)


def is_asked_in_json(service: Any) -> bool:
    return service is AskedInJson


def test_a_change_is_made_once_to_every_app_however_often_it_is_asked_for() -> None:
    made: list[str] = []

    def change(service: object, app: object) -> None:
        made.append(service.name)  # type: ignore[attr-defined]

    @bentoml.service
    class Changed:
        @bentoml.api
        def predict(self, text: str) -> str:
            return text

    bentoml_internals.when_an_app_is_made(change, instead="nothing")
    bentoml_internals.when_an_app_is_made(change, instead="nothing")
    Changed.to_asgi(is_main=True)

    assert made == ["Changed"]


@pytest.mark.parametrize("name", sorted(bentoml_internals.OBSERVERS - {"OpenTelemetryMiddleware"}))
def test_the_middlewares_that_only_look_exist_under_these_names(name: str) -> None:
    files = (Path(bentoml.__file__).parent / "_internal").rglob("*.py")

    assert any(f"class {name}" in file.read_text(encoding="utf-8") for file in files)
