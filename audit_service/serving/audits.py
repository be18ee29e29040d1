"""All audits of one service: one for each of its models, and which of them a request is about."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from audit_service.engine.client import Engine
from audit_service.errors import BadRequestError
from audit_service.schemas import ExplainRequest, FeedbackRequest
from audit_service.schemas.common import ModelRequest
from audit_service.serving.audit import Audit, Question, failure
from audit_service.serving.feedback import counted, take_feedback
from audit_service.serving.lookup import OTHER_WORKER_S, Found, look_up
from audit_service.store.predictions import PredictionRecord, is_fresh
from influence_engine.errors import InfluenceError
from influence_engine.names import listing

Result = TypeVar("Result")


class Asked(NamedTuple):
    """What a question is about.

    Attributes:
        audit: The one that it names, that which recorded its prediction, or the service's own.
        record: The prediction on record that it names, or why there is none; None where it brings its input along.
    """

    audit: Audit
    record: PredictionRecord | InfluenceError | None


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

    async def about(self, questions: Sequence[ModelRequest]) -> list[Asked | InfluenceError]:
        """What each question is about, or why nothing says so."""
        chosen = [self._chosen_for(one) for one in questions]
        wanted: dict[Audit | None, list[str]] = {}
        for one, audit in zip(questions, chosen, strict=True):
            prediction_id = named_in(one)
            if prediction_id is not None and not isinstance(audit, InfluenceError):
                wanted.setdefault(audit, []).append(prediction_id)
        every = list(self.members.values())
        # Together, so that a request waits for other workers once, however many models it asks about.
        found = await asyncio.gather(
            *(look_up(every if owner is None else [owner], ids) for owner, ids in wanted.items())
        )
        records = dict(zip(wanted, found, strict=True))
        return [
            audit if isinstance(audit, InfluenceError) else _asked(audit, records.get(audit, {}), named_in(one))
            for one, audit in zip(questions, chosen, strict=True)
        ]

    def _chosen_for(self, question: ModelRequest) -> Audit | InfluenceError | None:
        """The audit that is named or goes without saying; None where the prediction on record says which."""
        if question.config is None and named_in(question) is not None and len(self.members) > 1:
            return None
        try:
            return self.chosen(question.config)
        except InfluenceError as error:
            return error

    async def explain(self, engine: Engine, requests: Sequence[ExplainRequest]) -> list[dict[str, Any]]:
        """For each request an explanation, or ``{"error": {...}, "status": ...}`` of its own.

        Raises:
            ServiceError: none can be answered at all.
        """
        answers: list[dict[str, Any]] = [{} for _ in requests]
        questions: dict[Audit, dict[int, Question]] = {}
        for place, (request, one) in enumerate(zip(requests, await self.about(requests), strict=True)):
            if isinstance(one, InfluenceError):
                answers[place] = failure(one)
            else:
                questions.setdefault(one.audit, {})[place] = request, one.record
        explained = await asyncio.gather(
            *(_caught(audit.explain(engine, list(mine.values()))) for audit, mine in questions.items())
        )
        failures = [one for one in explained if isinstance(one, InfluenceError)]
        if failures and len(failures) == len(explained):
            raise failures[0]
        for mine, some in zip(questions.values(), explained, strict=True):
            each = [failure(some)] * len(mine) if isinstance(some, InfluenceError) else some
            for place, answer in zip(mine, each, strict=True):
                answers[place] = answer
        return answers

    async def take_feedback(self, request: FeedbackRequest) -> dict[str, Any]:
        """Keeps true labels where their predictions are on record; see ``feedback.take_feedback``.

        Raises:
            BadRequestError: the request names a config that the service is not audited by.
            ServiceError: nothing could be kept.
        """
        if request.config is not None or len(self.members) < 2:
            return await take_feedback(self.chosen(request.config), request)
        ids = [str(item.get("prediction_id")) for item in request.items]
        owners = await asyncio.to_thread(self._owners, ids)
        if any(is_fresh(one) for place, one in enumerate(ids) if place not in owners):
            await asyncio.sleep(OTHER_WORKER_S)  # another worker may be about to write it
            owners = await asyncio.to_thread(self._owners, ids)
        answers: dict[int, dict[str, Any]] = {}
        last = list(self.members.values())[-1]
        for audit in self.members.values():
            # What nobody has is found unknown by the last one.
            mine = [place for place in range(len(ids)) if owners.get(place, last) is audit]
            if mine:
                part = request.model_copy(update={"items": [request.items[place] for place in mine]})
                answers |= zip(mine, (await take_feedback(audit, part))["items"], strict=True)
        return counted([answers[place] for place in range(len(ids))])

    def _owners(self, ids: Sequence[str]) -> dict[int, Audit]:
        owners: dict[int, Audit] = {}
        for audit in self.members.values():
            known = audit.store.known(ids)
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


def named_in(question: ModelRequest) -> str | None:
    """The prediction on record that a question names; None where it brings its input along."""
    found: str | None = getattr(question, "prediction_id", None)
    return found


def _asked(
    audit: Audit | None, records: Mapping[str, Found[Audit] | InfluenceError], prediction_id: str | None
) -> Asked | InfluenceError:
    found = None if prediction_id is None else records[prediction_id]
    if audit is None:
        assert found is not None  # an audit is left open only where a prediction is named
        return found if isinstance(found, InfluenceError) else Asked(*found)
    return Asked(audit, found[1] if isinstance(found, tuple) else found)
