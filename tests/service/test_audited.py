"""``@audited`` on a service that knew nothing of it: every kind of method, no change in what it answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.service

APPS = Path(__file__).parent / "apps"
DULL, FINE = "a dull and boring film", "a wise and funny film"

DECORATORS = {
    "plain": '@audited(label="answer.sentiment")',
    "nested": '@audited(label="sentiment", confidence="probability", inputs={"text": "review.body"})',
    "flat": '@audited(label="sentiment", inputs={"text": "review.body"})',
    "with_context": '@audited(label="sentiment")',
    "listed": '@audited(label="sentiment", inputs={"text": "reviews.body"})',
    "batched": '@audited(label="sentiment", inputs={"text": "texts"})',
    "batched_named": '@audited(label="sentiment", inputs={"text": "reviews.body"})',
    "silent": '@audited(label="nothing")',
    "streamed": '@audited(label="sentiment", confidence="probability")',
    "streamed_sync": '@audited(label=lambda chunks: "".join(chunks))',
}


def with_audit(source: str) -> str:
    """What a user does: one import, one base class, one decorator a method."""
    source = source.replace("import bentoml\n", "import bentoml\nfrom audit_service import AuditMixin, audited\n", 1)
    source = source.replace("class Reviews:", 'class Reviews(AuditMixin, config="sentiment"):')
    for method, decorator in DECORATORS.items():
        source, count = re.subn(rf"(\n    (?:async )?def {method}\()", rf"\n    {decorator}\1", source)
        assert count == 1
    return source


@pytest.fixture(scope="module")
def plain_server(start_module_server: Any) -> Any:
    return start_module_server("reviews_app:Reviews")


@pytest.fixture(scope="module")
def server(start_module_server: Any, small_project: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("audited")
    (folder / "audited_reviews.py").write_text(with_audit((APPS / "reviews_app.py").read_text()))
    server = start_module_server(
        "audited_reviews:Reviews",
        cwd=folder,
        env={**small_project.environment, "BENTO_AUDIT_STATE": str(folder / "state")},
    )
    server.wait_until_explaining()
    return server


CALLS = [
    ("plain", {"text": DULL}),
    ("plain", {"text": FINE, "shout": True}),
    ("nested", {"review": {"body": DULL, "stars": 1}}),
    ("flat", {"body": DULL}),
    ("with_context", {"text": FINE}),
    ("listed", {"reviews": [{"body": DULL}, {"body": FINE, "stars": 5}]}),
    ("listed", {"reviews": []}),
    ("batched", {"texts": [DULL, FINE]}),
    ("batched_named", {"reviews": [{"body": FINE}]}),
    ("streamed", {"text": DULL}),
    ("streamed_sync", {"text": FINE}),
]


def ids_of(answer: httpx.Response) -> list[str]:
    return [part for part in answer.headers.get("x-prediction-id", "").split(",") if part]


def texts_of(body: dict[str, Any]) -> list[str]:
    for value in body.values():
        if isinstance(value, str):
            return [value]
        if isinstance(value, dict):
            return [value["body"]]
        if isinstance(value, list):
            return [item["body"] if isinstance(item, dict) else item for item in value]
    raise AssertionError(body)


@pytest.mark.parametrize(("method", "body"), CALLS)
def test_the_answer_stays_what_it_was(server: Any, plain_server: Any, method: str, body: Any) -> None:
    before, after = plain_server.post(f"/{method}", body), server.post(f"/{method}", body)
    assert before.status_code == after.status_code
    assert before.headers["content-type"] == after.headers["content-type"]
    assert before.headers.get("x-own") == after.headers.get("x-own")
    if method in ("flat", "batched_named"):  # their schema has the field prediction_id
        items = after.json() if isinstance(after.json(), list) else [after.json()]
        assert [item["prediction_id"] for item in items] == ids_of(after)
        expected = before.json() if isinstance(before.json(), list) else [before.json()]
        assert [{**item, "prediction_id": None} for item in items] == expected
    else:
        assert before.content == after.content


def test_what_a_method_takes_and_answers_is_described_as_before(server: Any, plain_server: Any) -> None:
    before, after = plain_server.client.get("/docs.json").json(), server.client.get("/docs.json").json()
    assert before["paths"].keys() <= after["paths"].keys()
    for method in {method for method, _ in CALLS}:
        old, new = (described["paths"][f"/{method}"]["post"] for described in (before, after))
        for part in (lambda one: one["requestBody"], lambda one: one["responses"]["200"]):
            assert part(old)["content"].keys() == part(new)["content"].keys()
            for kind, content in part(old)["content"].items():
                wanted, found = names_in(before, content), names_in(after, part(new)["content"][kind])
                assert (method, wanted) == (method, found)


def names_in(described: Any, content: Any) -> list[str]:
    schema = content["schema"]
    if "$ref" in schema:
        schema = described["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return sorted(schema.get("properties", {}))


@pytest.mark.parametrize(("method", "body"), CALLS)
def test_every_prediction_can_be_explained_by_its_id(server: Any, method: str, body: Any) -> None:
    answer = server.post(f"/{method}", body)
    texts = texts_of(body)
    assert len(ids_of(answer)) == len(texts)
    for prediction_id, text in zip(ids_of(answer), texts, strict=True):
        explanation = server.post("/audit/explain", {"prediction_id": prediction_id, "top_k": 3})
        assert explanation.status_code == 200, explanation.text
        label = "negative" if text == DULL else "positive"
        wanted = {"input": {"text": text}, "target": {"label": label}, "top_k": 3}
        if body.get("shout"):
            del wanted["target"]  # POSITIVE is no label of the task: the model's own prediction is explained
        assert explanation.json()["examples"] == server.post("/audit/explain", wanted).json()["examples"]
        recorded = explanation.json()["prediction"]["label"]
        assert recorded == (label.upper() if body.get("shout") else label)


def test_requests_merged_into_one_batch_keep_their_own_ids(server: Any) -> None:
    bodies = [{"texts": [f"{DULL if n % 2 else FINE} number {n}"] * (1 + n % 3)} for n in range(12)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda body: server.post("/batched", body), bodies))
    ids = [ids_of(answer) for answer in answers]
    assert [len(found) for found in ids] == [len(body["texts"]) for body in bodies]
    assert len({one for found in ids for one in found}) == sum(map(len, ids))
    for found, body in zip(ids, bodies, strict=True):
        explanation = server.post("/audit/explain", {"prediction_id": found[-1], "top_k": 3}).json()
        label = explanation["prediction"]["label"]
        assert label == ("negative" if "dull" in body["texts"][0] else "positive")
        wanted = {"input": {"text": body["texts"][0]}, "target": {"label": label}, "top_k": 3}
        assert explanation["examples"] == server.post("/audit/explain", wanted).json()["examples"]


@pytest.mark.parametrize(
    ("method", "body", "other"),
    [
        ("plain", {"text": FINE}, {"text": DULL}),
        ("flat", {"body": FINE}, {"body": DULL}),
        ("listed", {"reviews": [{"body": FINE}] * 2}, {"reviews": [{"body": DULL}] * 2}),
        ("batched", {"texts": [FINE, DULL]}, {"texts": [DULL, FINE]}),
        ("streamed", {"text": FINE}, {"text": DULL}),
        ("streamed_sync", {"text": FINE}, {"text": DULL}),
    ],
)
def test_an_idempotency_key_works_for_every_kind_of_method(server: Any, method: str, body: Any, other: Any) -> None:
    key = {"Idempotency-Key": f"key of {method}"}
    first = server.post(f"/{method}", body, headers=key)
    again = server.post(f"/{method}", body, headers=key)
    assert first.status_code == again.status_code == 200
    assert ids_of(first) == ids_of(again) != []
    assert len(set(ids_of(first))) == len(texts_of(body))
    conflict = server.post(f"/{method}", other, headers=key)
    assert conflict.status_code == 409, conflict.text
    assert conflict.json()["error"]["code"] == "idempotency_conflict"
    assert conflict.json()["error"]["field"] == "Idempotency-Key"


@pytest.mark.parametrize("method", ["plain", "with_context", "streamed", "streamed_sync"])
def test_an_error_of_the_service_is_no_prediction(server: Any, method: str) -> None:
    answer = server.post(f"/{method}", {"text": "fail"})
    assert answer.status_code in (200, 500)  # a stream may have begun
    assert answer.status_code == 500 or method == "streamed"
    if answer.status_code == 500:
        assert answer.json()["error"]["code"] == "internal_error"
        assert not ids_of(answer)


def test_what_cannot_be_recorded_is_answered_and_counted(server: Any) -> None:
    answer = server.post("/silent", {"text": FINE})
    assert (answer.status_code, answer.json()) == (200, {})
    assert not ids_of(answer)
    dropped = r'audit_records_dropped_total\{model="sentiment:\w+",reason="not_recordable"\} 1.0'
    assert re.search(dropped, server.client.get("/metrics").text)


def test_a_service_whose_inputs_cannot_be_found_does_not_start(
    start_server: Any, small_project: Any, tmp_path: Path
) -> None:
    source = with_audit((APPS / "reviews_app.py").read_text())
    source = source.replace(', inputs={"text": "texts"}', "")
    (tmp_path / "lost_inputs.py").write_text(source)
    with pytest.raises(AssertionError, match=r"the task's field 'text' is no argument of Reviews\.batched"):
        start_server("lost_inputs:Reviews", cwd=tmp_path, env=small_project.environment)
