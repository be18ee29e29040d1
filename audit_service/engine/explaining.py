"""Explains items of the API with an ``Attributor``, and puts the attributions into the API's shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from audit_service.config import AuditConfig
from audit_service.engine.loading import Loaded
from audit_service.errors import error_body, status_of
from audit_service.prediction.predictor import check_example
from audit_service.schemas import EngineItem
from influence_engine.errors import InfluenceError, InputError
from influence_engine.tasks import CheckingTask, Example, TargetTask, Task, aim, fields_of, show, target_field


def explain(loaded: Loaded, items: Sequence[EngineItem]) -> list[dict[str, Any]]:
    """Explains items that have options in common (``same_call``).

    Returns:
        For each item ``{"explanation": {...}}``, or ``{"error": {...}, "status": ...}`` of its own.
    """
    answers: list[dict[str, Any] | None] = [None] * len(items)
    queries: dict[int, Example] = {}
    for place, item in enumerate(items):
        try:
            queries[place] = query_of(loaded, item)
        except InfluenceError as error:
            answers[place] = failure(error)
    for place, answer in zip(
        queries, _attribute(loaded, [items[i] for i in queries], list(queries.values())), strict=True
    ):
        answers[place] = answer
    return [answer for answer in answers if answer is not None]


def same_call(item: EngineItem) -> tuple[Any, ...]:
    """Items for which this is equal can share one call of the attributor."""
    return (item.top_k, item.tier, item.polarity, tuple(item.group_by))


def query_of(loaded: Loaded, item: EngineItem) -> dict[str, Any]:
    """The example to explain; its label, where it has one, is the target.

    Raises:
        InputError: a field is unknown or missing, the text is too long, or the target label does not exist.
    """
    known = input_fields(loaded.config)
    label_field = getattr(loaded.task, "label", "label")
    for name in item.input:
        if known is not None and name not in known:
            raise InputError(f"input has no field {name!r}; its fields are {', '.join(known)}", field=f"input.{name}")
    query = dict(item.input)
    if item.target is not None:
        query = _aimed(loaded.task, query, item.target)
    elif item.recorded is not None and item.recorded.get("label") in getattr(loaded.task, "labels", ()):
        query[label_field] = item.recorded["label"]  # what was predicted, should torch see it differently
    try:
        check_example(loaded.task, query, loaded.config.serve.max_text_chars)
    except InputError as error:
        place = "target.label" if error.field == label_field else f"input.{error.field}"
        raise InputError(error.message, field=place) from None
    return query


def _aimed(task: Task, query: dict[str, Any], target: Mapping[str, Any]) -> dict[str, Any]:
    """The query with its target; of a plain label the task's own check says whether there is one of that name."""
    field, label = target_field(fields_of(task)), target.get("label")
    checks = isinstance(task, CheckingTask) and not isinstance(task, TargetTask)
    if checks and field is not None and isinstance(label, str):
        return {**query, field.name: label}
    return aim(task, query, dict(target))


def input_fields(config: AuditConfig) -> list[str] | None:
    """Names of the fields of an input; ``None`` where a task of one's own does not say."""
    known = config.task.type == "text_classification" or "text" in config.task.model_fields_set
    return [config.task.text] if known else None


def failure(error: InfluenceError) -> dict[str, Any]:
    """An item's own error."""
    return {**error_body(error.code, error.message, error.field), "status": status_of(error)}


def parity(recorded: Mapping[str, Any] | None, computed: Mapping[str, Any], tolerance: float) -> bool | None:
    """Whether torch agrees with the recorded prediction: the same label, its probabilities within ``tolerance``.

    ``None`` where there is nothing on record.
    """
    if recorded is None or recorded.get("label") is None:
        return None
    if recorded["label"] != computed["label"]:
        return False
    scores = recorded.get("scores") or {}
    gaps = [abs(value - computed["scores"].get(name, math.inf)) for name, value in scores.items()]
    if recorded.get("confidence") is not None:
        gaps.append(abs(recorded["confidence"] - computed["confidence"]))
    return max(gaps, default=0.0) <= tolerance


def _attribute(loaded: Loaded, items: Sequence[EngineItem], queries: Sequence[Example]) -> list[dict[str, Any]]:
    if not items:
        return []
    first = items[0]
    try:
        attributions = loaded.attributor.attribute(
            queries, top_k=first.top_k, tier=first.tier, polarity=first.polarity, group_by=first.group_by
        )
    except InfluenceError as error:
        if len(items) == 1:
            return [failure(error)]
        # One of them spoils the batch: alone, each gets its own answer or its own error.
        return [_attribute(loaded, [item], [query])[0] for item, query in zip(items, queries, strict=True)]
    return [
        {"explanation": _explanation(loaded, item, attribution)}
        for item, attribution in zip(items, attributions, strict=True)
    ]


def _explanation(loaded: Loaded, item: EngineItem, attribution: Any) -> dict[str, Any]:
    differences: dict[str, Any] = {
        "target": attribution.target,
        "measurement": attribution.measurement,
        "base_measurement": attribution.base_measurement,
        "base_prediction": attribution.base_prediction,
    }
    if "modules" in item.include and attribution.base_measurement is not None:
        differences["modules"] = attribution.modules
        differences["modules_residual"] = attribution.modules_residual
    agrees = attribution.prediction and parity(
        item.recorded, attribution.prediction, loaded.config.serve.parity_tolerance
    )
    answer: dict[str, Any] = {
        "model": loaded.model,
        "index": loaded.index,
        "prediction": attribution.prediction,
        "differences": differences,
        "quality": {**attribution.quality, "parity": agrees},
        "timings_ms": attribution.timings_ms,
    }
    if "examples" in item.include:
        answer["examples"] = [
            {
                "example_handle": one.example_handle,
                "rank": one.rank,
                "influence": one.influence,
                "error_90": one.error_90,
                "probability_change": one.probability_change,
                "tier": one.tier,
                "polarity": one.polarity,
                "label": one.label,
                "source": one.source,
                **({"text": shown} if shown else {}),
            }
            for one, shown in ((one, show(loaded.task, one.fields)) for one in attribution.examples)
        ]
    if "groups" in item.include:
        answer["groups"] = attribution.groups
    return answer
