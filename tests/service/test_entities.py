"""The entities bento over the wire: one prediction has several entities, and each has its reasons."""

from __future__ import annotations

from typing import Any

import pytest

from audit_service.schemas import ExplainResponse
from tests.entities import EntitiesProject

pytestmark = pytest.mark.service

TEXT = "flights from boston to atlanta on tuesday"


@pytest.fixture(scope="module")
def server(
    start_module_server: Any, entities_project: EntitiesProject, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    state = tmp_path_factory.mktemp("state")
    server = start_module_server(
        "bentos.entities.service:Entities", env={**entities_project.environment, "BENTO_AUDIT_STATE": str(state)}
    )
    server.wait_until_explaining()
    return server


def counted(server: Any, name: str) -> dict[str, float]:
    lines = [line for line in server.metrics().splitlines() if line.startswith(f"{name}{{")]
    return {line.partition('label="')[2].partition('"')[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_a_prediction_of_several_entities_is_one_prediction(server: Any) -> None:
    before = counted(server, "audit_predictions_total")
    answer = server.post("/predict", {"text": TEXT})
    prediction = answer.json()
    assert answer.headers["x-prediction-id"] == prediction["prediction_id"]
    assert len(prediction["entities"]) > 1
    for one in prediction["entities"]:
        assert TEXT[one["start"] : one["end"]] == one["text"]
        assert 0 < one["confidence"] <= 1
    grown = {name: value - before[name] for name, value in counted(server, "audit_predictions_total").items()}
    assert sum(grown.values()) == pytest.approx(1)
    types = [one["label"] for one in prediction["entities"]]
    for one in types:
        assert grown[one] == pytest.approx(types.count(one) / len(types))


def test_a_prediction_is_explained_by_its_id_with_the_mentions_that_taught_it(server: Any) -> None:
    prediction = server.post("/predict", {"text": TEXT}).json()
    start = TEXT.index("boston")
    target = {"span": [start, start + 6], "label": "origin"}
    question = {"prediction_id": prediction["prediction_id"], "target": target, "include": ["examples", "parts"]}
    answer = server.post("/audit/explain", {**question, "top_k": 3})
    assert answer.status_code == 200, answer.text
    explanation = ExplainResponse.model_validate(answer.json())
    assert explanation.quality.parity is True
    assert explanation.differences.target == target
    assert explanation.prediction is not None
    assert [one["text"] for one in explanation.prediction["entities"]] == [
        one["text"] for one in prediction["entities"]
    ]
    assert explanation.quality.parts is not None
    assert explanation.examples is not None
    for one in explanation.examples:
        assert one.parts is not None
        assert one.text is not None
        assert all(one.text[part.start : part.end] for part in one.parts if part.start is not None)
    plain = server.post("/audit/explain", {"prediction_id": prediction["prediction_id"]}).json()
    assert "parts" not in plain["examples"][0]


def test_a_text_without_entities_is_a_prediction_too(server: Any) -> None:
    before = counted(server, "audit_predictions_total")["none"]
    said = ["thank you", "hello", "how are you", "what does it mean", "i need help with it", "is it"]
    prediction = next(
        one for one in (server.post("/predict", {"text": text}).json() for text in said) if not one["entities"]
    )
    assert counted(server, "audit_predictions_total")["none"] == before + 1
    answer = server.post("/audit/explain", {"prediction_id": prediction["prediction_id"]}).json()
    assert answer["differences"]["target"]["label"] == "O"
    assert answer["quality"]["parity"] is True


def test_true_types_are_counted_one_by_one(server: Any) -> None:
    prediction = server.post("/predict", {"text": TEXT}).json()
    types = sorted({one["label"] for one in prediction["entities"]})
    missed = next(one for one in ("airline", "other", "stopover") if one not in types)
    items = [{"prediction_id": prediction["prediction_id"], "label": [*types, missed]}]
    assert server.post("/audit/feedback", {"items": items}).json()["recorded"] == 1
    right = {line for line in server.metrics().splitlines() if 'outcome="right"' in line and line.endswith(" 1.0")}
    wrong = {line for line in server.metrics().splitlines() if 'outcome="wrong"' in line and line.endswith(" 1.0")}
    assert all(any(f'label="{one}"' in line for line in right) for one in types)
    assert any(f'label="{missed}"' in line for line in wrong)
    for label in ("origin", ["person"], [1]):
        answer = server.post("/audit/feedback", {"items": [{**items[0], "label": label}]}).json()
        assert answer["items"][0]["error"]["field"].startswith("label")


def test_what_cannot_be_explained_is_refused_where_it_was_said(server: Any) -> None:
    for target, field in [
        ({"span": [0, 900], "label": "origin"}, "target"),
        ({"span": [0, 7], "label": "person"}, "target"),
        ({"label": "origin"}, "target.label"),
    ]:
        answer = server.post("/audit/explain", {"input": {"text": TEXT}, "target": target})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["field"] == field
