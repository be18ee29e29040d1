"""Types of ASGI, and the few things that every part of the middleware does with its messages."""

from __future__ import annotations

import functools
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware

from audit_service.errors import RETRY_AFTER_S, ServiceError, body_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON = b"application/json"


def replay(body: bytes, receive: Receive) -> Receive:
    """Gives a body that has been read once more, then whatever comes after it."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed


def header(start: Message, wanted: bytes) -> bytes:
    """A header of a response; empty where it is not there."""
    return next((value for name, value in start.get("headers", ()) if name.lower() == wanted), b"")


def replace_body(start: Message, body: bytes, content_type: bytes, more: Mapping[str, str] | None = None) -> None:
    """Makes the headers of a response those of another body.

    Args:
        start: The response's start.
        body: What is sent now.
        content_type: Its media type.
        more: Further headers that go with it.
    """
    given = {name.lower().encode(): value.encode("latin-1") for name, value in (more or {}).items()}
    given |= {b"content-type": content_type, b"content-length": str(len(body)).encode()}
    kept = [pair for pair in start.get("headers", ()) if pair[0].lower() not in given]
    start["headers"] = [*kept, *given.items()]


def say_when_to_come_again(start: Message, seconds: int | None = None) -> None:
    """Gives an answer that a later request need not get (429, 503) its ``Retry-After``, where it has none.

    Args:
        start: The response's start.
        seconds: What its error says, if it says anything.
    """
    if start["status"] in RETRY_AFTER_S and not header(start, b"retry-after"):
        seconds = RETRY_AFTER_S[start["status"]] if seconds is None else seconds
        start["headers"] = [*start.get("headers", ()), (b"retry-after", str(seconds).encode())]


async def answer_error(send: Send, error: ServiceError) -> None:
    """Answers what was raised on purpose, in the one shape of errors."""
    body = json.dumps(body_of(error)).encode()
    start: Message = {"type": "http.response.start", "status": error.status, "headers": []}
    replace_body(start, body, JSON)
    say_when_to_come_again(start, error.retry_after)
    await send(start)
    await send({"type": "http.response.body", "body": body})


class CorsHeaders:
    """Gives answers the headers that the service's own CORS middleware would have given them.

    BentoML puts that middleware inside of ours, so it sees neither what ours answers nor what BentoML's time and
    concurrency limits do; a browser then tells its page nothing of the error but that there was one.

    Args:
        options: Of the service's ``CORSMiddleware``; ``None`` where it has none.
    """

    def __init__(self, options: Mapping[str, Any] | None) -> None:
        self._middleware = None if options is None else CORSMiddleware(_nothing, **options)

    def around(self, scope: Scope, send: Send) -> Send:
        """A ``send`` that adds the headers to a response to the request of ``scope``, if it has none yet."""
        if self._middleware is None:
            return send
        add = functools.partial(self._middleware.send, send=send, request_headers=Headers(scope=scope))

        async def with_headers(message: Message) -> None:
            seen = message["type"] != "http.response.start" or _seen_by_cors(message)
            await (send if seen else add)(message)

        return with_headers


def _seen_by_cors(start: Message) -> bool:
    allowed, varies = header(start, b"access-control-allow-origin"), header(start, b"vary")
    return bool(allowed) or b"origin" in varies.lower()


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """Stands where an application stands; never called."""
