"""The sentiment bento over the wire."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audit_service.schemas import ExplainResponse

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def server(start_module_server: Any, small_project: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    state = tmp_path_factory.mktemp("state")
    server = start_module_server(
        "bentos.sentiment.service:Sentiment", env={**small_project.environment, "BENTO_AUDIT_STATE": str(state)}
    )
    server.wait_until_explaining()
    yield server


def test_a_prediction_can_be_explained_by_its_id(server: Any) -> None:
    predicted = server.post("/predict", {"text": "a warm, funny and wise film"})
    assert predicted.status_code == 200, predicted.text
    prediction = predicted.json()
    assert predicted.headers["x-prediction-id"] == prediction["prediction_id"]
    answer = server.post("/audit/explain", {"prediction_id": prediction["prediction_id"], "top_k": 5})
    assert answer.status_code == 200, answer.text
    print(answer.text)
    explanation = ExplainResponse.model_validate(answer.json())
    assert explanation.quality.parity is True
