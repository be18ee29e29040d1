"""What belongs to one HTTP request and has to cross BentoML, from the middleware to the audited method and back.

BentoML gives a method no way to add a response header unless it takes a ``ctx`` parameter, and a method in a thread
sees a copy of the context. So the middleware puts one mutable object into the context before the request goes in, the
method writes into it, and the middleware reads it when the response comes out.
"""

from __future__ import annotations

import time
from contextvars import ContextVar

from audit_service.store.predictions import Reservation


class RequestContext:
    """One request, while the service answers it.

    Attributes:
        owner: The class of the service that was asked. It may call another audited service within the same process,
            whose predictions are not this request's.
        batched: The method merges several requests into one call, so nothing within it belongs to this request only.
        idempotency_key: The request's ``Idempotency-Key``, or ``None``.
        pickled: A service beside this one asks, by BentoML's own protocol.
        reserved: What this key stands for, once it is known (batched methods only).
        prediction_ids: Ids of the predictions in the response, in its order.
        arrived: When it came, by ``time.monotonic()``; deadlines begin here, also where it had to wait for its turn.
    """

    __slots__ = ("arrived", "batched", "idempotency_key", "owner", "pickled", "prediction_ids", "reserved")

    def __init__(
        self,
        owner: type | None = None,
        *,
        batched: bool = False,
        idempotency_key: str | None = None,
        pickled: bool = False,
    ) -> None:
        self.owner = owner
        self.batched = batched
        self.idempotency_key = idempotency_key
        self.pickled = pickled
        self.reserved: Reservation | None = None
        self.prediction_ids: list[str] = []
        self.arrived = time.monotonic()


current_request: ContextVar[RequestContext | None] = ContextVar("bento_audit_request", default=None)


def seconds_since_arrival() -> float:
    """Seconds since the request that is answered came; 0 where other code calls."""
    context = current_request.get()
    return 0.0 if context is None else time.monotonic() - context.arrived


def request_to(service: object) -> RequestContext | None:
    """The request that ``service`` answers; ``None`` where it is called by other code."""
    context = current_request.get()
    return context if context is not None and context.owner in (None, type(service)) else None
