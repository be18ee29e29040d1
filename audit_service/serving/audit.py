"""``self.audit`` of a service: its config, its predictor, its recorded predictions, and its questions to the engine."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from audit_service.artifacts.bento_models import index_version_folder
from audit_service.artifacts.onnx_models import ReopenedPredictor, open_predictor
from audit_service.artifacts.state_places import state_location
from audit_service.config import AuditConfig
from audit_service.engine.client import Engine
from audit_service.errors import EngineTimeoutError, body_of, status_of
from audit_service.prediction.predictor import OnnxPredictor
from audit_service.schemas import EngineItem, ExplainRequest, ExplainResponse
from audit_service.serving.lookup import OTHER_WORKER_S
from audit_service.serving.monitor import ServiceMonitor
from audit_service.serving.request_context import seconds_since_arrival
from audit_service.store.ids import new_id
from audit_service.store.outcomes import Judged, Outcome, OutcomeStore
from audit_service.store.predictions import PredictionRecord, PredictionStore, Reservation, is_fresh
from influence_engine.errors import InfluenceError, InputError
from influence_engine.index import Manifest
from influence_engine.index.manifest import MANIFEST
from influence_engine.tasks import Projection, labels_in, received, summary

Question = tuple[ExplainRequest, PredictionRecord | InfluenceError | None]
"""A request, and the prediction on record that it names, or why there is none; None where it brings its input."""


class Audit:
    """The audit of one service.

    Args:
        service: The service's name, for the record.
        name: The name of its config, by which it asks the engine.
        config: Its config.
    """

    def __init__(self, service: str, name: str, config: AuditConfig) -> None:
        self.service = service
        self.name = name
        self.config = config
        self.input_fields: Sequence[str] | None = config.input_names()
        self.fields = config.example_fields()
        self.listed_fields = frozenset(field.name for field in self.fields if field.is_list)
        self.model_digest = ""
        self.monitor = ServiceMonitor(name, config)
        self.outcomes = OutcomeStore(state_location(config))
        self.store = PredictionStore(
            state_location(config),
            keep_inputs_s=config.serve.keep_inputs_s,
            dropped=self.monitor.dropped,
            delayed=self.monitor.delayed,
        )

    def open_predictor(self) -> ReopenedPredictor:
        """The config's model in ONNX Runtime; what keeps it from being opened is answered with 503 until it is not."""

        def opened(predictor: OnnxPredictor) -> None:
            self.model_digest = predictor.model_digest

        return ReopenedPredictor(lambda: open_predictor(self.config, self.monitor.features), opened)

    def start(self, engine: Callable[[], Engine]) -> None:
        """Opens the record and begins to count; call it in the process that serves.

        Args:
            engine: The engine, as this process reaches it.
        """
        if not self.model_digest:  # a predictor of the service's own: it predicts with the model of the index
            with contextlib.suppress(InfluenceError):
                manifest = Manifest.read(index_version_folder(self.config) / MANIFEST)
                self.model_digest = manifest.digests.get("model") or ""
        self.store.start()
        self.monitor.start(self.model_digest, engine)

    def close(self) -> None:
        """Writes what has not been written yet."""
        self.monitor.close()
        self.store.close()

    def record(
        self, prediction_id: str, example: Mapping[str, Any], outputs: Mapping[str, Any], *, repeated: bool = False
    ) -> None:
        """Puts one prediction on record and counts it; never fails, and takes microseconds.

        Args:
            prediction_id: Its id.
            example: What was asked.
            outputs: What was answered.
            repeated: It was recorded and counted before, and this is a retry.
        """
        if repeated:
            return
        try:
            example = received(self.fields, example)
        except InputError:  # the service could use it all the same; what is kept can be read again
            self.dropped("unreadable_input")
            return
        seen = projected(outputs)
        self.store.record(
            PredictionRecord(
                prediction_id=prediction_id,
                service=self.service,
                model_digest=self.model_digest,
                label=seen.label,
                confidence=seen.confidence,
                scores=outputs.get("scores"),
                input=example,
            )
        )
        self.monitor.predicted(example, seen)

    async def feedback(self, outcomes: Sequence[Outcome]) -> list[Judged]:
        """Keeps true labels and counts them; a prediction that was judged before is not counted twice.

        Raises:
            ServiceError: they cannot be kept.
        """
        judged = await asyncio.to_thread(self._kept, outcomes)
        fresh = [
            place
            for place, one in enumerate(judged)
            if one.fate == "unknown" and is_fresh(outcomes[place].prediction_id)
        ]
        if fresh:  # another worker may be about to write them
            await asyncio.sleep(OTHER_WORKER_S)
            again = await asyncio.to_thread(self.outcomes.add, [outcomes[place] for place in fresh])
            for place, one in zip(fresh, again, strict=True):
                judged[place] = one
        counting = self.monitor.outcomes
        for outcome, one in zip(outcomes, judged, strict=True):
            if counting is not None and one.fate == "recorded":
                groups = [f"{column}={value}" for column, value in outcome.groups.items()]
                counting.arrived(
                    outcome.label,
                    right=one.predicted == outcome.label,
                    confidence=one.confidence,
                    groups=groups,
                    labels=self._verdicts(outcome.label, one.predicted),
                )
        return judged

    def _verdicts(self, truth: str, predicted: str | None) -> list[tuple[str, bool]]:
        """Where a prediction may have several labels, the true and the predicted ones, each with whether it is both."""
        if not self.config.has_several_labels():
            return []
        true, guessed = labels_in(truth), labels_in(predicted or "")
        either = [*true, *(label for label in guessed if label and label not in true)]
        return [(label, label in true and label in guessed) for label in either]

    def _kept(self, outcomes: Sequence[Outcome]) -> list[Judged]:
        self.store.flush()  # what this worker answered a moment ago is found, too
        return self.outcomes.add(outcomes)

    def dropped(self, reason: str, count: int = 1) -> None:
        """Counts predictions that are missing from the record."""
        self.monitor.dropped(reason, count)

    def reserve(self, idempotency_key: str, method: str, example: Mapping[str, Any]) -> Reservation:
        """What an ``Idempotency-Key`` stands for; see ``PredictionStore.reserve``."""
        asked = received(self.fields, example)
        return self.store.reserve(idempotency_key, f"{self.service}\0{method}\0{self.model_digest}", asked)

    async def explain(self, engine: Engine, questions: Sequence[Question]) -> list[dict[str, Any]]:
        """For each question an explanation, or ``{"error": {...}, "status": ...}`` of its own.

        Raises:
            ServiceError: the engine cannot answer at all.
        """
        began = time.perf_counter()
        try:
            answers = await self._explain(engine, questions)
        except InfluenceError as error:
            self._count([{"status": status_of(error)}] * len(questions), began)
            raise
        self._count(answers, began)
        return answers

    def _count(self, answers: Sequence[dict[str, Any]], began: float) -> None:
        explanations = self.monitor.explanations
        if explanations is None:
            return
        for answer in answers:
            explanations.explained(tier_of(answer), answer.get("status", 200))
        explanations.took(time.perf_counter() - began)

    async def _explain(self, engine: Engine, questions: Sequence[Question]) -> list[dict[str, Any]]:
        asked = [_item(request, record) for request, record in questions]
        items = [one for one in asked if isinstance(one, EngineItem)]
        deadline_s = self.config.serve.explain_deadline_s * (1 + (len(items) - 1) // 10)
        left_s = deadline_s - seconds_since_arrival()
        if items and left_s <= 0:
            raise EngineTimeoutError(f"not asked within {deadline_s:g} s; ask again shortly", retry_after=2)
        answers = iter(await engine.explain(self.name, items, left_s) if items else [])
        return [
            failure(item) if isinstance(item, InfluenceError) else _answer(record, next(answers))
            for item, (_, record) in zip(asked, questions, strict=True)
        ]


def projected(outputs: Mapping[str, Any]) -> Projection:
    """What is recorded and counted of an answer: its label, or a summary of several, and the least confidence."""
    label, confidence = outputs.get("label"), outputs.get("confidence")
    if not isinstance(label, list | tuple):
        return Projection(label, confidence)
    labels = tuple(map(str, label))
    shares = confidence if isinstance(confidence, list | tuple) else [confidence]
    known = [share for share in shares if share is not None]
    return Projection(summary(labels), min(known, default=None), labels or (summary(()),))


def tier_of(answer: Mapping[str, Any]) -> str | None:
    """The tier of an explanation's influences; ``None`` where no example says."""
    examples = answer.get("examples") or []
    return examples[0]["tier"] if examples else None


def _item(request: ExplainRequest, record: PredictionRecord | InfluenceError | None) -> EngineItem | InfluenceError:
    if isinstance(record, InfluenceError):
        return record
    options = request.model_dump(include={"top_k", "polarity", "tier", "include", "group_by"})
    options["target"] = None if request.target is None else request.target.model_dump(mode="json", exclude_none=True)
    if record is None:
        return EngineItem(input=request.input or {}, **options)
    recorded = {"label": record.label, "confidence": record.confidence, "scores": record.scores}
    try:
        return EngineItem(input=record.kept_input(), recorded=recorded, **options)
    except InfluenceError as error:
        return error


def _answer(record: PredictionRecord | InfluenceError | None, answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer or isinstance(record, InfluenceError):
        return answer
    explanation = answer["explanation"]
    if record is not None:
        try:
            record.check_model(explanation["model"]["digest"])
        except InfluenceError as error:
            return failure(error)
    prediction = explanation["prediction"]
    # What was recorded of a prediction that is no label is a summary of it; whether the two agree says `parity`.
    whole = prediction is None or "label" in prediction
    if record is not None and whole and (record.label is not None or prediction is None):
        prediction = {"label": record.label, "confidence": record.confidence, "scores": record.scores}
    made = ExplainResponse.model_validate(
        {
            **explanation,
            "explanation_id": new_id(),
            "prediction_id": None if record is None else record.prediction_id,
            "prediction": prediction,
        }
    )
    return made.model_dump(mode="json", exclude_unset=True)


def failure(error: InfluenceError) -> dict[str, Any]:
    """What one question gets in place of an explanation."""
    return {**body_of(error), "status": status_of(error)}
