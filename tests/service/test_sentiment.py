"""The sentiment bento over the wire: what it answers, and what it answers to bad input."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from audit_service.schemas import ExplainResponse

pytestmark = pytest.mark.service

TEXT = "a warm, funny and wise film"
MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module")
def server(sentiment_server: Any) -> Any:
    return sentiment_server


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"}
    assert {"code", "message"} <= set(body["error"]) <= {"code", "message", "field"}
    return body["error"]


def explained(answer: httpx.Response) -> ExplainResponse:
    assert answer.status_code == 200, answer.text
    return ExplainResponse.model_validate(answer.json())


def test_a_prediction_has_its_id_in_body_and_header(server: Any) -> None:
    answer = server.post("/predict", {"text": TEXT})
    prediction = answer.json()
    assert set(prediction) == {"prediction_id", "label", "confidence", "scores"}
    assert answer.headers["x-prediction-id"] == prediction["prediction_id"]
    assert sum(prediction["scores"].values()) == pytest.approx(1)
    assert prediction["confidence"] == max(prediction["scores"].values()) == prediction["scores"][prediction["label"]]


def test_a_prediction_can_be_explained_by_its_id(server: Any, small_project: Any) -> None:
    prediction = server.post("/predict", {"text": TEXT}).json()
    explanation = explained(server.post("/audit/explain", {"prediction_id": prediction["prediction_id"], "top_k": 5}))
    assert explanation.prediction_id == prediction["prediction_id"]
    assert explanation.prediction == {name: prediction[name] for name in ("label", "confidence", "scores")}
    assert explanation.quality.parity is True
    assert explanation.index.rows == len(small_project.train)
    assert explanation.differences.target == prediction["label"]
    assert explanation.examples is not None
    assert [one.rank for one in explanation.examples] == [1, 2, 3, 4, 5]
    texts = {example["text"] for example in small_project.train}
    assert {one.text for one in explanation.examples} <= texts
    assert not {one.example_handle for one in explanation.examples} & {one["example_id"] for one in small_project.train}


def test_a_raw_input_gets_the_same_explanation_as_its_prediction(server: Any) -> None:
    prediction = server.post("/predict", {"text": TEXT}).json()
    by_id = explained(server.post("/audit/explain", {"prediction_id": prediction["prediction_id"]}))
    by_input = explained(server.post("/audit/explain", {"input": {"text": TEXT}}))
    assert by_input.prediction_id is None
    assert by_input.quality.parity is None, "there is nothing on record to agree with"
    assert by_input.examples is not None
    assert by_id.examples is not None
    for one, other in zip(by_input.examples, by_id.examples, strict=True):
        assert one.example_handle == other.example_handle
        assert one.influence == pytest.approx(other.influence, rel=1e-3)


def test_the_other_label_turns_the_influences_around(server: Any) -> None:
    one = explained(server.post("/audit/explain", {"input": {"text": TEXT}, "target": {"label": "positive"}}))
    other = explained(server.post("/audit/explain", {"input": {"text": TEXT}, "target": {"label": "negative"}}))
    assert one.differences.measurement == pytest.approx(-other.differences.measurement, rel=1e-4)
    assert one.examples is not None
    assert other.examples is not None
    assert one.examples[0].example_handle == other.examples[0].example_handle
    assert one.examples[0].influence == pytest.approx(-other.examples[0].influence, rel=1e-3)


def test_polarity_and_include_choose_parts_of_the_answer(server: Any) -> None:
    answer = server.post("/audit/explain", {"input": {"text": TEXT}, "polarity": "opponents", "top_k": 3})
    examples = explained(answer).examples
    assert examples is not None
    assert all(one.influence < 0 and one.polarity == "opponent" for one in examples)
    short = server.post("/audit/explain", {"input": {"text": TEXT}, "include": []}).json()
    assert not {"examples", "groups"} & set(short)
    assert "modules" not in short["differences"]


def test_influence_is_summed_by_the_columns_asked_for(server: Any, small_project: Any) -> None:
    groups = explained(server.post("/audit/explain", {"input": {"text": TEXT}, "group_by": ["label"]})).groups
    assert groups is not None
    assert {(group.by, group.group) for group in groups} == {("label", "negative"), ("label", "positive")}
    assert sum(group.examples for group in groups) == len(small_project.train)
    assert explained(server.post("/audit/explain", {"input": {"text": TEXT}, "group_by": []})).groups == []
    unknown = server.post("/audit/explain", {"input": {"text": TEXT}, "group_by": ["colour"]})
    error = error_of(unknown, 400)
    assert error["field"] == "group_by"
    assert "cannot be grouped by 'colour'; they have label, source" in error["message"]


def test_the_modules_and_the_residual_add_up_to_the_change(server: Any) -> None:
    found = explained(server.post("/audit/explain", {"input": {"text": TEXT}})).differences
    assert found.base_measurement is not None
    assert found.modules is not None
    assert found.modules_residual is not None
    total = sum(module.change for module in found.modules) + found.modules_residual
    assert total == pytest.approx(found.measurement - found.base_measurement, abs=1e-4)
    assert found.base_prediction is not None


BAD_PREDICTIONS = [
    pytest.param({"text": ""}, 400, "text", id="empty"),
    pytest.param({"text": "  \n "}, 400, "text", id="blank"),
    pytest.param({"text": "x " * (MEGABYTE // 2)}, 413, None, id="1 MB"),
    pytest.param({"text": "x" * 6000}, 400, "text", id="longer than max_text_chars"),
    pytest.param({"text": 7}, 400, "text", id="number"),
    pytest.param({"text": None}, 400, "text", id="null"),
    pytest.param({"text": ["a"]}, 400, "text", id="list"),
    pytest.param({}, 400, "text", id="missing"),
    pytest.param({"text": TEXT, "lang": "en"}, 400, "lang", id="unknown field"),
    pytest.param([TEXT], 400, None, id="not an object"),
    pytest.param(TEXT, 400, None, id="a string"),
]


@pytest.mark.parametrize(("body", "status", "field"), BAD_PREDICTIONS)
def test_a_bad_prediction_request_says_what_is_wrong(server: Any, body: Any, status: int, field: str | None) -> None:
    error = error_of(server.post("/predict", body), status)
    assert error.get("field") == field
    assert len(error["message"]) < 500, "a message does not repeat the input"


@pytest.mark.parametrize(
    "text", ["\x00", "a\x00b", "🙂", "naïve – “quoted”", "<script>", "../../etc/passwd", "a" * 4999]
)
def test_odd_texts_are_predicted_and_explained(server: Any, text: str) -> None:
    answer = server.post("/predict", {"text": text})
    assert answer.status_code == 200, answer.text
    explained(server.post("/audit/explain", {"prediction_id": answer.headers["x-prediction-id"]}))


def ask(**changes: Any) -> dict[str, Any]:
    return {"input": {"text": TEXT}, **changes}


BAD_QUESTIONS = [
    pytest.param(ask(top_k=0), 400, "top_k", id="top_k 0"),
    pytest.param(ask(top_k=101), 400, "top_k", id="top_k 101"),
    pytest.param(ask(top_k=-1), 400, "top_k", id="top_k -1"),
    pytest.param(ask(top_k=10**9), 400, "top_k", id="top_k 10^9"),
    pytest.param(ask(top_k="ten"), 400, "top_k", id="top_k ten"),
    pytest.param(ask(top_k=True), 400, "top_k", id="top_k true"),
    pytest.param({"prediction_id": "no-such-id"}, 404, "prediction_id", id="unknown id"),
    pytest.param({"prediction_id": "0" * 10_000}, 400, "prediction_id", id="huge id"),
    pytest.param({"prediction_id": 5}, 400, "prediction_id", id="id a number"),
    pytest.param({}, 400, None, id="neither id nor input"),
    pytest.param(ask(prediction_id="x"), 400, None, id="both"),
    pytest.param(ask(target={"label": "sideways"}), 400, "target.label", id="unknown label"),
    pytest.param(ask(target="sideways"), 400, "target.label", id="unknown label by its name"),
    pytest.param(ask(target=["positive"]), 400, "target", id="target a list"),
    pytest.param(ask(tier="refined"), 422, "tier", id="tier that is not there"),
    pytest.param(ask(tier="guessed"), 400, "tier", id="tier that does not exist"),
    pytest.param(ask(polarity="up"), 400, "polarity", id="polarity"),
    pytest.param(ask(include=["tea"]), 400, "include.0", id="include"),
    pytest.param(ask(colour="red"), 400, "colour", id="unknown field"),
    pytest.param({"input": {"text": ""}}, 400, "input.text", id="empty text"),
    pytest.param({"input": {"text": 7}}, 400, "input.text", id="text a number"),
    pytest.param({"input": {"text": "x" * 6000}}, 400, "input.text", id="long text"),
    pytest.param({"input": {"txt": TEXT}}, 400, "input.txt", id="unknown input field"),
    pytest.param({"input": {}}, 400, "input.text", id="no text"),
    pytest.param({"input": TEXT}, 400, "input", id="input a string"),
    pytest.param({"input": {"text": TEXT, "label": "positive"}}, 400, "input.label", id="label in the input"),
]


@pytest.mark.parametrize(("body", "status", "field"), BAD_QUESTIONS)
def test_a_bad_question_says_what_is_wrong(server: Any, body: Any, status: int, field: str | None) -> None:
    error = error_of(server.post("/audit/explain", body), status)
    assert error.get("field") == field


@pytest.mark.parametrize("path", ["/predict", "/audit/explain", "/audit/explain_batch", "/audit/index"])
@pytest.mark.parametrize("body", ['{"text": ', "{]", '{"text": NaN}', '[{"input": {"text": NaN}}]', "\ufeff{}", "nul"])
def test_what_is_not_json_is_refused_everywhere(server: Any, path: str, body: str) -> None:
    answer = server.post(path, content=body.encode(), headers={"content-type": "application/json"})
    assert error_of(answer, 400)["code"] == "bad_json"


@pytest.mark.parametrize("path", ["/predict", "/audit/explain", "/audit/explain_batch", "/audit/index"])
def test_pickles_are_refused_everywhere(server: Any, path: str) -> None:
    answer = server.post(path, content=b"\x80\x04.", headers={"content-type": "application/vnd.bentoml+pickle"})
    assert error_of(answer, 415)["code"] == "unsupported_media_type"


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_the_audit_reads_json_only(server: Any, content_type: str) -> None:
    body = json.dumps(ask()).encode()
    error_of(server.post("/audit/explain", content=body, headers={"content-type": content_type}), 415)


def test_one_bad_item_in_a_batch_never_harms_its_neighbours(server: Any) -> None:
    prediction = server.post("/predict", {"text": TEXT}).json()
    batch = [
        ask(top_k=3),
        {"input": {"text": ""}},
        {"prediction_id": prediction["prediction_id"], "top_k": 3},
        {"prediction_id": "no-such-id"},
        {"input": {"text": TEXT}, "target": {"label": "sideways"}},
        ask(top_k="ten"),
        {"input": {"text": None}},
        ask(top_k=3),
    ]
    answer = server.post("/audit/explain_batch", batch)
    assert answer.status_code == 200
    found = answer.json()
    codes = [item.get("error", {}).get("code") for item in found]
    assert codes == [
        None,
        "invalid_request",
        None,
        "prediction_not_found",
        "invalid_request",
        "invalid_request",
        "invalid_request",
        None,
    ]
    for place in (0, 2, 7):
        ExplainResponse.model_validate(found[place])
    assert found[0]["examples"] == found[7]["examples"]


@pytest.mark.parametrize("batch", [[], [ask()] * 101, {"input": {"text": TEXT}}, [1], ["x"], [None], None])
def test_a_batch_that_is_none_says_so(server: Any, batch: Any) -> None:
    answer = server.post(
        "/audit/explain_batch", content=json.dumps(batch), headers={"content-type": "application/json"}
    )
    error_of(answer, 400)


def test_explanations_asked_at_once_are_those_asked_in_turn(server: Any, small_project: Any) -> None:
    questions = [{"input": {"text": example["text"]}, "top_k": 5} for example in small_project.test[:12]]
    in_turn = [server.post("/audit/explain", question).json()["examples"] for question in questions]
    with ThreadPoolExecutor(12) as pool:
        at_once = [
            answer.json()["examples"]
            for answer in pool.map(lambda question: server.post("/audit/explain", question), questions)
        ]
    for one, other in zip(in_turn, at_once, strict=True):
        assert {item["example_handle"] for item in one} == {item["example_handle"] for item in other}
        for item, same in zip(one, other, strict=True):
            assert item["influence"] == pytest.approx(same["influence"], rel=1e-3, abs=1e-6)


def test_a_retried_request_is_one_prediction(server: Any) -> None:
    key = {"Idempotency-Key": "retry-1"}
    first = server.post("/predict", {"text": TEXT}, headers=key).json()
    again = server.post("/predict", {"text": TEXT}, headers=key).json()
    assert first == again
    other = server.post("/predict", {"text": "something else"}, headers=key)
    assert error_of(other, 409)["code"] == "idempotency_conflict"
    assert server.post("/predict", {"text": TEXT}).json()["prediction_id"] != first["prediction_id"]


def test_the_index_tells_what_is_loaded(server: Any, small_project: Any) -> None:
    answer = server.post("/audit/index", {}).json()
    assert answer["state"] == "ready"
    assert answer["index"]["rows"] == len(small_project.train)
    assert error_of(server.post("/audit/index", {"colour": "red"}), 400)["field"] == "colour"


def test_metrics_count_predictions_and_explanations(server: Any) -> None:
    server.post("/predict", {"text": TEXT})
    metrics = server.client.get("/metrics").text
    assert 'endpoint="/predict"' in metrics
    assert 'endpoint="/audit/explain"' in metrics


def test_inputs_do_not_reach_the_log(server: Any) -> None:
    server.post("/predict", {"text": "my secret diary entry"})
    server.post("/predict", {"text": ["my secret diary entry"]})
    server.post("/audit/explain", {"input": {"text": "my secret diary entry"}, "top_k": "my secret diary entry"})
    assert "secret diary" not in server.log.read_text()


def test_the_schema_for_clients_names_the_endpoints(server: Any) -> None:
    paths = server.client.get("/docs.json").json()["paths"]
    assert {"/predict", "/audit/explain", "/audit/explain_batch", "/audit/index"} <= set(paths)
