"""All audits of one service: one for each of its models, and which of them a request is about."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from audit_service.engine.client import Engine
from audit_service.errors import BadRequestError, error_body, status_of
from audit_service.schemas import ExplainRequest, FeedbackRequest
from audit_service.serving.audit import Audit
from audit_service.serving.feedback import counted, take_feedback
from audit_service.store.predictions import OTHER_WORKER_S, found_of, is_fresh
from influence_engine.errors import InfluenceError
from influence_engine.names import listing

Result = TypeVar("Result")


class Audits:
    """The audits of a service, by the names of their configs.

    Args:
        members: Those that are switched on.
        default: The service's own; ``None`` where each of its methods names another.
        off: Names of those that are switched off.
    """

    def __init__(self, members: Mapping[str, Audit], default: str | None, off: Sequence[str] = ()) -> None:
        self.members = dict(members)
        self._default = default if default is not None or len(self.members) != 1 else next(iter(self.members))
        self._off = frozenset(off)

    def chosen(self, config: str | None) -> Audit:
        """The audit by a config, or the service's own.

        Raises:
            BadRequestError: it has none by this config, or none of its own.
        """
        wanted = config if config is not None else self._default
        if wanted in self.members:
            return self.members[wanted]
        if wanted in self._off:
            raise BadRequestError(f"the audit by {wanted!r} is switched off (enabled: false)", field="config")
        if config is None:
            raise BadRequestError(
                f"this service is audited for several models; say which in config: {listing(self.members)}",
                field="config",
            )
        raise BadRequestError(
            f"this service is not audited by {config[:80]!r}; there is {listing(self.members)}", field="config"
        )

    def of(self, config: str | None, prediction_id: str | None) -> Audit:
        """The audit that a question is about: the one named, that which recorded the prediction, or the service's own.

        Raises:
            BadRequestError: there is no such audit, or nothing says which.
            PredictionNotFoundError: none of several has the prediction.
            ServiceError: a store cannot be read.
        """
        if config is not None or prediction_id is None or len(self.members) < 2:
            return self.chosen(config)
        audits = list(self.members.values())
        return audits[found_of([audit.store for audit in audits], prediction_id)[0]]

    async def explain(self, engine: Engine, requests: Sequence[ExplainRequest]) -> list[dict[str, Any]]:
        """For each request an explanation, or ``{"error": {...}, "status": ...}`` of its own.

        Raises:
            ServiceError: none can be answered at all.
        """
        answers: list[dict[str, Any]] = [{} for _ in requests]
        places: dict[Audit, list[int]] = {}
        found = await asyncio.gather(*(self._asked(request) for request in requests))
        for place, one in enumerate(found):
            if isinstance(one, Audit):
                places.setdefault(one, []).append(place)
            else:
                answers[place] = _failure(one)
        asked = [[requests[place] for place in mine] for mine in places.values()]
        explained = await asyncio.gather(
            *(_caught(audit.explain(engine, mine)) for audit, mine in zip(places, asked, strict=True))
        )
        failures = [one for one in explained if isinstance(one, InfluenceError)]
        if failures and len(failures) == len(explained):
            raise failures[0]
        for mine, some in zip(places.values(), explained, strict=True):
            each = [_failure(some)] * len(mine) if isinstance(some, InfluenceError) else some
            for place, answer in zip(mine, each, strict=True):
                answers[place] = answer
        return answers

    async def _asked(self, request: ExplainRequest) -> Audit | InfluenceError:
        return await _caught(asyncio.to_thread(self.of, request.config, request.prediction_id))

    def take_feedback(self, request: FeedbackRequest) -> dict[str, Any]:
        """Keeps true labels where their predictions are on record; see ``feedback.take_feedback``.

        Raises:
            BadRequestError: the request names a config that the service is not audited by.
            ServiceError: nothing could be kept.
        """
        if request.config is not None or len(self.members) < 2:
            return take_feedback(self.chosen(request.config), request)
        ids = [str(item.get("prediction_id")) for item in request.items]
        owners = self._owners(ids)
        if any(is_fresh(one) for place, one in enumerate(ids) if place not in owners):
            time.sleep(OTHER_WORKER_S)  # another worker may be about to write it
            owners = self._owners(ids)
        answers: dict[int, dict[str, Any]] = {}
        last = list(self.members.values())[-1]
        for audit in self.members.values():
            # What nobody has is found unknown by the last one.
            mine = [place for place in range(len(ids)) if owners.get(place, last) is audit]
            if mine:
                part = request.model_copy(update={"items": [request.items[place] for place in mine]})
                answers |= zip(mine, take_feedback(audit, part)["items"], strict=True)
        return counted([answers[place] for place in range(len(ids))])

    def _owners(self, ids: Sequence[str]) -> dict[int, Audit]:
        owners: dict[int, Audit] = {}
        for audit in self.members.values():
            audit.store.flush()  # what this worker answered a moment ago is found, too
            known = audit.outcomes.known(ids)
            owners |= {place: audit for place, one in enumerate(ids) if one in known}
        return owners


async def first_of(
    members: Sequence[Any], ask: Callable[[Any], Awaitable[Result]], missing: type[InfluenceError]
) -> Result:
    """The first answer of several that may not know what is asked about; raises ``missing`` where none does."""
    for number, member in enumerate(members, 1):
        try:
            return await ask(member)
        except missing:
            if number == len(members):
                raise
    raise AssertionError("nobody to ask")


async def _caught(work: Awaitable[Result]) -> Result | InfluenceError:
    try:
        return await work
    except InfluenceError as error:
        return error


def _failure(error: InfluenceError) -> dict[str, Any]:
    return {**error_body(error.code, error.message, error.field), "status": status_of(error)}
