"""The engine without a server: each question has its answer or its own error."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from audit_service.config import load_config
from audit_service.engine import host as host_module
from audit_service.engine.explaining import explain, parity
from audit_service.engine.host import EngineHost
from audit_service.engine.loading import Loaded, load
from audit_service.errors import EngineTimeoutError, EngineUnavailableError, ServiceError
from audit_service.schemas import EngineItem
from audit_service.workspace import Workspace
from influence_engine.errors import SettingsError


@pytest.fixture(scope="module")
def loaded(small_project: Any) -> Loaded:
    return load(Workspace(small_project.config, device="cpu"))


def item(text: Any = "a dull film", **changes: Any) -> EngineItem:
    return EngineItem(input={"text": text}, **changes)


def test_bad_questions_leave_good_ones_alone(loaded: Loaded) -> None:
    (alone,) = explain(loaded, [item()])
    answers = explain(loaded, [item(""), item(), item(float("nan")), item(target={"label": "sideways"}), item()])
    assert [answer.get("status") for answer in answers] == [400, None, 400, 400, None]
    assert answers[3]["error"]["field"] == "target.label"
    for answer in (answers[1], answers[4]):
        found, expected = answer["explanation"]["examples"], alone["explanation"]["examples"]
        assert [one["example_handle"] for one in found] == [one["example_handle"] for one in expected]


def test_an_explanation_agrees_with_the_attributor(loaded: Loaded, small_project: Any) -> None:
    (answer,) = explain(loaded, [item(top_k=4)])
    (attribution,) = loaded.attributor.attribute([{"text": "a dull film"}], top_k=4)
    explanation = answer["explanation"]
    assert [one["influence"] for one in explanation["examples"]] == pytest.approx(
        [one.influence for one in attribution.examples], rel=1e-5
    )
    assert explanation["differences"]["measurement"] == pytest.approx(attribution.measurement, rel=1e-5)
    assert explanation["model"]["digest"] == small_project.model_digest


def test_what_was_predicted_is_explained_even_where_torch_sees_it_otherwise(loaded: Loaded) -> None:
    (plain,) = explain(loaded, [item()])
    own = plain["explanation"]["prediction"]["label"]
    other = next(label for label in small_labels(loaded) if label != own)
    (answer,) = explain(loaded, [item(recorded={"label": other, "confidence": 0.9})])
    assert answer["explanation"]["differences"]["target"] == other
    assert answer["explanation"]["quality"]["parity"] is False
    (foreign,) = explain(loaded, [item(recorded={"label": "a label of the service's own"})])
    assert foreign["explanation"]["differences"]["target"] == own
    assert foreign["explanation"]["quality"]["parity"] is False


def small_labels(loaded: Loaded) -> list[str]:
    labels: list[str] = loaded.task.labels
    return labels


COMPUTED = {"label": "a", "confidence": 0.7, "scores": {"a": 0.7, "b": 0.3}}


@pytest.mark.parametrize(
    ("recorded", "agrees"),
    [
        (None, None),
        ({"label": None}, None),
        ({"label": "a"}, True),
        ({"label": "b"}, False),
        ({"label": "a", "confidence": 0.7005}, True),
        ({"label": "a", "confidence": 0.702}, False),
        ({"label": "a", "confidence": 0.7, "scores": {"a": 0.7, "b": 0.3}}, True),
        ({"label": "a", "confidence": 0.7, "scores": {"a": 0.6, "b": 0.4}}, False),
        ({"label": "a", "scores": {"c": 0.7}}, False),
        ({"label": "a", "scores": {"b": 0.3, "a": None}}, False),
    ],
)
def test_parity_is_the_same_label_and_the_same_probabilities(recorded: Any, agrees: bool | None) -> None:
    assert parity(recorded, COMPUTED, 1e-3) is agrees


async def until_settled(host: EngineHost, name: str) -> dict[str, Any]:
    end = time.monotonic() + 60
    while host.slot(name).status()["state"] == "loading" and time.monotonic() < end:
        await asyncio.sleep(0.05)
    return host.slot(name).status()


def test_a_host_serves_several_configs_and_one_that_fails_harms_no_other(small_project: Any, tmp_path: Path) -> None:
    shutil.copytree(small_project.root / "configs", tmp_path / "configs")

    def no_config() -> Any:
        raise SettingsError("no such config", field="config")

    async def ask() -> None:
        host = EngineHost(
            {
                "good": lambda: small_project.config,
                "empty": lambda: load_config(tmp_path / "configs" / "sentiment.yaml"),
                "missing": no_config,
            }
        )
        try:
            assert (await until_settled(host, "good"))["state"] == "ready"
            assert "bento-audit finetune" in (await until_settled(host, "empty"))["reason"]
            assert (await until_settled(host, "missing"))["reason"] == "no such config"
            (answer,) = await host.explain("good", [item()], 30)
            assert answer["explanation"]["examples"]
            with pytest.raises(EngineUnavailableError, match="could not load 'empty'"):
                await host.explain("empty", [item()], 30)
            with pytest.raises(ServiceError, match="not 'other'"):
                await host.explain("other", [item()], 30)
            with pytest.raises(EngineTimeoutError):
                await host.explain("good", [item()], 1e-4)
            # The one that came too late does not stop the engine.
            assert await host.explain("good", [item()], 30)
        finally:
            host.close()

    asyncio.run(ask())


def test_a_newer_index_that_cannot_be_loaded_is_loaded_when_it_has_been_mended(
    small_project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "RETRY_S", 0.0)
    monkeypatch.setattr(host_module, "WATCH_S", 0.05)
    shutil.copytree(small_project.root, tmp_path / "project")
    config = load_config(tmp_path / "project" / "configs" / "sentiment.yaml")
    current = config.index_folder / "CURRENT"
    version = config.index_folder / "versions" / current.read_text().strip()
    newer = shutil.copytree(version, version.with_name("newer"))
    whole = (newer / "encoder.safetensors").read_bytes()
    (newer / "encoder.safetensors").write_bytes(whole[:-1])

    async def ask() -> None:
        host = EngineHost({"films": lambda: config})
        try:
            assert (await until_settled(host, "films"))["state"] == "ready"
            first = host.slot("films").loaded
            current.write_text("newer")
            while host.slot("films").reason is None:
                await asyncio.sleep(0.05)
            assert "encoder.safetensors has changed" in host.slot("films").status()["reason"]
            assert (await host.explain("films", [item()], 30))[0]["explanation"]["examples"]
            (newer / "encoder.safetensors").write_bytes(whole)
            while host.slot("films").reason is not None:
                await asyncio.sleep(0.05)
            assert host.slot("films").loaded is not first
        finally:
            host.close()

    asyncio.run(ask())
