"""``/audit/feedback``: keeps true labels; one bad item never harms its neighbours."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from audit_service.errors import error_body
from audit_service.schemas import FeedbackItem, FeedbackRequest
from audit_service.serving.audit import Audit
from audit_service.serving.error_responses import validation_body
from audit_service.store.database import storable
from audit_service.store.outcomes import Outcome


async def take_feedback(audit: Audit, request: FeedbackRequest) -> dict[str, Any]:
    """Keeps the true labels of a request.

    Returns:
        ``items``: for each ``{"fate"}`` (``recorded``, ``repeated``, ``changed``) or ``{"error"}``; and how many of
        each fate.

    Raises:
        ServiceError: nothing could be kept.
    """
    parsed = [_parsed(item, audit.config.label_names()) for item in request.items]
    judged = iter(await audit.feedback([one for one in parsed if isinstance(one, Outcome)]))
    items: list[dict[str, Any]] = []
    for one in parsed:
        if isinstance(one, Outcome):
            fate = next(judged).fate
            items.append(_unknown(one.prediction_id) if fate == "unknown" else {"fate": fate})
        else:
            items.append(one)
    return counted(items)


def counted(items: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer: what became of each item, and how many of each fate there are."""
    fates = [item.get("fate", "refused") for item in items]
    return {"items": items, **{fate: fates.count(fate) for fate in ("recorded", "repeated", "changed", "refused")}}


def _parsed(item: dict[str, Any], labels: list[str]) -> Outcome | dict[str, Any]:
    try:
        found = FeedbackItem.model_validate(item)
    except ValidationError as error:
        details: Any = error.errors(include_input=False, include_context=False, include_url=False)
        return validation_body(details, FeedbackItem)
    if labels and found.label not in labels:
        known = ", ".join(map(repr, labels))
        return error_body("bad_request", f"unknown label {found.label[:80]!r}; the labels are {known}", "label")
    if not storable(found.label):
        return error_body("bad_request", "label has a NUL or half of a surrogate pair in it", "label")
    return Outcome(found.prediction_id, found.label, found.groups)


def _unknown(prediction_id: str) -> dict[str, Any]:
    return error_body("not_found", f"no prediction has the id {prediction_id[:64]!r}", "prediction_id")
