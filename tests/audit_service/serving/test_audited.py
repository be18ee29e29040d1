"""``@audited`` without a server: what it refuses when a class is defined, and what it leaves as it was."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import AsyncGenerator, Generator
from typing import Any, NamedTuple, TypedDict

import bentoml
import pytest
from bentoml.exceptions import BentoMLException
from pydantic import BaseModel

from audit_service import AuditMixin, audited
from audit_service.serving.audit import projected
from audit_service.serving.audited_method import AuditedMethod
from audit_service.serving.method_fields import argument_names, dig, fields_of, find_inputs
from audit_service.serving.request_context import RequestContext, current_request
from influence_engine.errors import InputError


class Review(BaseModel):
    text: str
    stars: int = 0


class Verdict(BaseModel):
    sentiment: str
    probability: float


@dataclasses.dataclass
class Point:
    text: str


class Typed(TypedDict):
    text: str


class Recorded:
    """Stands where a service stands; keeps what would go on record."""

    input_fields = ("text",)
    listed_fields: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.records: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        self.asked: list[str | None] = []

    def audit_of(self, config: str | None) -> Recorded | None:
        self.asked.append(config)
        return None if config == "off" else self

    def record(self, prediction_id: str, example: Any, outputs: Any, *, repeated: bool = False) -> None:
        self.records.append((prediction_id, dict(example), dict(outputs)))


def service_with(method: Any, **options: Any) -> type:
    return type("Service", (AuditMixin,), {"method": bentoml.api(audited(**options)(method))}, config="sentiment")


def test_a_name_that_the_return_type_does_not_have_is_refused_at_the_definition() -> None:
    def method(self: Any, text: str) -> Verdict:
        raise AssertionError

    with pytest.raises(TypeError, match=r"@audited\(label='sentimant'\).*did you mean 'sentiment'"):
        service_with(method, label="sentimant")
    with pytest.raises(TypeError, match=r"confidence='score'.*its fields are sentiment, probability"):
        service_with(method, label="sentiment", confidence="score")
    service_with(method, label="sentiment", confidence="probability")


def test_a_label_that_was_left_open_is_refused_with_the_fields_that_there_are() -> None:
    def method(self: Any, text: str) -> Verdict:
        raise AssertionError

    def plain(self: Any, text: str) -> dict[str, Any]:
        raise AssertionError

    with pytest.raises(TypeError, match=r"label='\?'.*holds the label; its fields are sentiment, probability"):
        service_with(method, label="?")
    with pytest.raises(TypeError, match=r"label='\?'.*holds the label$"):
        service_with(plain, label="?")


def test_the_decorator_above_that_of_bentoml_is_refused_with_the_right_order() -> None:
    def classify(self: Any, text: str) -> Verdict:
        raise AssertionError

    with pytest.raises(TypeError, match=r"@audited goes below @bentoml.api.* at classify it is above"):
        audited(label="sentiment")(bentoml.api(classify))


def test_an_input_that_does_not_exist_is_refused_at_the_definition() -> None:
    def method(self: Any, review: Review) -> Verdict:
        raise AssertionError

    with pytest.raises(TypeError, match="no argument 'revue', its arguments are review"):
        service_with(method, label="sentiment", inputs={"text": "revue.text"})
    with pytest.raises(TypeError, match="'review' has no field 'body', its fields are text, stars"):
        service_with(method, label="sentiment", inputs={"text": "review.body"})


def test_the_wrapper_is_of_the_methods_kind_and_keeps_its_signature() -> None:
    def sync(self: Any, text: str, times: int = 2) -> str: ...
    async def coroutine(self: Any, review: Review, /) -> Verdict: ...
    def generator(self: Any, text: str) -> Generator[str, None, None]:
        yield text

    async def async_generator(self: Any, text: str) -> AsyncGenerator[str, None]:
        yield text

    for method, kind in (
        (sync, lambda f: not inspect.iscoroutinefunction(f) and not inspect.isgeneratorfunction(f)),
        (coroutine, inspect.iscoroutinefunction),
        (generator, inspect.isgeneratorfunction),
        (async_generator, inspect.isasyncgenfunction),
    ):
        wrapped = audited()(method)
        assert kind(wrapped)
        assert inspect.signature(wrapped) == inspect.signature(method)
        assert (wrapped.__name__, wrapped.__module__) == (method.__name__, method.__module__)


def test_inputs_are_found_by_name_among_arguments_and_their_fields() -> None:
    def plain(self: Any, text: str, ctx: bentoml.Context) -> str: ...
    def model(self: Any, review: Review, /) -> str: ...
    def many(self: Any, reviews: list[Review]) -> str: ...
    def optional(self: Any, review: Review | None = None) -> str: ...
    def point(self: Any, point: Point) -> str: ...
    def typed(self: Any, typed: Typed) -> str: ...
    def both(self: Any, text: str, review: Review) -> str: ...
    def neither(self: Any, words: str, ctx: bentoml.Context) -> str: ...

    found = {method.__name__: find_inputs(method, ["text"], {})["text"] for method in (plain, model, many, optional)}
    assert found == {
        "plain": ("text",),
        "model": ("review", "text"),
        "many": ("reviews", "text"),
        "optional": ("review", "text"),
    }
    assert find_inputs(point, ["text"], {}) == {"text": ("point", "text")}
    assert find_inputs(typed, ["text"], {}) == {"text": ("typed", "text")}
    with pytest.raises(TypeError, match=r"two places of .*both: 'text' and 'review.text'"):
        find_inputs(both, ["text"], {})
    assert find_inputs(both, ["text"], {"text": "review.text"}) == {"text": ("review", "text")}
    with pytest.raises(TypeError, match=r"no argument of .*neither.*there are: words.*inputs=\{'text': 'words'\}"):
        find_inputs(neither, ["text"], {})
    assert argument_names(neither) == ["words"]


def test_a_task_that_does_not_name_its_fields_gets_every_argument() -> None:
    def method(self: Any, review: Review, language: str) -> str: ...

    assert find_inputs(method, None, {}) == {
        "text": ("review", "text"),
        "stars": ("review", "stars"),
        "language": ("language",),
    }
    assert find_inputs(method, None, {"text": "review.text"}) == {"text": ("review", "text")}


def test_fields_are_unknown_where_the_annotation_does_not_say() -> None:
    for annotation in (Any, dict[str, str], str, list[int]):
        assert fields_of(annotation) is None


def test_what_cannot_be_recorded_is_answered_all_the_same() -> None:
    service = Recorded()

    def broken(self: Any, text: str) -> dict[str, str]:
        return {"mood": "fine"}

    assert audited(label="sentiment")(broken)(service, text="x") == {"mood": "fine"}
    assert not service.records


def test_outside_of_a_request_errors_stay_errors_and_predictions_are_recorded() -> None:
    service = Recorded()

    async def method(self: Any, text: str) -> Verdict:
        if not text:
            raise InputError("'text' is empty", field="text")
        return Verdict(sentiment="positive", probability=0.5)

    wrapped: Any = audited(label="sentiment", confidence="probability")(method)
    answer = asyncio.run(wrapped(service, text="fine"))
    assert answer == Verdict(sentiment="positive", probability=0.5)
    ((_, example, outputs),) = service.records
    assert (example, outputs) == ({"text": "fine"}, {"label": "positive", "confidence": 0.5})
    with pytest.raises(InputError):
        asyncio.run(wrapped(service, text=""))


def test_a_stream_that_is_left_early_is_recorded_with_what_it_had_said() -> None:
    service = Recorded()

    def method(self: Any, text: str) -> Generator[dict[str, str], None, None]:
        yield {"label": "positive"}
        yield {"note": "never asked for"}

    stream = audited()(method)(service, text="fine")
    assert next(stream) == {"label": "positive"}
    stream.close()
    ((_, example, outputs),) = service.records
    assert (example, outputs) == ({"text": "fine"}, {"label": "positive"})


def test_a_stream_that_fails_before_its_first_chunk_is_no_prediction() -> None:
    service = Recorded()

    def method(self: Any, text: str) -> Generator[str, None, None]:
        raise ValueError("nothing to say")
        yield text

    with pytest.raises(ValueError, match="nothing to say"):
        next(audited()(method)(service, text="fine"))
    assert not service.records


def test_the_json_of_a_batch_is_split_over_its_items() -> None:
    def method(self: Any, reviews: list[Review]) -> list[Verdict]: ...

    method = AuditedMethod(method, {"label": "sentiment"})
    service = Recorded()
    context = RequestContext(batched=True)
    request = {"reviews": [{"text": "a"}, {"text": "b", "stars": 2}]}
    response = [{"sentiment": "x"}, {"sentiment": "y", "prediction_id": None}]
    assert method.record_response(service, context, request, response)
    assert [example for _, example, _ in service.records] == [{"text": "a"}, {"text": "b"}]
    assert response[0] == {"sentiment": "x"}
    assert response[1]["prediction_id"] == context.prediction_ids[1]


class Named(NamedTuple):
    mood: str
    sure: float


# What a method answers, whether it asks for several, and the predictions that are recorded of it.
ANSWERS: list[tuple[Any, Any, str, list[str]]] = [
    ("x", ("good", 0.5), "0", ["good"]),
    (["x", "y"], ("good", 0.5), "0", ["good"]),
    (["x", "y"], (["good", "bad"], [0.5, 0.6]), "0.1", ["bad"]),
    ("x", Named("good", 0.5), "mood", ["good"]),
    (["x", "y"], Named("good", 0.5), "mood", ["good"]),
    (["x", "y"], [Named("good", 0.5), Named("bad", 0.6)], "mood", ["good", "bad"]),
    (["x", "y"], [("good", 0.5), ("bad", 0.6)], "0", ["good", "bad"]),
    (["x", "y"], {"mood": "good"}, "mood", ["good"]),
    (["x", "y"], Verdict(sentiment="good", probability=0.5), "sentiment", ["good"]),
    ("x", [{"entity": "a"}, {"entity": "b"}], "1.entity", ["b"]),
    (["x", "y"], [{"mood": "good"}, {"mood": "bad"}], "mood", ["good", "bad"]),
    ([], [], "mood", []),
]


@pytest.mark.parametrize(("text", "answer", "label", "recorded"), ANSWERS)
def test_only_a_list_for_several_inputs_is_several_predictions(
    text: Any, answer: Any, label: str, recorded: list[str]
) -> None:
    service, context = Recorded(), RequestContext()

    def method(self: Any, text: Any) -> Any:
        return answer

    token = current_request.set(context)
    try:
        given = audited(label=label)(method)(service, text=text)
    finally:
        current_request.reset(token)

    assert given == answer
    assert type(given) is type(answer)
    assert [outputs["label"] for _, _, outputs in service.records] == recorded
    assert len(context.prediction_ids) == len(recorded)
    if len(recorded) == 1:
        assert service.records[0][1] == {"text": text}


def test_the_parts_of_a_tuple_have_numbers_and_those_of_a_named_one_names() -> None:
    def pair(self: Any, text: str) -> tuple[Verdict, float]: ...
    def many(self: Any, text: str) -> tuple[Verdict, ...]: ...
    def named(self: Any, text: str) -> Named: ...

    service_with(pair, label="0.sentiment", confidence="1")
    service_with(many, label="sentiment")
    service_with(named, label="mood", confidence="1")
    assert fields_of(tuple[Verdict, float]) is None
    assert fields_of(tuple[Verdict, ...]) == ["sentiment", "probability"]
    assert fields_of(Named) == ["mood", "sure"]
    with pytest.raises(TypeError, match=r"label='mod'.*did you mean 'mood'"):
        service_with(named, label="mod")


@pytest.mark.parametrize("kind", ["sync", "coroutine", "generator", "async generator"])
def test_a_method_whose_audit_is_switched_off_does_what_it_did(kind: str) -> None:
    service = Recorded()

    def sync(self: Any, text: str) -> list[str]:
        if not text:
            raise InputError("'text' is empty", field="text")
        return [text]

    async def coroutine(self: Any, text: str) -> list[str]:
        return sync(self, text)

    def generator(self: Any, text: str) -> Generator[str, None, None]:
        yield from sync(self, text)

    async def async_generator(self: Any, text: str) -> AsyncGenerator[str, None]:
        for one in sync(self, text):
            yield one

    async def all_of(stream: Any) -> list[str]:
        return [one async for one in stream]

    methods: dict[str, Any] = {"sync": sync, "coroutine": coroutine}
    methods |= {"generator": generator, "async generator": async_generator}
    wrapped: Any = audited(config="off")(methods[kind])

    def call(text: str) -> Any:
        answer = wrapped(service, text=text)
        if kind == "coroutine":
            return asyncio.run(answer)
        return asyncio.run(all_of(answer)) if kind == "async generator" else list(answer)

    assert call("fine") == ["fine"]
    with pytest.raises(BentoMLException, match="'text' is empty") as caught:
        call("")
    assert caught.value.error_code == 400
    assert not service.records
    assert set(service.asked) == {"off"}


def test_an_audit_that_cannot_be_had_costs_no_prediction(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def audit_of(self, config: str | None) -> Any:
            raise RuntimeError("the config is gone")

    def method(self: Any, text: str) -> dict[str, str]:
        return {"label": "good"}

    assert audited()(method)(Broken(), text="x") == {"label": "good"}
    assert "the config is gone" in caplog.text


def test_what_another_service_in_the_same_process_predicts_is_not_this_requests() -> None:
    class Other: ...

    service, context = Recorded(), RequestContext(Other, batched=True)
    token = current_request.set(context)
    try:
        audited()(lambda self, text: {"label": "good"})(service, text="x")
    finally:
        current_request.reset(token)

    assert len(service.records) == 1
    assert context.prediction_ids == []


class Tag(BaseModel):
    label: str
    share: float


class Tags(BaseModel):
    found: list[Tag]


@pytest.mark.parametrize(
    ("found", "label", "confidence", "counted"),
    [
        ([("b", 0.9), ("a", 0.6), ("b", 0.8)], "a, b", 0.6, ("b", "a", "b")),
        ([], "none", None, ("none",)),
    ],
)
def test_a_list_of_labels_is_recorded_by_a_summary_of_them(
    found: list[tuple[str, float]], label: str, confidence: float | None, counted: tuple[str, ...]
) -> None:
    answer = Tags(found=[Tag(label=name, share=share) for name, share in found])
    outputs = {
        part: dig(answer, path.split(".")) for part, path in (("label", "found.label"), ("confidence", "found.share"))
    }

    seen = projected(outputs)

    assert (seen.label, seen.confidence, seen.counted) == (label, confidence, counted)
    assert projected({"label": "a", "confidence": 0.5}).counted == ("a",)
    assert projected({"label": None}).counted == ()
