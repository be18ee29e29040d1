"""Explains items of the API with an ``Attributor``, and puts the attributions into the API's shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from audit_service.engine.loading import Loaded
from audit_service.errors import body_of, status_of
from audit_service.prediction.inputs import taken_input
from audit_service.schemas import EngineItem
from influence_engine.errors import InfluenceError, InputError
from influence_engine.models.loading import base_head
from influence_engine.tasks import (
    Example,
    Task,
    aim,
    fields_of,
    input_fields,
    labels_of,
    projection_of,
    show,
    target_field,
)


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
    return (item.top_k, item.tier, item.polarity, tuple(item.group_by), _wants_parts(item))


def _wants_parts(item: EngineItem) -> bool:
    return "parts" in item.include


def query_of(loaded: Loaded, item: EngineItem) -> dict[str, Any]:
    """The example to explain, aimed at its target where it has one.

    Raises:
        InputError: a field is unknown or missing, an input is too long, or there is no such target.
    """
    fields = fields_of(loaded.task)
    known = [field.name for field in input_fields(fields)]
    for name in item.input:
        if known and name not in known:
            raise InputError(f"input has no field {name!r}; its fields are {', '.join(known)}", field=f"input.{name}")
    try:
        query = dict(taken_input(loaded.task, fields, item.input, loaded.config.serve.max_text_chars))
    except InputError as error:
        raise InputError(error.message, field=f"input.{error.field}") from None
    if item.target is not None:
        return _aimed(loaded.task, query, item.target)
    recorded = None if item.recorded is None else item.recorded.get("label")
    field = target_field(fields)
    one_label = field is not None and field.kind == "label"  # of several there is a summary on record
    if one_label and recorded is not None and recorded in (labels_of(loaded.task) or ()):
        return aim(loaded.task, query, recorded)  # what was predicted, should torch see it differently
    return query


def _aimed(task: Task, query: Example, target: dict[str, Any]) -> dict[str, Any]:
    try:
        return aim(task, query, target)
    except InputError as error:
        only = error.field == "target" and len(target) == 1
        raise InputError(error.message, field=f"target.{next(iter(target))}" if only else error.field) from None


def failure(error: InfluenceError) -> dict[str, Any]:
    """An item's own error."""
    return {**body_of(error), "status": status_of(error)}


def parity(
    recorded: Mapping[str, Any] | None,
    computed: Mapping[str, Any] | None,
    tolerance: float,
    task: Task | None = None,
) -> bool | None:
    """Whether torch agrees with the recorded prediction: the same label, its probabilities within ``tolerance``.

    ``None`` where there is nothing on record, or the task predicts nothing.
    """
    if recorded is None or recorded.get("label") is None or computed is None:
        return None
    projected = projection_of(task, computed)
    if recorded["label"] != projected.label:
        return False
    scores = recorded.get("scores") or {}
    gaps = [
        abs((math.inf if value is None else value) - computed.get("scores", {}).get(name, math.inf))
        for name, value in scores.items()
    ]
    if recorded.get("confidence") is not None and projected.confidence is not None:
        gaps.append(abs(recorded["confidence"] - projected.confidence))
    return all(gap <= tolerance for gap in gaps)  # a gap that is NaN is none to be tolerated


def _attribute(loaded: Loaded, items: Sequence[EngineItem], queries: Sequence[Example]) -> list[dict[str, Any]]:
    if not items:
        return []
    first = items[0]
    try:
        attributions = loaded.attributor.attribute(
            queries,
            top_k=first.top_k,
            tier=first.tier,
            polarity=first.polarity,
            group_by=first.group_by,
            parts=_wants_parts(first),
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
    difference = loaded.attributor.difference
    differences: dict[str, Any] = {
        "target": attribution.target,
        "measurement": attribution.measurement,
        "base_measurement": attribution.base_measurement,
        "base_prediction": attribution.base_prediction,
        "base_head": None if difference is None else base_head(difference.base),
    }
    if "modules" in item.include and attribution.base_measurement is not None:
        differences["modules"] = attribution.modules
        differences["modules_residual"] = attribution.modules_residual
    if attribution.changed_parts is not None:
        differences["parts"] = attribution.changed_parts
    tolerance = loaded.config.serve.parity_tolerance
    agrees = parity(item.recorded, attribution.prediction, tolerance, loaded.task)
    answer: dict[str, Any] = {
        "model": loaded.model,
        "index": loaded.index,
        "prediction": attribution.prediction,
        "differences": differences,
        "quality": {**attribution.quality, "parity": agrees},
        "coming": loaded.coming(),
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
                **({} if one.parts is None else {"parts": one.parts, "parts_residual": one.parts_residual}),
            }
            for one, shown in ((one, show(loaded.task, one.fields)) for one in attribution.examples)
        ]
    if "groups" in item.include:
        answer["groups"] = attribution.groups
    return answer
