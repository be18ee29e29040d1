"""``/audit/feedback``: keeps true labels; one bad item never harms its neighbours."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from audit_service.errors import BadRequestError, body_of
from audit_service.schemas import FeedbackItem, FeedbackRequest
from audit_service.serving.audit import Audit
from audit_service.serving.error_responses import validation_body
from audit_service.store.database import storable
from audit_service.store.outcomes import Outcome
from audit_service.store.predictions import not_found
from influence_engine.tasks import summary


async def take_feedback(audit: Audit, request: FeedbackRequest) -> dict[str, Any]:
    """Keeps the true labels of a request.

    Returns:
        ``items``: for each ``{"fate"}`` (``recorded``, ``repeated``, ``changed``) or ``{"error"}``; and how many of
        each fate.

    Raises:
        ServiceError: nothing could be kept.
    """
    several = audit.config.has_several_labels()
    parsed = [_parsed(item, audit.config.label_names(), several=several) for item in request.items]
    judged = iter(await audit.feedback([one for one in parsed if isinstance(one, Outcome)]))
    items: list[dict[str, Any]] = []
    for one in parsed:
        if isinstance(one, Outcome):
            fate = next(judged).fate
            items.append(body_of(not_found(one.prediction_id)) if fate == "unknown" else {"fate": fate})
        else:
            items.append(one)
    return counted(items)


def counted(items: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer: what became of each item, and how many of each fate there are."""
    fates = [item.get("fate", "refused") for item in items]
    return {"items": items, **{fate: fates.count(fate) for fate in ("recorded", "repeated", "changed", "refused")}}


def _parsed(item: dict[str, Any], labels: list[str], *, several: bool) -> Outcome | dict[str, Any]:
    try:
        found = FeedbackItem.model_validate(item)
    except ValidationError as error:
        details: Any = error.errors(include_input=False, include_context=False, include_url=False)
        return validation_body(details, FeedbackItem)
    if isinstance(found.label, list) != several:
        what = "a list of labels, empty where there is none" if several else "one label"
        return body_of(BadRequestError(f"what was right is {what}", field="label"))
    given = [found.label] if isinstance(found.label, str) else found.label
    unknown = [label for label in given if labels and label not in labels]
    if unknown:
        known = ", ".join(map(repr, labels))
        message = f"unknown label {unknown[0][:80]!r}; the labels are {known}"
        return body_of(BadRequestError(message, field="label"))
    if not all(map(storable, given)):
        return body_of(BadRequestError("label has a NUL or half of a surrogate pair in it", field="label"))
    return Outcome(found.prediction_id, summary(given) if several else given[0], found.groups)
